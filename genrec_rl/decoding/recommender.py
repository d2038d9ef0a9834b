"""What recommends: anything that proposes SIDs, and a policy with its prompts, beam search and catalogue."""

from collections.abc import Sequence
from math import prod
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from genrec_rl.decoding.beam_search import BeamPlan, Normalisation, beam_search
from genrec_rl.decoding.exclusion import SeenItems
from genrec_rl.errors import ConfigError, RolloutError
from genrec_rl.models.policy import Policy
from genrec_rl.models.trunk import in_eval_mode
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.vocab import SidVocab
from genrec_rl.types import Context, Rollouts


class Recommender(Protocol):
    """Proposes semantic ids for requests."""

    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool) -> Rollouts:
        """Return k SIDs for each context, best first; constrained ones all belong to catalogue items."""
        ...


class BeamRecommender:
    """Recommends with a policy.

    Args:
        policy: the network and its prompts.
        catalog: what SIDs mean.
        batch_size: requests decoded at once; requests of similar length go together.
        beam_widths: beams of each level in place of k at every level; the last must be k.
        normalisation: see ``BeamPlan``; None is what the policy was trained with.
        continue_page: read the items of the request's own day as the beginning of the answer, see
            ``PromptEncoder.running_prompt``.
        per_beam: continuations of a beam that go on, see ``BeamPlan``; None for no cut.
        sample_seed: draw answers without repeats (Gumbel top-k) in place of the best, one stream of draws through all
            calls; one unconstrained answer a request is what the policy would say.
        exclude_seen: never answer with what a context's user has taken.

    Raises:
        ConfigError: for ``continue_page`` with a policy that was never taught pages.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        catalog: Catalog,
        batch_size: int = 64,
        beam_widths: Sequence[int] | None = None,
        normalisation: Normalisation | None = None,
        continue_page: bool = False,
        per_beam: int | None = None,
        sample_seed: int | None = None,
        exclude_seen: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, at least 1 is needed")
        taught = policy.model.config.target
        if continue_page and taught and "page" not in taught.split("+"):
            raise ConfigError(
                f"continue_page: target {taught}, which the policy was taught, never goes on with a page that has "
                "begun; set it to false, or train a policy with `recipes/sft.py --target page`"
            )
        self.policy = policy
        self.catalog = catalog
        self.batch_size = batch_size
        self.beam_widths = beam_widths
        self.per_beam = per_beam
        self.normalisation: Normalisation = normalisation or policy.model.config.softmax
        self._noise: torch.Generator | None = None
        if sample_seed is not None:
            self._noise = torch.Generator(policy.model.device).manual_seed(sample_seed)
        self._seen = SeenItems(catalog, policy.vocab) if exclude_seen else None
        self.write = policy.prompts.running_prompt if continue_page else policy.prompts.prompt

    @torch.no_grad()
    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool) -> Rollouts:
        """Return the k best SIDs of each context; invalid ones (only if unconstrained) keep their rank.

        Where the catalogue holds fewer than k SIDs, all of them come back; where a request's history is excluded and
        leaves fewer than that, ``NO_ITEM`` and -inf stand behind its last.

        Raises:
            RolloutError: when ``beam_widths`` leave a request without k answers.
        """
        plan = self._plan(k)
        proposed = self.propose(contexts, widths=plan.widths, constrained=constrained)
        self._check_enough(proposed, plan, contexts, constrained=constrained)
        return proposed

    @torch.no_grad()
    def propose(self, contexts: Sequence[Context], *, widths: Sequence[int], constrained: bool) -> Rollouts:
        """Return up to ``widths[-1]`` SIDs of each context, searched with these beams on each level.

        Where narrow levels, or what is excluded, leave a request fewer than others, ``NO_ITEM`` and -inf stand behind
        its last SID.
        """
        plan = BeamPlan(tuple(widths), self.normalisation, self.per_beam)
        prompts = [self.write(context) for context in contexts]
        order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        with in_eval_mode(self.policy.model):
            parts = [
                self._search([prompts[i] for i in batch], [contexts[i] for i in batch], plan, constrained=constrained)
                for batch in batches
            ]
        if not parts:
            parts = [
                (torch.empty(0, plan.widths[-1], len(widths), dtype=torch.long), torch.empty(0, plan.widths[-1]))
            ]
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        width = max(log_probs.shape[1] for _, log_probs in parts)
        if self._seen is not None and constrained:  # (histories differ from call to call, the width does not)
            width = max(width, min(plan.widths[-1], self.catalog.trie.n_sids))
        parts = [_widen(*part, width=width, pad_id=self.policy.vocab.pad_id) for part in parts]
        tokens, log_probs = (torch.cat(part)[back] for part in zip(*parts, strict=True))
        return resolve(tokens, log_probs, vocab=self.policy.vocab, catalog=self.catalog)

    def _plan(self, k: int) -> BeamPlan:
        widths = tuple([k] * self.policy.vocab.n_levels if self.beam_widths is None else self.beam_widths)
        plan = BeamPlan(widths, self.normalisation, self.per_beam)
        if widths[-1] != k:
            raise ConfigError(f"beam_widths {list(widths)} end with {widths[-1]}, but {k} answers are asked for")
        return plan

    def _search(
        self,
        prompts: list[Int[np.ndarray, " S"]],
        contexts: Sequence[Context],
        plan: BeamPlan,
        *,
        constrained: bool,
    ) -> tuple[Int[Tensor, "B W L"], Float[Tensor, "B W"]]:
        model, trie = self.policy.model, self.catalog.trie if constrained else None
        ids, is_prompt = (x.to(model.device) for x in self.policy.prompts.batch(prompts))
        tokens, log_probs = beam_search(
            model,
            ids,
            is_prompt,
            vocab=self.policy.vocab,
            plan=plan,
            trie=trie,
            generator=self._noise,
            excluded=None if self._seen is None else self._seen.of(contexts).to(model.device),
        )
        return tokens.cpu(), log_probs.cpu()

    def _check_enough(
        self, proposed: Rollouts, plan: BeamPlan, contexts: Sequence[Context], *, constrained: bool
    ) -> None:
        sizes = self.policy.vocab.codebook_sizes
        by_level = plan.normalisation != "vocabulary"
        free = prod(sizes) if by_level else self.policy.model.config.vocab_size ** len(sizes)
        wanted_P = np.full(len(contexts), min(plan.widths[-1], self.catalog.trie.n_sids if constrained else free))
        found_P = (proposed.log_probs_PG > -torch.inf).sum(1).numpy()
        if self._seen is not None and (found_P < wanted_P).any():
            if not constrained:
                return  # (how many free answers a history leaves is not known)
            wanted_P = np.minimum(wanted_P, self._seen.n_left(contexts))
        if (found_P < wanted_P).any():
            short = int((wanted_P - found_P).argmax())
            raise RolloutError(
                f"beam_widths {list(plan.widths)} leave a request with {found_P[short]} of {wanted_P[short]} answers"
                f"{'' if self._seen is None else ' (exclude_seen)'}: too few begin with the prefixes that were kept; "
                "widen the first levels"
                + ("" if plan.per_beam is None else f", or raise per_beam, which is {plan.per_beam}")
            )


def _widen(
    tokens_BWL: Int[Tensor, "B W L"], log_probs_BW: Float[Tensor, "B W"], *, width: int, pad_id: int
) -> tuple[Int[Tensor, "B U L"], Float[Tensor, "B U"]]:
    """Add dead beams up to a width."""
    missing = width - log_probs_BW.shape[1]
    tokens = functional.pad(tokens_BWL, (0, 0, 0, missing), value=pad_id)
    return tokens, functional.pad(log_probs_BW, (0, missing), value=-torch.inf)


def resolve(
    tokens_PGL: Int[Tensor, "P G L"], log_probs_PG: Float[Tensor, "P G"], *, vocab: SidVocab, catalog: Catalog
) -> Rollouts:
    """Read generated tokens as SIDs and look up their items.

    A token that is no code of its level (code -1: malformed) and a well-formed SID without an item are both
    invalid: row ``NO_ITEM``.
    """
    sids = vocab.codes(tokens_PGL.cpu())
    return Rollouts(sids_PGL=sids, rows_PG=catalog.rows_of(sids), log_probs_PG=log_probs_PG.cpu())
