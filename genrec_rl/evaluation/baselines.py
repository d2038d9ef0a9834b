"""The honest bars: recommenders without a model, built from training pages, for the same table as the policies.

Both recommend catalogue items, so they never hallucinate, and both may recommend what the user has taken already,
unless ``exclude_seen``.

    P   requests        K   candidates        N   catalogue items        L   SID levels
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from genrec_rl.config import nearest
from genrec_rl.data.store import Dataset
from genrec_rl.data.transitions import list_transitions
from genrec_rl.decoding.recommender import Recommender
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.evaluate import System
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import NO_ITEM, Context, Example, Rollouts

POPULARITY, COOCCURRENCE = "popularity", "cooccurrence"
SYMMETRIC, WITH_VALID = "_symmetric", "_with_valid"
COUNTED = (POPULARITY, *(COOCCURRENCE + form + pages for form in ("", SYMMETRIC) for pages in ("", WITH_VALID)))
"""Names of ``counted_system``."""
_TIE_BREAK = 1e-6


def baseline_systems(dataset: Dataset, catalog: Catalog, *, exclude_seen: bool = False) -> list[System]:
    """Return popularity and co-occurrence of the training pages, ready to stand beside policies."""
    names = (POPULARITY, COOCCURRENCE)
    return [counted_system(name, dataset, catalog, exclude_seen=exclude_seen) for name in names]


def counted_system(name: str, dataset: Dataset, catalog: Catalog, *, exclude_seen: bool = False) -> System:
    """Return one of ``COUNTED``.

    ``..._symmetric`` counts both directions with a decay of .7, and divides by popularity^.3;
    ``..._with_valid`` counts on validation pages too: fair on the test split alone, where their items are history.
    With ``exclude_seen`` it never answers with what a request's user has taken.

    Raises:
        ConfigError: for another name.
    """
    if name not in COUNTED:
        raise ConfigError(f"counted system '{name}' is none of {', '.join(COUNTED)}{nearest(name, COUNTED)}")

    def load() -> Recommender:
        if name == POPULARITY:
            return Popularity(dataset.popularity, codes=catalog.codes, exclude_seen=exclude_seen)
        pages = [*dataset.examples("train"), *(dataset.examples("valid") if name.endswith(WITH_VALID) else ())]
        if SYMMETRIC not in name:
            return Cooccurrence.fit(pages, dataset.popularity, codes=catalog.codes, exclude_seen=exclude_seen)
        return Cooccurrence.fit(
            pages, dataset.popularity, codes=catalog.codes, decay=0.7, symmetric=True, damping=0.3,
            exclude_seen=exclude_seen,
        )  # fmt: skip

    return System(name, load, ("constrained",))


class Popularity:
    """The same list for everyone: items by their number of clicks and orders in the training pages.

    ``exclude_seen`` leaves out what a context's user has taken.
    """

    def __init__(
        self, popularity: Int[np.ndarray, " N"], *, codes: Int[np.ndarray, "N L"], exclude_seen: bool = False
    ) -> None:
        self._exclude_seen = exclude_seen
        self._scores_N = torch.from_numpy(np.asarray(popularity, dtype=np.float64)) + _tie_break(popularity)
        self._codes_NL = torch.from_numpy(np.asarray(codes, dtype=np.int64))

    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool = True) -> Rollouts:  # noqa: ARG002
        """Return the k most popular items for every context."""
        seen = contexts if self._exclude_seen else ()
        return _best(self._scores_N.repeat(len(contexts), 1), self._codes_NL, k, seen=seen)


class Cooccurrence:
    """Items that followed the user's last items in the training pages of all users.

    Every clicked or ordered item of a training page adds decay^g to the pair (item g + 1 steps before it, item),
    for the ``n_last`` items before it: those of its page, in target order, and before them the history. A user's
    candidates add these counts up with the same weights. Forward only, unless ``fit`` is told otherwise: what came
    before an item says nothing here. Ties, and users without history, fall back on popularity.

    Args:
        pairs: items that came before, and items that followed, sorted and distinct.
        counts: weight of each pair, damped.
        popularity: positives of each item in training pages.
        codes: SID of each item.
        n_last: items that count.
        decay: weight of a step.
        exclude_seen: leave out what a context's user has taken.
    """

    def __init__(
        self,
        pairs: Int[np.ndarray, "2 pairs"],
        counts: Float[np.ndarray, " pairs"],
        popularity: Int[np.ndarray, " N"],
        *,
        codes: Int[np.ndarray, "N L"],
        n_last: int,
        decay: float,
        exclude_seen: bool = False,
    ) -> None:
        self._starts = np.searchsorted(pairs[0], np.arange(len(codes) + 1))
        self._followers, self._counts = pairs[1], counts
        self._tie_break_N = _tie_break(popularity)
        self._codes_NL = torch.from_numpy(np.asarray(codes, dtype=np.int64))
        self._n_last, self._decay, self._exclude_seen = n_last, decay, exclude_seen

    @classmethod
    def fit(
        cls,
        pages: Sequence[Example],
        popularity: Int[np.ndarray, " N"],
        *,
        codes: Int[np.ndarray, "N L"],
        n_last: int = 5,
        decay: float = 0.5,
        symmetric: bool = False,
        damping: float = 0.0,
        exclude_seen: bool = False,
    ) -> Self:
        """Count what followed what in pages; 12,000 items and 80,000 pages take seconds.

        Args:
            pages: training pages; further pages whose items are known when recommending may be added.
            popularity: positives of each item in training pages.
            codes: SID of each item.
            n_last: items that count, before an item and of a user.
            decay: weight of a step.
            symmetric: count each pair in both directions.
            damping: power of an item's popularity that its counts are divided by.
            exclude_seen: leave out what a context's user has taken.
        """
        found = list_transitions(pages, n_last=n_last, decay=decay)
        before, after, weights = found.before, found.after, found.weights
        if symmetric:
            before, after = np.concatenate([before, after]), np.concatenate([after, before])
            weights = np.tile(weights, 2)
        keys, pair_of = np.unique(before * len(codes) + after, return_inverse=True)
        counts = np.bincount(pair_of, weights=weights, minlength=len(keys))
        pairs = np.stack(np.divmod(keys, len(codes)))
        counts = counts / np.maximum(popularity, 1)[pairs[1]] ** damping
        return cls(pairs, counts, popularity, codes=codes, n_last=n_last, decay=decay, exclude_seen=exclude_seen)

    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool = True) -> Rollouts:  # noqa: ARG002
        """Return the k items that most often followed each context's last items."""
        scores_PN = np.zeros((len(contexts), len(self._codes_NL)))
        for p, context in enumerate(contexts):
            for step, item in enumerate(context.history[::-1][: self._n_last]):
                found = slice(self._starts[item], self._starts[item + 1])
                scores_PN[p, self._followers[found]] += self._decay**step * self._counts[found]
        seen = contexts if self._exclude_seen else ()
        return _best(torch.from_numpy(scores_PN) + self._tie_break_N, self._codes_NL, k, seen=seen)


def _tie_break(popularity: Int[np.ndarray, " N"]) -> Float[Tensor, " N"]:
    """Small, positive, and different for every item: more for the popular, then for the earlier row."""
    order = np.argsort(-np.asarray(popularity), kind="stable")
    bonus = np.empty(len(order))
    bonus[order] = _TIE_BREAK * np.arange(len(order), 0, -1) / len(order)
    return torch.from_numpy(bonus)


def _best(
    scores_PN: Float[Tensor, "P N"], codes_NL: Int[Tensor, "N L"], k: int, *, seen: Sequence[Context]
) -> Rollouts:
    """Return the k largest of positive scores, without what users of ``seen`` took; ``NO_ITEM`` where that is all."""
    if k > scores_PN.shape[1]:
        raise ConfigError(f"{k} candidates asked of {scores_PN.shape[1]} catalogue items; lower beams")
    shares_PN = scores_PN / scores_PN.sum(dim=1, keepdim=True)
    for p, context in enumerate(seen):
        shares_PN[p, context.seen.tolist()] = 0
    shares_PK, rows_PK = shares_PN.topk(k, dim=1)
    is_none_PK = shares_PK == 0
    return Rollouts(
        sids_PGL=codes_NL[rows_PK].masked_fill(is_none_PK[..., None], -1),
        rows_PG=rows_PK.masked_fill(is_none_PK, NO_ITEM),
        log_probs_PG=shares_PK.log().float(),
    )
