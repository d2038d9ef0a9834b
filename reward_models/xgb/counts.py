"""What training pages say of items and of transitions, as sorted arrays that answer many questions at once.

A transition of the page that is asked about, or of a later one of the same user, must not stand in its features: the
reward would be what it is meant to predict. So every user's own transitions are kept with their times, and those not
before a request are taken off again. Other users' pages count whenever they were.

    N   catalogue items        P   requests        K   questions
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float32, Int, Int64

from genrec_rl.data.pages import DAY
from genrec_rl.data.transitions import list_transitions
from genrec_rl.errors import DataError
from genrec_rl.types import Context, Example

_TIMES = 1 << 33
"""Seconds UTC below this bound, the year 2242, fit beside an item's row in one integer."""

N_LAST = 5
"""Steps that a transition may lie apart: newest history items that count."""
DECAY = 0.5
"""Weight of each step after the first."""


@dataclass(frozen=True, slots=True, eq=False)
class LogCounts:
    """Transitions and times of positives in training pages.

    ``pair_keys`` holds before * N + after for each pair of items that followed each other, sorted, and
    ``pair_counts`` decay^(steps - 1) summed over its occurrences. The ``own`` columns are these occurrences one by
    one, by user (``user_key``) and time. ``taken_keys`` holds row * 2^33 + time for each positive, ``shown_keys``
    for each item of a page, both sorted.
    """

    n_items: int
    pair_keys: Int64[np.ndarray, " pairs"]
    pair_counts: Float32[np.ndarray, " pairs"]
    own_users: Int64[np.ndarray, " own"]
    own_times: Int64[np.ndarray, " own"]
    own_pairs: Int64[np.ndarray, " own"]
    own_counts: Float32[np.ndarray, " own"]
    taken_keys: Int64[np.ndarray, " taken"]
    shown_keys: Int64[np.ndarray, " shown"]

    @classmethod
    def fit(cls, pages: Sequence[Example], *, n_items: int, n_last: int = N_LAST, decay: float = DECAY) -> Self:
        """Count what followed what within ``n_last`` steps, and when each item was taken.

        Args:
            pages: training pages. A page's positives follow each other, in target order, and its history.
            n_items: N.
            n_last: steps that a pair may lie apart.
            decay: weight of each step after the first.

        Raises:
            DataError: for a time outside what the keys can hold.
        """
        times, users = np.zeros((2, len(pages)), np.int64)
        taken, shown = ([np.zeros(0, np.int64)] for _ in range(2))
        for place, page in enumerate(pages):
            time = page.context.time
            if not 0 <= time < _TIMES:
                raise DataError(f"time {time} is outside 0 to 2^33 seconds UTC; times must be seconds")
            times[place], users[place] = time, user_key(page.context.user_id)
            taken.append(page.positives.astype(np.int64) * _TIMES + time)
            shown.append(page.items.astype(np.int64) * _TIMES + time)
        found = list_transitions(pages, n_last=n_last, decay=decay)
        own_users, own_times, own_counts = users[found.pages], times[found.pages], found.weights
        own_pairs = found.before * n_items + found.after
        order = np.lexsort((own_times, own_users))
        pair_keys, pair_of = np.unique(own_pairs, return_inverse=True)
        counts = np.bincount(pair_of, weights=own_counts, minlength=len(pair_keys))
        return cls(
            n_items,
            pair_keys,
            counts.astype(np.float32),
            own_users[order],
            own_times[order],
            own_pairs[order],
            own_counts[order].astype(np.float32),
            np.sort(np.concatenate(taken)),
            np.sort(np.concatenate(shown)),
        )

    def transitions(
        self,
        contexts: Sequence[Context],
        before_PK: Int[np.ndarray, "*asked"],
        after_PK: Int[np.ndarray, "*asked"],
    ) -> Float32[np.ndarray, "*asked"]:
        """Return the count of each pair without the user's own from the request's time on; 0 of one that never was.

        ``before_PK`` and ``after_PK`` are broadcast against each other; their first axis is the contexts', or 1.
        """
        keys_PK = before_PK.astype(np.int64) * self.n_items + after_PK
        counts_PK = _look_up(self.pair_keys, self.pair_counts, keys_PK)
        later_keys, later_counts = self._own_later(contexts)
        if not len(later_keys):
            return counts_PK
        requests_P = np.arange(len(contexts)).reshape(-1, *[1] * (keys_PK.ndim - 1))
        own_PK = _look_up(later_keys, later_counts, requests_P * self.n_items**2 + keys_PK)
        return (counts_PK - own_PK).clip(min=0)

    def _own_later(
        self, contexts: Sequence[Context]
    ) -> tuple[Int64[np.ndarray, " own"], Float32[np.ndarray, " own"]]:
        """Return request * N^2 + pair, sorted, and counts, of each user's own pairs not before the request."""
        keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for request, context in enumerate(contexts):
            user = user_key(context.user_id)
            start, end = np.searchsorted(self.own_users, [user, user + 1])
            start += np.searchsorted(self.own_times[start:end], context.time)
            keys.append(request * self.n_items**2 + self.own_pairs[start:end])
            counts.append(self.own_counts[start:end])
        distinct, pair_of = np.unique(np.concatenate(keys), return_inverse=True)
        summed = np.bincount(pair_of, weights=np.concatenate(counts), minlength=len(distinct))
        return distinct, summed.astype(np.float32)

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


def user_key(user_id: str) -> int:
    """Return a stable number of 62 bits for a user id: two of ten million users share one in 1 of 90,000 logs."""
    return int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8).digest()) >> 2


def _look_up(
    keys: Int64[np.ndarray, " n"], values: Float32[np.ndarray, " n"], asked: Int64[np.ndarray, "*asked"]
) -> Float32[np.ndarray, "*asked"]:
    """Return the value of each key asked for, 0 of one that is not among the sorted keys."""
    if not len(keys):
        return np.zeros(asked.shape, np.float32)
    places = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
    return np.where(keys[places] == asked, values[places], np.float32(0))


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
