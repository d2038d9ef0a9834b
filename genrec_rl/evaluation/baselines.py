"""The honest bars: recommenders without a model, built from training pages, for the same table as the policies.

Both recommend catalogue items, so they never hallucinate, and both may recommend what the user has seen.

    P   requests        K   candidates        N   catalogue items        L   SID levels
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.evaluate import System
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Context, Example, Rollouts

POPULARITY, COOCCURRENCE = "popularity", "cooccurrence"
_TIE_BREAK = 1e-6


def baseline_systems(dataset: Dataset, catalog: Catalog) -> list[System]:
    """Return popularity and co-occurrence of the training pages, ready to stand beside policies."""

    def popularity() -> Popularity:
        return Popularity(dataset.popularity, codes=catalog.codes)

    def cooccurrence() -> Cooccurrence:
        return Cooccurrence.fit(dataset.examples("train"), dataset.popularity, codes=catalog.codes)

    return [System(POPULARITY, popularity, ("constrained",)), System(COOCCURRENCE, cooccurrence, ("constrained",))]


class Popularity:
    """The same list for everyone: items by their number of clicks and orders in the training pages."""

    def __init__(self, popularity: Int[np.ndarray, " N"], *, codes: Int[np.ndarray, "N L"]) -> None:
        self._scores_N = torch.from_numpy(np.asarray(popularity, dtype=np.float64)) + _tie_break(popularity)
        self._codes_NL = torch.from_numpy(np.asarray(codes, dtype=np.int64))

    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool = True) -> Rollouts:  # noqa: ARG002
        """Return the k most popular items for every context."""
        return _best(self._scores_N.expand(len(contexts), -1), self._codes_NL, k)


class Cooccurrence:
    """Items that followed the user's last items in the training pages of all users.

    A page adds decay^g to the pair (history item g steps back, item of the page) for its last ``n_last``
    history items; a user's candidates add these counts up with the same weights. Forward only: what came
    before an item says nothing here. Ties, and users without history, fall back on popularity.
    """

    def __init__(
        self,
        follows_NN: Float[Tensor, "N N"],
        popularity: Int[np.ndarray, " N"],
        *,
        codes: Int[np.ndarray, "N L"],
        n_last: int,
        decay: float,
    ) -> None:
        self._follows_NN = follows_NN
        self._tie_break_N = _tie_break(popularity)
        self._codes_NL = torch.from_numpy(np.asarray(codes, dtype=np.int64))
        self._n_last, self._decay = n_last, decay

    @classmethod
    def fit(
        cls,
        pages: Sequence[Example],
        popularity: Int[np.ndarray, " N"],
        *,
        codes: Int[np.ndarray, "N L"],
        n_last: int = 5,
        decay: float = 0.7,
    ) -> Self:
        """Count what followed what in training pages; 12,000 items and 80,000 pages take seconds."""
        before, after, weight = [], [], []
        for page in pages:
            last = _last_first(page.context, n_last)
            before.append(np.repeat(last, len(page.positives)))
            after.append(np.tile(page.positives, len(last)))
            weight.append(np.repeat(decay ** np.arange(len(last)), len(page.positives)))
        # item that followed first: candidates are scored by follows @ weights of the history
        pairs = torch.from_numpy(np.stack([np.concatenate(after), np.concatenate(before)]).astype(np.int64))
        counts = torch.from_numpy(np.concatenate(weight).astype(np.float64))
        size = (len(codes), len(codes))
        follows_NN = torch.sparse_coo_tensor(pairs, counts, size, check_invariants=True).coalesce()
        return cls(follows_NN, popularity, codes=codes, n_last=n_last, decay=decay)

    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool = True) -> Rollouts:  # noqa: ARG002
        """Return the k items that most often followed each context's last items."""
        weights_NP = torch.zeros(len(self._codes_NL), len(contexts), dtype=torch.float64)
        for p, context in enumerate(contexts):
            last = _last_first(context, self._n_last)
            steps = torch.arange(len(last), dtype=torch.float64)
            weights_NP[:, p].index_add_(0, torch.from_numpy(last), self._decay**steps)
        scores_PN = torch.sparse.mm(self._follows_NN, weights_NP).T + self._tie_break_N
        return _best(scores_PN, self._codes_NL, k)


def _last_first(context: Context, n_last: int) -> Int[np.ndarray, " n"]:
    return context.history[::-1][:n_last].astype(np.int64)


def _tie_break(popularity: Int[np.ndarray, " N"]) -> Float[Tensor, " N"]:
    """Small, positive, and different for every item: more for the popular, then for the earlier row."""
    order = np.argsort(-np.asarray(popularity), kind="stable")
    bonus = np.empty(len(order))
    bonus[order] = _TIE_BREAK * np.arange(len(order), 0, -1) / len(order)
    return torch.from_numpy(bonus)


def _best(scores_PN: Float[Tensor, "P N"], codes_NL: Int[Tensor, "N L"], k: int) -> Rollouts:
    if k > scores_PN.shape[1]:
        raise ConfigError(f"{k} candidates asked of {scores_PN.shape[1]} catalogue items; lower beams")
    scores_PK, rows_PK = scores_PN.topk(k, dim=1)
    shares_PK = scores_PK / scores_PN.sum(dim=1, keepdim=True)
    return Rollouts(sids_PGL=codes_NL[rows_PK], rows_PG=rows_PK, log_probs_PG=shares_PK.log().float())
