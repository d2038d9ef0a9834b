"""Pages to labelled candidates: what a pointwise reward model is trained and judged on.

Label 1: ordered or clicked. Label 0: shown and left (exposed), drawn from the catalogue, or proposed by a policy and
not taken. The drawn ones are needed although they were never shown: where a log has no exposures there are no other
negatives, and where it has them a model that saw nothing else extrapolates on the items a policy proposes. The
proposed ones are those items themselves.

    P   pages        G   candidates of the longest page (shorter ones are padded)        M   its positives
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from genrec_rl.errors import ConfigError
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import NO_ITEM, Action, Context, Example

_LEAST_MASS = 1e-6


class Kind(IntEnum):
    """Where a candidate comes from."""

    POSITIVE = 0
    EXPOSED = 1
    DRAWN = 2
    PROPOSED = 3


@dataclass(frozen=True, slots=True, eq=False)
class LabelledCandidates:
    """P pages of candidates with their origin, and which were ordered. Padding has row 0 and ``is_real_PG`` False."""

    contexts: Sequence[Context]
    rows_PG: Int[np.ndarray, "P G"]
    kinds_PG: Int8[np.ndarray, "P G"]
    is_real_PG: Bool[np.ndarray, "P G"]
    is_ordered_PG: Bool[np.ndarray, "P G"]

    @property
    def labels_PG(self) -> Float[np.ndarray, "P G"]:
        """1 where ordered or clicked, else 0."""
        return (self.kinds_PG == Kind.POSITIVE).astype(np.float32)

    def of_pages(self, places: Int[np.ndarray, " p"]) -> "LabelledCandidates":
        """Return some pages."""
        arrays = (self.rows_PG, self.kinds_PG, self.is_real_PG, self.is_ordered_PG)
        return LabelledCandidates([self.contexts[int(p)] for p in places], *(array[places] for array in arrays))


class NegativeSampler:
    """Draws catalogue rows: a share by popularity, the rest uniformly; never one that is positive in its page.

    Args:
        popularity: how often each row was ordered or clicked in training pages.
        popular_share: probability that a draw follows popularity.
    """

    def __init__(self, popularity: Int[np.ndarray, " n"], *, popular_share: float) -> None:
        if not 0 <= popular_share <= 1:
            raise ConfigError(f"popular_share {popular_share} is outside [0, 1]; .5 draws half by popularity")
        if popular_share and not popularity.sum():
            raise ConfigError(f"popular_share {popular_share} needs a popularity above 0; set it to 0")
        by_popularity = popularity / max(popularity.sum(), 1)
        probabilities = popular_share * by_popularity + (1 - popular_share) / len(popularity)
        self._cumulative = np.cumsum(probabilities / probabilities.sum())
        self._cumulative[-1] = 1.0

    def draw(
        self, positives: Sequence[Int[np.ndarray, " M"]], n_per_page: int, *, rng: np.random.Generator
    ) -> Int[np.ndarray, "P n_per_page"]:
        """Draw rows for each page, with replacement.

        Raises:
            ConfigError: when a page's positives are the whole catalogue.
        """
        forbidden_PM = pad_rows(positives, fill=NO_ITEM)
        n_items = len(self._cumulative)
        if forbidden_PM.shape[1] >= n_items and any(len(set(page.tolist())) == n_items for page in positives):
            raise ConfigError(f"a page holds all {n_items} items as positives, so no negative can be drawn")
        rows_PG = np.searchsorted(self._cumulative, rng.random((len(positives), n_per_page)), side="right")
        mass = np.diff(self._cumulative, prepend=0.0)
        if any(1 - mass[np.unique(page)].sum() < _LEAST_MASS for page in positives):
            raise ConfigError(
                f"a page's positives hold all but {_LEAST_MASS} of the probability that negatives are drawn with; "
                "lower popular_share"
            )
        while (is_positive_PG := (rows_PG[..., None] == forbidden_PM[:, None]).any(axis=-1)).any():
            redrawn = rng.random(int(is_positive_PG.sum()))
            rows_PG[is_positive_PG] = np.searchsorted(self._cumulative, redrawn, side="right")
        return rows_PG


def label_candidates(
    examples: Sequence[Example],
    *,
    sampler: NegativeSampler,
    rng: np.random.Generator,
    negatives_per_positive: int,
    with_exposed: bool = True,
) -> LabelledCandidates:
    """Collect each page's positives, its exposed items, and ``negatives_per_positive`` drawn items per positive."""
    positives = [example.positives for example in examples]
    n_ordered = [int((example.actions == Action.ORDER).sum()) for example in examples]
    n_drawn = [negatives_per_positive * len(page) for page in positives]
    drawn_PG = sampler.draw(positives, max(n_drawn, default=0), rng=rng)
    rows, kinds = [], []
    for example, page, drawn, n in zip(examples, positives, drawn_PG, n_drawn, strict=True):
        exposed = example.items[example.actions == Action.EXPOSE] if with_exposed else page[:0]
        rows.append(np.concatenate([page, exposed, drawn[:n]]))
        sizes = {Kind.POSITIVE: len(page), Kind.EXPOSED: len(exposed), Kind.DRAWN: n}
        kinds.append(np.repeat(np.array([*sizes], dtype=np.int8), [*sizes.values()]))
    is_real_PG = pad_rows([np.ones(len(row), dtype=bool) for row in rows], fill=False)
    return LabelledCandidates(
        [example.context for example in examples],
        pad_rows(rows, fill=0),
        pad_rows(kinds, fill=Kind.DRAWN),
        is_real_PG,
        pad_rows([np.arange(len(row)) < n for row, n in zip(rows, n_ordered, strict=True)], fill=False),
    )


def label_proposals(
    examples: Sequence[Example], rows_PG: Int[np.ndarray, "P G"], *, catalog: Catalog
) -> LabelledCandidates:
    """Label what a policy proposed for each page; invalid SIDs (``NO_ITEM``) are padding.

    A positive counts as proposed if its SID was, whichever of its items the catalogue resolves that to.

    A positive that the policy did not propose is not added: then "does not look like a proposal" would be evidence
    of a positive.
    """
    is_real_PG = rows_PG != NO_ITEM
    meant = catalog.rows_of(catalog.codes)
    is_positive_PG, is_ordered_PG = np.zeros((2, *rows_PG.shape), dtype=bool)
    for p, (rows, example) in enumerate(zip(rows_PG, examples, strict=True)):
        is_positive_PG[p] = np.isin(rows, meant[example.positives])
        is_ordered_PG[p] = np.isin(rows, meant[example.items[example.actions == Action.ORDER]])
    kinds_PG = np.where(is_positive_PG & is_real_PG, Kind.POSITIVE, Kind.PROPOSED).astype(np.int8)
    contexts = [example.context for example in examples]
    return LabelledCandidates(
        contexts, np.where(is_real_PG, rows_PG, 0), kinds_PG, is_real_PG, is_ordered_PG & is_real_PG
    )


def add_misses(
    labelled: LabelledCandidates, proposals: LabelledCandidates, *, per_page: int, rng: np.random.Generator
) -> LabelledCandidates:
    """Add to each page up to ``per_page`` of a policy's proposals that were not taken, drawn without repeats.

    Hits are left out: they stand among the page's positives already.
    """
    is_miss_PG = (proposals.kinds_PG == Kind.PROPOSED) & proposals.is_real_PG
    keys_PG = np.where(is_miss_PG, rng.random(is_miss_PG.shape), np.inf)
    chosen_PK = keys_PG.argsort(axis=1)[:, :per_page]
    is_real_PK = np.take_along_axis(is_miss_PG, chosen_PK, axis=1)
    return LabelledCandidates(
        labelled.contexts,
        np.concatenate([labelled.rows_PG, np.take_along_axis(proposals.rows_PG, chosen_PK, axis=1)], axis=1),
        np.concatenate([labelled.kinds_PG, np.full_like(chosen_PK, Kind.PROPOSED, dtype=np.int8)], axis=1),
        np.concatenate([labelled.is_real_PG, is_real_PK], axis=1),
        np.concatenate([labelled.is_ordered_PG, np.zeros_like(is_real_PK)], axis=1),
    )


def pad_rows(rows: Sequence[np.ndarray], *, fill: int | bool) -> np.ndarray:
    """Stack arrays of different lengths, the shorter ones filled up at their end."""
    width = max((len(row) for row in rows), default=0)
    dtype = rows[0].dtype if len(rows) else np.int64
    padded = np.full((len(rows), width), fill, dtype=dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
