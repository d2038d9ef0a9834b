"""What events are worth: buckets of value for a token, and how concentrated value is (GR4AD, arXiv:2602.22732).

n values, one an item of a page     E edges     B = E + 2 buckets
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from genrec_rl import metrics
from genrec_rl.data.pages import PageTable
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.types import Action


@dataclass(frozen=True, slots=True)
class ValueBuckets:
    """Bucket 0 holds value 0 alone; the others divide log1p(value), an edge belonging to the bucket below it.

    ``edges`` ascend; ``means`` is the mean training value of each bucket, that of bucket 0 being 0.

    Raises:
        DataError: when the two do not fit together.
    """

    edges: tuple[float, ...]
    means: tuple[float, ...]

    def __post_init__(self) -> None:
        steps = np.diff(np.array([0.0, *self.edges]))
        if len(self.means) != len(self.edges) + 2 or not (steps > 0).all() or not np.isfinite(self.means).all():
            raise DataError(
                f"value buckets: {len(self.edges)} edges that ascend from above 0 need {len(self.edges) + 2} finite "
                f"means, found {len(self.means)}; train the policy again"
            )

    def __len__(self) -> int:
        return len(self.means)

    def of(self, values: Float[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Return each value's bucket: 0 for 0, else 1 + the number of edges below log1p(value)."""
        return np.where(values > 0, 1 + np.searchsorted(self.edges, np.log1p(values)), 0)


def fit_buckets(values: Float[np.ndarray, " n"], *, n_buckets: int) -> ValueBuckets:
    """Divide the values above 0 into ``n_buckets`` of equal frequency, as nearly as their ties allow.

    The k-th edge is the distinct value up to which nearest to k / n_buckets of them lie. Equal values share a bucket
    and no bucket is empty, so fewer come out where there are fewer distinct values.

    Args:
        values: of training data alone.
        n_buckets: of values above 0; the zero bucket comes on top.

    Raises:
        ConfigError: for less than 1 bucket.
        DataError: when no value is above 0.
    """
    if n_buckets < 1:
        raise ConfigError(f"n_value_buckets {n_buckets} must be at least 1, or 0 for no value token")
    worth = values[values > 0]
    if not len(worth):
        raise DataError("no clicked or ordered item of a training page has a value above 0; set n_value_buckets: 0")
    distinct, counts = np.unique(np.log1p(worth), return_counts=True)
    upto = np.cumsum(counts)[:-1]
    edges = distinct[:0]
    if len(upto):
        wanted = len(worth) * np.arange(1, n_buckets) / n_buckets
        above = np.searchsorted(upto, wanted).clip(max=len(upto) - 1)
        below = (above - 1).clip(min=0)
        edges = distinct[np.unique(np.where(wanted - upto[below] <= upto[above] - wanted, below, above))]
    place = np.searchsorted(edges, np.log1p(worth))
    means = np.bincount(place, weights=worth) / np.bincount(place)
    largest = np.zeros(len(means))
    np.maximum.at(largest, place, worth)
    means = np.minimum(means, largest)  # (a mean of equal values may be rounded up, over its edge)
    return ValueBuckets(tuple(edges.tolist()), (0.0, *means.tolist()))


@dataclass(frozen=True, slots=True)
class ValueFacts:
    """What a data set's values stand for, and how they lie over the catalogue's items on training pages.

    ``share_with_value`` is the share of clicked and ordered items that are worth more than 0; ``top_1_percent`` and
    ``top_10_percent`` are shares of the total value, held by so many items (rounded up).
    """

    meaning: str
    total: float
    share_with_value: float
    top_1_percent: float
    top_10_percent: float
    gini: float


def describe_values(
    pages: PageTable, train: Int[np.ndarray, " n"], *, n_items: int, meaning: str
) -> ValueFacts | None:
    """Sum up the values of clicked and ordered items of training pages; None where the whole log has none above 0.

    Raises:
        DataError: when only other events have a value.
    """
    if pages.values is None or not pages.values.any():
        return None
    taught = pages.values[is_training_positive(pages, train)]
    if not taught.any():
        raise DataError(
            "events: no clicked or ordered item of a training page has a value above 0; write values on clicks and "
            "orders, or leave the column out"
        )
    amounts_N = value_of_items(pages, train, n_items=n_items)
    return ValueFacts(
        meaning=meaning,
        total=round(float(taught.sum()), 4),
        share_with_value=round(float((taught > 0).mean()), 4),
        top_1_percent=round(metrics.top_share(amounts_N, share=0.01), 4),
        top_10_percent=round(metrics.top_share(amounts_N, share=0.1), 4),
        gini=round(metrics.gini_of(amounts_N), 4),
    )


def is_training_positive(pages: PageTable, train: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " N"]:
    """Return which page items were clicked or ordered on these pages."""
    in_train = np.zeros(len(pages), dtype=bool)
    in_train[train] = True
    return in_train[pages.item_pages] & (pages.actions >= Action.CLICK)


def value_of_items(pages: PageTable, train: Int[np.ndarray, " n"], *, n_items: int) -> Float[np.ndarray, " n_items"]:
    """Return the value that each catalogue row brought as a clicked or ordered item of these pages."""
    is_taught = is_training_positive(pages, train)
    values = np.zeros(len(pages.items)) if pages.values is None else pages.values
    return np.bincount(pages.items[is_taught], weights=values[is_taught], minlength=n_items)
