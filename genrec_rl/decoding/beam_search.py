"""Point-wise beam search over one shared prompt cache, constrained to the catalogue or free.

The prompt is read once. Beams lie on the sequence axis of its cache: each level appends one place per beam, and a
mask lets a beam see the prompt and its own ancestors, so the cache is never copied or reordered. Scores are
log-probabilities under the full softmax, the same numbers that teacher forcing gives.

    B prompts   P prompt places   W beams   L levels   V vocabulary
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from genrec_rl.errors import RolloutError
from genrec_rl.models.policy import Policy
from genrec_rl.models.prefix_tree import as_attention_mask
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.trie import SidTrie, largest
from genrec_rl.sids.vocab import SidVocab
from genrec_rl.types import Context, Rollouts


@torch.no_grad()
def beam_search(
    model: PreTrainedModel,
    prompt_ids_BP: Int[Tensor, "B P"],
    is_prompt_BP: Bool[Tensor, "B P"],
    *,
    vocab: SidVocab,
    width: int,
    trie: SidTrie | None = None,
) -> tuple[Int[Tensor, "B W L"], Float[Tensor, "B W"]]:
    """Return the ``width`` most probable continuations of L tokens and their log-probabilities, best first.

    With a trie every continuation is a SID of the catalogue; where it holds fewer than ``width`` SIDs, all of
    them come back (W is then smaller). Without one, any token of the vocabulary may follow any other.

    Raises:
        RolloutError: when the model returns NaN.
    """
    beams = _Beams(model, prompt_ids_BP, is_prompt_BP)
    nodes = torch.zeros_like(prompt_ids_BP[:, :1])
    for level in range(vocab.n_levels):
        log_probs_BWV = beams.next_log_probs()
        start = vocab.level_starts[level]
        if trie is None:
            scores, flat = largest((beams.scores.unsqueeze(-1) + log_probs_BWV).flatten(1), width)
            parents, picked = flat // log_probs_BWV.shape[2], flat % log_probs_BWV.shape[2]
        else:
            # Either all prefixes of this level are held, or `width` with a child each: never a dead beam.
            room = min(width, trie.n_prefixes(level + 1))
            best = trie.best_children(level, nodes, beams.scores, log_probs_BWV, width=room, code_start=start)
            scores, parents, picked, nodes = best.scores, best.parents, best.codes + start, best.nodes
        if torch.isnan(scores).any():
            raise RolloutError(f"NaN log-probabilities at SID level {level}; the policy's weights are broken")
        beams.grow(parents, picked, scores)
    return beams.tokens, beams.scores


class _Beams:
    """The growing beams of B prompts, and the cache they share."""

    def __init__(self, model: PreTrainedModel, prompt_ids_BP: Tensor, is_prompt_BP: Tensor) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config)
        n_rows, n_prompt = prompt_ids_BP.shape
        positions = (is_prompt_BP.cumsum(1) - 1).clamp(min=0)
        place = torch.arange(n_prompt, device=prompt_ids_BP.device)
        causal = (place[:, None] >= place[None, :]) & is_prompt_BP[:, None, :]
        causal = causal | torch.eye(n_prompt, dtype=torch.bool, device=place.device)
        self.hidden = self._forward(prompt_ids_BP, causal, positions)[:, -1:]
        self.next_position = positions[:, -1:] + 1
        # seen[b, w]: the cache places that beam w of row b attends to
        self.seen = is_prompt_BP.unsqueeze(1)
        self.tokens = prompt_ids_BP.new_empty(n_rows, 1, 0)
        self.scores = torch.zeros(n_rows, 1, device=place.device)
        self._pending: Tensor | None = None

    def _forward(self, input_ids: Tensor, mask_BQK: Tensor, positions: Tensor) -> Tensor:
        mask = as_attention_mask(self.model, mask_BQK.unsqueeze(1), self.model.dtype)
        return self.model.model(
            input_ids=input_ids,
            attention_mask={"full_attention": mask},
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def next_log_probs(self) -> Float[Tensor, "B W V"]:
        """Read the tokens picked last, if any, and return the distribution of the next one."""
        if self._pending is not None:
            n_beams = self._pending.shape[1]
            own = torch.eye(n_beams, dtype=torch.bool, device=self.seen.device).expand(len(self.seen), -1, -1)
            self.seen = torch.cat([self.seen, own], dim=2)
            positions = self.next_position.expand(-1, n_beams)
            self.hidden = self._forward(self._pending, self.seen, positions)
            self.next_position = self.next_position + 1
        return self.model.lm_head(self.hidden).float().log_softmax(-1)

    def grow(self, parents: Int[Tensor, "B W"], picked: Int[Tensor, "B W"], scores: Float[Tensor, "B W"]) -> None:
        """Replace the beams by their chosen continuations; the cache stays as it is."""
        self.tokens = torch.cat([_take(self.tokens, parents), picked.unsqueeze(2)], dim=2)
        self.seen = _take(self.seen, parents)
        self.scores = scores
        self._pending = picked


def _take(values_BWX: Tensor, index_BU: Tensor) -> Tensor:
    return values_BWX.gather(1, index_BU.unsqueeze(2).expand(-1, -1, values_BWX.shape[2]))


class BeamRecommender:
    """Recommends with a policy: prompts, beam search, and the catalogue that resolves SIDs to items."""

    def __init__(self, policy: Policy, *, catalog: Catalog) -> None:
        self.policy = policy
        self.catalog = catalog

    @torch.no_grad()
    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool) -> Rollouts:
        """Return the k best SIDs of each context; invalid ones (only if unconstrained) keep their rank."""
        model, vocab = self.policy.model, self.policy.vocab
        was_training = model.training
        model.eval()
        ids, is_prompt = self.policy.prompts.batch([self.policy.prompts.prompt(c) for c in contexts])
        tokens, scores = beam_search(
            model,
            ids.to(model.device),
            is_prompt.to(model.device),
            vocab=vocab,
            width=k,
            trie=self.catalog.trie if constrained else None,
        )
        model.train(was_training)
        return resolve(tokens, scores, vocab=vocab, catalog=self.catalog)


def resolve(
    tokens_PGL: Int[Tensor, "P G L"], log_probs_PG: Float[Tensor, "P G"], *, vocab: SidVocab, catalog: Catalog
) -> Rollouts:
    """Read generated tokens as SIDs and look up their items.

    A token that is no code of its level (code -1: malformed) and a well-formed SID without an item are both
    invalid: row ``NO_ITEM``.
    """
    sids = vocab.codes(tokens_PGL.cpu())
    return Rollouts(sids_PGL=sids, rows_PG=catalog.rows_of(sids), log_probs_PG=log_probs_PG.cpu())
