"""Point-wise beam search on prompts that are read once, constrained to the catalogue or free.

Beams hang on their prompt's trunk as branches (``models.trunk``): no cache is copied or reordered. A level looks
at its own vocabulary rows only where a trie constrains it, and at real children only. Scores are log-probabilities
under the full softmax, the numbers that teacher forcing gives, unless normalised within the level. Normalised over
real children, a beam that only one SID continues is not read any more: its end has probability 1.

    B prompts   P prompt places   W beams   U of them that are read   L levels   V vocabulary   K tokens looked at
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from genrec_rl.decoding.exclusion import Exclusion
from genrec_rl.decoding.gumbel import perturb_children
from genrec_rl.errors import ConfigError, RolloutError
from genrec_rl.models.trunk import Branches, Trunk, read_trunk
from genrec_rl.sids.trie import BestChildren, Rank, SidTrie, largest, largest_of_each
from genrec_rl.sids.vocab import SidVocab

Normalisation = Literal["vocabulary", "level", "children"]
LOGITS_AT_ONCE = 1 << 24
"""Logits held while log-probabilities are taken (64 MiB)."""


@dataclass(frozen=True, slots=True)
class BeamPlan:
    """How wide a search is, and over what its probabilities sum to 1.

    Attributes:
        widths: beams kept at each level; the last is the number of answers. Narrower early levels are cheaper
            and may miss answers (GR4AD's dynamic beams).
        normalisation: ``vocabulary``, the full softmax; or ``level``, over the codes of
            the level alone, which spares a large vocabulary's rows; or ``children``, over the codes that go on to
            an item, so that what a policy gives to codes that do not exist costs an item nothing. Under ``level``
            and ``children`` no answer is malformed. Without a trie ``children`` is ``level``.
        per_beam: continuations of one beam that go on, at most, its best (GR4AD's top-k pre-cut); the first level has
            one beam and is not cut. Where it is at least the next width it changes nothing; smaller, answers spread
            over more prefixes, and the best may be missed. None for no cut.
    """

    widths: tuple[int, ...]
    normalisation: Normalisation = "vocabulary"
    per_beam: int | None = None

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"beam widths {list(self.widths)}: each level needs at least 1")
        if self.normalisation not in get_args(Normalisation):
            known = ", ".join(get_args(Normalisation))
            raise ConfigError(f"normalisation '{self.normalisation}' is not one of {known}")
        if self.per_beam is not None:
            self._check_per_beam(self.per_beam)

    def _check_per_beam(self, per_beam: int) -> None:
        """Refuse a cut that leaves fewer continuations than the next level is to keep."""
        if per_beam < 1:
            raise ConfigError(f"per_beam is {per_beam}, at least 1 is needed; leave it out for no cut")
        for before, width in pairwise(self.widths):
            if per_beam * before < width:
                raise ConfigError(
                    f"per_beam {per_beam}: {before} beams with that many continuations each cannot fill the next "
                    f"level's {width}; at least {-(-width // before)} are needed"
                )


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
    excluded: Exclusion | None = None,
) -> Beams:
    """Read the prompts, then search from them; arguments and answer as in ``search_from``."""
    trunk = read_trunk(model, prompt_ids_BP, is_prompt_BP)
    return search_from(model, trunk, vocab=vocab, plan=plan, trie=trie, generator=generator, excluded=excluded)


@torch.no_grad()
def search_from(
    model: Any,
    trunk: Trunk,
    *,
    vocab: SidVocab,
    plan: BeamPlan,
    trie: SidTrie | None = None,
    generator: torch.Generator | None = None,
    excluded: Exclusion | None = None,
) -> Beams:
    """Return the most probable continuations of L tokens, or a sample of them without replacement.

    Args:
        model: the causal model that read the trunk.
        trunk: the prompts.
        vocab: where the levels' tokens lie.
        plan: beams a level. Where fewer continuations exist than asked for, in every row, W is smaller.
        trie: makes every living continuation a SID of the catalogue; without one, any token may follow any other.
        generator: draws continuations by Gumbel top-k (Kool et al. 2019, arXiv:1903.06059) in place of the best. With
            a trie they are a sample of what the policy would draw if, level by level, it chose among real children
            by their probabilities divided by the children's sum: not of the policy restricted to the catalogue.
        excluded: what is never answered; probabilities stay those of the policy, so that they sum to less than 1.

    Raises:
        RolloutError: when the model returns NaN for what was read.
        ConfigError: when the plan has another number of levels, or cuts what is to be a sample.
    """
    if len(plan.widths) != vocab.n_levels:
        raise ConfigError(f"beam widths {list(plan.widths)} are for {len(plan.widths)} levels of {vocab.n_levels}")
    if generator is not None and plan.per_beam is not None:
        raise ConfigError(f"per_beam {plan.per_beam}: a cut of each beam's continuations is no sample; leave it out")
    beams = _Growing(model, trunk, vocab, plan, trie)
    for level, width in enumerate(plan.widths):
        log_probs_BWK, first_token = beams.next_log_probs(level)
        if excluded is not None:
            log_probs_BWK = excluded.mask(level, beams.tokens, log_probs_BWK, first_token=first_token)
        rank = None if generator is None else partial(perturb_children, beams.ranks, generator=generator)
        own = plan.per_beam if level else None
        if trie is None:
            best = best_tokens(beams.scores, log_probs_BWK, width=width, rank=rank, per_node=own)
        else:
            best = trie.best_children(
                level, beams.nodes, beams.scores, log_probs_BWK, width=width, rank=rank, per_node=own
            )
        if torch.isnan(best.ranks).any():
            raise RolloutError(f"NaN log-probabilities at SID level {level}; the policy's weights are broken")
        beams.grow(best, first_token=first_token)
    return Beams(beams.tokens, beams.scores)


def best_tokens(
    scores_BW: Float[Tensor, "B W"],
    log_probs_BWK: Float[Tensor, "B W K"],
    *,
    width: int,
    rank: Rank | None = None,
    per_node: int | None = None,
) -> BestChildren:
    """Return the best of all tokens after all beams: ``SidTrie.best_children`` where anything may follow."""
    n_tokens = log_probs_BWK.shape[2]
    found = ranks = (scores_BW.unsqueeze(2) + log_probs_BWK).flatten(1)
    if rank is not None:
        ranks = rank(found, torch.arange(found.shape[1], device=found.device).expand_as(found) // n_tokens)
    if per_node is not None and per_node < width:
        ranks, at = largest_of_each(ranks.unflatten(1, (-1, n_tokens)), width, per_group=per_node)
    else:
        ranks, at = largest(ranks, width)
    return BestChildren(ranks, found.gather(1, at), parents=at // n_tokens, codes=at % n_tokens, nodes=at)


def over_children(
    trie: SidTrie, level: int, nodes_BW: Int[Tensor, "B W"], log_probs_BWK: Float[Tensor, "B W K"]
) -> Float[Tensor, "B W K"]:
    """Return log-probabilities (over a level's codes) of which each beam's real children sum to 1."""
    codes_BM, _, parents_BM, is_child_BM = trie.children(level, nodes_BW)
    of_children = log_probs_BWK.flatten(1).gather(1, parents_BM * log_probs_BWK.shape[2] + codes_BM)
    of_children = of_children.masked_fill(~is_child_BM, -torch.inf)
    largest_BW = torch.full_like(nodes_BW, -torch.inf, dtype=log_probs_BWK.dtype)
    largest_BW = largest_BW.scatter_reduce(1, parents_BM, of_children, "amax").nan_to_num(neginf=0)
    shares = (of_children - largest_BW.gather(1, parents_BM)).exp()
    total_BW = torch.zeros_like(largest_BW).scatter_add(1, parents_BM, shares)
    return log_probs_BWK - (largest_BW + total_BW.clamp(min=torch.finfo(total_BW.dtype).tiny).log()).unsqueeze(2)


class _Growing:
    """The growing beams of B prompts."""

    def __init__(self, model: Any, trunk: Trunk, vocab: SidVocab, plan: BeamPlan, trie: SidTrie | None) -> None:
        self.model, self.trunk, self.vocab, self.is_constrained = model, trunk, vocab, trie is not None
        self.by_level = plan.normalisation != "vocabulary"
        n_rows = len(trunk.logits_BV)
        device = trunk.logits_BV.device
        self.tokens = torch.empty(n_rows, 1, 0, dtype=torch.long, device=device)
        self.nodes = torch.zeros(n_rows, 1, dtype=torch.long, device=device)
        self.scores = torch.zeros(n_rows, 1, device=device)
        self.ranks = self.scores  # what beams are chosen by: their scores, or those with Gumbel noise
        self._children_of = trie if plan.normalisation == "children" else None
        self._branches: Branches | None = None
        self._branch_BW = self._parents = torch.zeros_like(self.nodes)  # of each beam; and of its parent

    def next_log_probs(self, level: int) -> tuple[Float[Tensor, "B W K"], int]:
        """Return each beam's next distribution over K tokens that lie side by side, and the first of them."""
        rows = slice(None)
        if self.is_constrained or self.by_level:
            first = self.vocab.level_starts[level]
            rows = slice(first, first + self.vocab.codebook_sizes[level])
        log_probs = self._next_over(rows, level)
        if self._children_of is not None:
            log_probs = over_children(self._children_of, level, self.nodes, log_probs)
        return log_probs, rows.start or 0

    def _next_over(self, rows: slice, level: int) -> Float[Tensor, "B W K"]:
        """Return log-probabilities of some rows of the vocabulary; of a beam whose end is certain, any numbers."""
        if level == 0:
            logits = self.trunk.logits_BV.unsqueeze(1)
            return _normalise(logits[..., rows]) if self.by_level else _normalise(logits)[..., rows]
        head = self.model.get_output_embeddings()
        if self._children_of is None:
            hidden = self._read(self.tokens[:, :, -1], self._parents, depth=level - 1)
            return next_log_probs(head, hidden, rows=rows, by_level=self.by_level)
        # Only beams that several SIDs continue are read; a row that has fewer than others reads some beside.
        is_open_BW = ~self._children_of.is_certain(level, self.nodes)
        n_read = int(is_open_BW.sum(1).max())
        read_BU = is_open_BW.int().argsort(dim=1, descending=True, stable=True)[:, :n_read]
        found = torch.zeros(*is_open_BW.shape, rows.stop - rows.start, device=read_BU.device)
        if n_read:
            parents_BU = self._branch_BW.gather(1, self._parents.gather(1, read_BU))
            hidden = self._read(self.tokens[:, :, -1].gather(1, read_BU), parents_BU, depth=level - 1)
            log_probs = next_log_probs(head, hidden, rows=rows, by_level=True)
            found = found.scatter(1, read_BU.unsqueeze(2).expand_as(log_probs), log_probs)
        branches_BU = torch.arange(n_read, device=read_BU.device).expand_as(read_BU)
        self._branch_BW = torch.zeros_like(self.nodes).scatter(1, read_BU, branches_BU)
        return found

    def _read(
        self, tokens_BU: Int[Tensor, "B U"], parents_BU: Int[Tensor, "B U"], *, depth: int
    ) -> Float[Tensor, "B U H"]:
        """Read the newest token of branches that go on from those that were read before."""
        if self._branches is None:
            self._branches = Branches(self.trunk, n_branches=tokens_BU.shape[1])
            self._branches.share_lower(self.model.model, n_places=self.vocab.n_levels - 1)
        else:
            self._branches = self._branches.follow(parents_BU)
        return self._branches.read(self.model.model, tokens_BU, depth=depth).last_hidden_state

    def grow(self, best: BestChildren, *, first_token: int) -> None:
        """Replace the beams by their chosen continuations; columns that are dead in all rows go."""
        n_alive = max(int((best.ranks > -torch.inf).sum(1).max()), 1)
        self.ranks, self.scores, self._parents, codes, self.nodes = (
            part[:, :n_alive] for part in (best.ranks, best.scores, best.parents, best.codes, best.nodes)
        )
        past = self.tokens.gather(1, self._parents.unsqueeze(2).expand(-1, -1, self.tokens.shape[2]))
        tokens = torch.cat([past, (codes + first_token).unsqueeze(2)], dim=2)
        self.tokens = tokens.masked_fill(self.ranks.unsqueeze(2) == -torch.inf, self.vocab.pad_id)


def next_log_probs(
    head: Any, hidden_BWH: Float[Tensor, "B W H"], *, rows: slice, by_level: bool
) -> Float[Tensor, "B W K"]:
    """Return log-probabilities (float32) of the vocabulary's ``rows``, which sum to 1 alone if ``by_level``.

    Otherwise they are of the whole vocabulary, whose logits are taken of a part of the beams at a time, so that only
    the ``rows`` of all beams are held together.
    """
    if by_level:
        return _normalise(functional.linear(hidden_BWH, head.weight[rows]))
    hidden = hidden_BWH.flatten(0, 1)
    parts = hidden.split(max(LOGITS_AT_ONCE // head.weight.shape[0], 1))
    return torch.cat([_normalise(head(part))[:, rows].clone() for part in parts]).unflatten(0, hidden_BWH.shape[:2])


def _normalise(logits: Float[Tensor, "... V"]) -> Float[Tensor, "... V"]:
    return logits.float().log_softmax(-1)
