"""What training pages say of items and of transitions, as sorted arrays that answer many questions at once.

N   catalogue items        K   questions
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float32, Int, Int64

from genrec_rl.data.pages import DAY
from genrec_rl.errors import DataError
from genrec_rl.types import Example

_TIMES = 1 << 33
"""Seconds UTC below this bound, the year 2242, fit beside an item's row in one integer."""


@dataclass(frozen=True, slots=True, eq=False)
class LogCounts:
    """Transitions and times of positives in training pages.

    ``pair_keys`` holds before * N + after for each pair of items that followed each other, sorted, and
    ``pair_counts`` decay^(steps - 1) summed over its occurrences. ``taken_keys`` holds row * 2^33 + time for each
    positive, ``shown_keys`` for each item of a page, both sorted.
    """

    n_items: int
    pair_keys: Int64[np.ndarray, " pairs"]
    pair_counts: Float32[np.ndarray, " pairs"]
    taken_keys: Int64[np.ndarray, " taken"]
    shown_keys: Int64[np.ndarray, " shown"]

    @classmethod
    def fit(cls, pages: Sequence[Example], *, n_items: int, n_last: int = 5, decay: float = 0.5) -> Self:
        """Count what followed what within ``n_last`` steps, and when each item was taken.

        Args:
            pages: training pages. A page's positives follow each other, in target order, and its history.
            n_items: N.
            n_last: steps that a pair may lie apart.
            decay: weight of each step after the first.

        Raises:
            DataError: for a time outside what the keys can hold.
        """
        before, after, weights, taken, shown = [], [], [], [], []
        for page in pages:
            positives = page.positives.astype(np.int64)
            known = page.context.history[-n_last:]
            items = np.concatenate([known, positives])
            for step in range(1, min(n_last, len(items) - 1) + 1):
                first = max(len(known), step)
                before.append(items[first - step : len(items) - step])
                after.append(items[first:])
                weights.append(np.full(len(items) - first, decay ** (step - 1)))
            if not 0 <= page.context.time < _TIMES:
                raise DataError(f"time {page.context.time} is outside 0 to 2^33 seconds UTC; times must be seconds")
            taken.append(positives * _TIMES + page.context.time)
            shown.append(page.items.astype(np.int64) * _TIMES + page.context.time)
        empty = [np.zeros(0, np.int64)]
        keys = np.concatenate(before or empty) * n_items + np.concatenate(after or empty)
        pair_keys, pair_of = np.unique(keys, return_inverse=True)
        counts = np.bincount(pair_of, weights=np.concatenate(weights or [np.zeros(0)]), minlength=len(pair_keys))
        taken_keys, shown_keys = (np.sort(np.concatenate(keys or empty)) for keys in (taken, shown))
        return cls(n_items, pair_keys, counts.astype(np.float32), taken_keys, shown_keys)

    def transitions(self, before: Int[np.ndarray, " K"], after: Int[np.ndarray, " K"]) -> Float32[np.ndarray, " K"]:
        """Return the count of each pair, 0 of one that never was."""
        if not len(self.pair_keys):
            return np.zeros(np.broadcast_shapes(before.shape, after.shape), np.float32)
        keys = before.astype(np.int64) * self.n_items + after
        places = np.searchsorted(self.pair_keys, keys).clip(max=len(self.pair_keys) - 1)
        return np.where(self.pair_keys[places] == keys, self.pair_counts[places], np.float32(0))

    def taken_before(
        self, rows: Int[np.ndarray, " K"], times: Int[np.ndarray, " K"], *, days: int | None = None
    ) -> Int[np.ndarray, " K"]:
        """Count how often each item was taken strictly before a time, in the last ``days`` or ever."""
        return _count(self.taken_keys, rows, times, days=days)

    def shown_before(self, rows: Int[np.ndarray, " K"], times: Int[np.ndarray, " K"]) -> Int[np.ndarray, " K"]:
        """Count how often each item stood on a page, taken or not, strictly before a time."""
        return _count(self.shown_keys, rows, times, days=None)

    def days_since_taken(
        self, rows: Int[np.ndarray, " K"], times: Int[np.ndarray, " K"]
    ) -> Float32[np.ndarray, " K"]:
        """Return the days since each item was last taken strictly before a time; NaN where it never was."""
        keys = rows.astype(np.int64) * _TIMES
        places = np.searchsorted(self.taken_keys, keys + times)
        padded = np.concatenate([[-1], self.taken_keys])
        latest = padded[places]
        days = (keys + times - latest) / DAY
        return np.where(latest >= keys, days, np.nan).astype(np.float32)


def _count(
    keys: Int64[np.ndarray, " events"],
    rows: Int[np.ndarray, " K"],
    times: Int[np.ndarray, " K"],
    *,
    days: int | None,
) -> Int[np.ndarray, " K"]:
    """Count the events of each item strictly before a time, in the last ``days`` or ever."""
    since = np.zeros_like(times) if days is None else (times - days * DAY).clip(min=0)
    items = rows.astype(np.int64) * _TIMES
    return np.searchsorted(keys, items + times) - np.searchsorted(keys, items + since)
