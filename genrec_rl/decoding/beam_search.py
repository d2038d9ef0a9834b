"""Point-wise beam search on prompts that are read once, constrained to the catalogue or free.

Beams hang on their prompt's trunk as branches (``models.trunk``): no cache is copied or reordered. A level looks
at its own vocabulary rows only where a trie constrains it, and at real children only. Scores are log-probabilities
under the full softmax, the numbers that teacher forcing gives, unless normalised within the level.

    B prompts   P prompt places   W beams   L levels   V vocabulary   K tokens looked at   M candidates of a prompt
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from genrec_rl.decoding.gumbel import perturb_children
from genrec_rl.errors import ConfigError, RolloutError
from genrec_rl.models.trunk import Branches, Trunk, read_trunk
from genrec_rl.sids.trie import NO_NODE, SidTrie
from genrec_rl.sids.vocab import SidVocab

Normalisation = Literal["vocabulary", "level"]
LOGITS_AT_ONCE = 1 << 24
"""Logits held while log-probabilities are taken (64 MiB)."""


@dataclass(frozen=True, slots=True)
class BeamPlan:
    """How wide a search is, and over what its probabilities sum to 1.

    Attributes:
        widths: beams kept at each level; the last is the number of answers. Narrower early levels are cheaper
            and may miss answers (GR4AD's dynamic beams).
        normalisation: ``vocabulary``, the softmax that the policy was trained with; or ``level``, over the codes of
            the level alone, which spares a large vocabulary's rows. Under ``level`` no answer is malformed.
    """

    widths: tuple[int, ...]
    normalisation: Normalisation = "vocabulary"

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"beam widths {list(self.widths)}: each level needs at least 1")
        if self.normalisation not in ("vocabulary", "level"):
            raise ConfigError(f"normalisation '{self.normalisation}' is not one of vocabulary, level")


class Beams(NamedTuple):
    """Continuations, best first. A place that no continuation was left for is dead: pad tokens, score -inf."""

    tokens_BWL: Int[Tensor, "B W L"]
    log_probs_BW: Float[Tensor, "B W"]


@torch.no_grad()
def beam_search(
    model: Any,
    prompt_ids_BP: Int[Tensor, "B P"],
    is_prompt_BP: Bool[Tensor, "B P"],
    *,
    vocab: SidVocab,
    plan: BeamPlan,
    trie: SidTrie | None = None,
    generator: torch.Generator | None = None,
) -> Beams:
    """Read the prompts, then search from them; arguments and answer as in ``search_from``."""
    trunk = read_trunk(model, prompt_ids_BP, is_prompt_BP)
    return search_from(model, trunk, vocab=vocab, plan=plan, trie=trie, generator=generator)


@torch.no_grad()
def search_from(
    model: Any,
    trunk: Trunk,
    *,
    vocab: SidVocab,
    plan: BeamPlan,
    trie: SidTrie | None = None,
    generator: torch.Generator | None = None,
) -> Beams:
    """Return the most probable continuations of L tokens, or a sample of them without replacement.

    Args:
        model: the causal model that read the trunk.
        trunk: the prompts.
        vocab: where the levels' tokens lie.
        plan: beams a level. Where fewer continuations exist than asked for, in every row, W is smaller.
        trie: makes every living continuation a SID of the catalogue; without one, any token may follow any other.
        generator: draws continuations by Gumbel top-k (Kool et al. 2019, arXiv:1903.06059) in place of the best.

    Raises:
        RolloutError: when the model returns NaN.
        ConfigError: when the plan has another number of levels.
    """
    if len(plan.widths) != vocab.n_levels:
        raise ConfigError(f"beam widths {list(plan.widths)} are for {len(plan.widths)} levels of {vocab.n_levels}")
    beams = _Growing(model, trunk, vocab, plan, is_constrained=trie is not None, generator=generator)
    for level, width in enumerate(plan.widths):
        log_probs_BWK, first_token = beams.next_log_probs(level)
        if trie is None:
            candidates = _every_token(log_probs_BWK)
        else:
            candidates = _children(log_probs_BWK, trie, level, beams.nodes)
        if torch.isnan(candidates.log_probs_BM).any():
            raise RolloutError(f"NaN log-probabilities at SID level {level}; the policy's weights are broken")
        beams.choose(candidates, first_token=first_token, width=width)
    return Beams(beams.tokens, beams.scores)


class _Candidates(NamedTuple):
    """What could follow the beams of each prompt: log p of the step, column of the token, and the parent's place."""

    log_probs_BM: Float[Tensor, "B M"]
    columns_BM: Int[Tensor, "B M"]
    parents_BM: Int[Tensor, "B M"]
    nodes_BM: Int[Tensor, "B M"] | None


def _every_token(log_probs_BWK: Float[Tensor, "B W K"]) -> _Candidates:
    n_rows, n_beams, n_tokens = log_probs_BWK.shape
    index = torch.arange(n_beams * n_tokens, device=log_probs_BWK.device).expand(n_rows, -1)
    return _Candidates(log_probs_BWK.flatten(1), index % n_tokens, index // n_tokens, None)


def _children(
    log_probs_BWK: Float[Tensor, "B W K"], trie: SidTrie, level: int, nodes_BW: Int[Tensor, "B W"]
) -> _Candidates:
    codes, nodes, parents, is_child = trie.children(level, nodes_BW)
    flat = parents * log_probs_BWK.shape[2] + codes
    log_probs = log_probs_BWK.flatten(1).gather(1, flat).masked_fill(~is_child, -torch.inf)
    return _Candidates(log_probs, codes, parents, nodes)


class _Growing:
    """The growing beams of B prompts."""

    def __init__(
        self,
        model: Any,
        trunk: Trunk,
        vocab: SidVocab,
        plan: BeamPlan,
        *,
        is_constrained: bool,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.trunk, self.vocab, self.generator = model, trunk, vocab, generator
        self.is_constrained = is_constrained
        self.by_level = plan.normalisation == "level"
        n_rows = len(trunk.logits_BV)
        device = trunk.logits_BV.device
        self.tokens = torch.empty(n_rows, 1, 0, dtype=torch.long, device=device)
        self.nodes = torch.zeros(n_rows, 1, dtype=torch.long, device=device)
        self.scores = torch.zeros(n_rows, 1, device=device)
        self.ranks = self.scores  # what beams are chosen by: their scores, or those with Gumbel noise
        self._branches: Branches | None = None
        self._parents = torch.empty(n_rows, 0, dtype=torch.long, device=device)

    def next_log_probs(self, level: int) -> tuple[Float[Tensor, "B W K"], int]:
        """Return each beam's next distribution over K tokens that lie side by side, and the first of them."""
        rows = slice(None)
        if self.is_constrained or self.by_level:
            first = self.vocab.level_starts[level]
            rows = slice(first, first + self.vocab.codebook_sizes[level])
        if level == 0:
            logits = self.trunk.logits_BV.unsqueeze(1)
            log_probs = _normalise(logits[..., rows] if self.by_level else logits)
            return (log_probs if self.by_level else log_probs[..., rows]), rows.start or 0
        if self._branches is None:
            self._branches = Branches(self.trunk, n_branches=self.tokens.shape[1])
        else:
            self._branches = self._branches.follow(self._parents)
        hidden = self._branches.read(self.model.model, self.tokens[:, :, -1], depth=level - 1).last_hidden_state
        head = self.model.get_output_embeddings()
        return next_log_probs(head, hidden, rows=rows, by_level=self.by_level), rows.start or 0

    def choose(self, candidates: "_Candidates", *, first_token: int, width: int) -> None:
        """Keep the ``width`` best candidates of each row, best first."""
        scores = self.scores.gather(1, candidates.parents_BM) + candidates.log_probs_BM
        ranks = scores
        if self.generator is not None:
            ranks = perturb_children(scores, self.ranks, candidates.parents_BM, generator=self.generator)
        ranks, chosen = ranks.topk(min(width, ranks.shape[1]), dim=1)
        n_alive = max(int((ranks > -torch.inf).sum(1).max()), 1)
        self.ranks, chosen = ranks[:, :n_alive], chosen[:, :n_alive]
        is_dead = self.ranks == -torch.inf
        parents = candidates.parents_BM.gather(1, chosen)
        picked = candidates.columns_BM.gather(1, chosen) + first_token
        past = self.tokens.gather(1, parents.unsqueeze(2).expand(-1, -1, self.tokens.shape[2]))
        self.tokens = torch.cat([past, picked.unsqueeze(2)], dim=2).masked_fill(is_dead[..., None], self.vocab.pad_id)
        self.scores = scores.gather(1, chosen)
        if candidates.nodes_BM is not None:
            self.nodes = candidates.nodes_BM.gather(1, chosen).masked_fill(is_dead, NO_NODE)
        self._parents = parents


def next_log_probs(
    head: Any, hidden_BWH: Float[Tensor, "B W H"], *, rows: slice, by_level: bool
) -> Float[Tensor, "B W K"]:
    """Return log-probabilities (float32) of the vocabulary's ``rows``, which sum to 1 alone if ``by_level``.

    Otherwise they are of the whole vocabulary, whose logits are never held for more than a part of the beams.
    """
    if by_level:
        return _normalise(functional.linear(hidden_BWH, head.weight[rows]))
    hidden = hidden_BWH.flatten(0, 1)
    parts = hidden.split(max(LOGITS_AT_ONCE // head.weight.shape[0], 1))
    return torch.cat([_normalise(head(part))[:, rows] for part in parts]).unflatten(0, hidden_BWH.shape[:2])


def _normalise(logits: Float[Tensor, "... V"]) -> Float[Tensor, "... V"]:
    return logits.float().log_softmax(-1)
