"""What to do with items that share a semantic id: move them, keep them together, or append a code.

Axes: n items, t items placed earlier, k items that lost their leaf, L levels, D dimensions, K codes of a level.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from genrec_rl.errors import ConfigError

DISTANCES_AT_ONCE = 1 << 24
"""Distances held while items are moved (64 MiB)."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """Items as residual k-means left them.

    ``residuals`` is what remains of the vectors before the last level, whose codebook is ``last_book``.
    ``taken`` holds the codes of items that came earlier and stay where they are; its rows may be longer than L.
    """

    codes: Int32[np.ndarray, "n L"]
    codebook_sizes: tuple[int, ...]
    residuals: Float32[np.ndarray, "n D"]
    last_book: Float32[np.ndarray, "K D"]
    popularity: Int64[np.ndarray, " n"]
    taken: Int32[np.ndarray, "t M"]


Policy = Callable[[Quantised], Int32[np.ndarray, "n M"]]


def keep_buckets(items: Quantised) -> Int32[np.ndarray, "n L"]:
    """Leave items that share a SID together; the catalogue resolves it to the most popular of them."""
    return items.codes


def append_code(items: Quantised) -> Int32[np.ndarray, "n L+1"]:
    """Append a code that numbers the items of a SID, the most popular first (TIGER's fourth token)."""
    sizes = items.codebook_sizes
    keys = pack(items.codes, sizes)
    order = np.lexsort((-items.popularity, keys))
    numbers = np.empty(len(keys), np.int64)
    numbers[order] = rank_in_runs(keys[order])
    earlier = np.sort(pack(items.taken[:, : len(sizes)], sizes))
    numbers += np.searchsorted(earlier, keys, "right") - np.searchsorted(earlier, keys, "left")
    return np.column_stack([items.codes, numbers]).astype(np.int32)


def reassign(items: Quantised) -> Int32[np.ndarray, "n L"]:
    """Keep the nearest item on each leaf and move the others to their nearest free leaf of the same prefix.

    Only last-level codes change. SIDs become unique wherever a prefix holds at most K items; the surplus
    items of a fuller prefix stay on the code that residual k-means gave them. Ties go to the lower row.
    """
    codes = items.codes.copy()
    keys = pack(codes, items.codebook_sizes)
    own_distance = np.square(items.residuals - items.last_book[codes[:, -1]]).sum(axis=1)
    occupied = np.unique(pack(items.taken, items.codebook_sizes))
    is_settled = wins_leaf(keys, own_distance) & ~np.isin(keys, occupied)
    occupied = np.union1d(occupied, keys[is_settled])
    losers = np.flatnonzero(~is_settled)
    for chunk in _whole_prefixes(losers, keys // len(items.last_book), DISTANCES_AT_ONCE // len(items.last_book)):
        codes[chunk, -1] = _nearest_free(keys[chunk], items.residuals[chunk], items.last_book, occupied)
    return codes


def _nearest_free(
    keys: Int64[np.ndarray, " k"],
    residuals: Float32[np.ndarray, "k D"],
    book: Float32[np.ndarray, "K D"],
    occupied: Int64[np.ndarray, " o"],
) -> Int64[np.ndarray, " k"]:
    """Return a last-level code for each item, in rounds: all propose, the nearest proposer takes the leaf."""
    size = len(book)
    codes = keys % size
    prefixes, prefix_of = np.unique(keys // size, return_inverse=True)
    is_free = np.ones((len(prefixes), size), bool)
    held = occupied[np.isin(occupied // size, prefixes)]
    is_free[np.searchsorted(prefixes, held // size), held % size] = False
    distances = np.square(residuals).sum(axis=1, keepdims=True) - 2 * residuals @ book.T + np.square(book).sum(axis=1)
    pending = np.arange(len(keys))
    while len(pending := pending[is_free[prefix_of[pending]].any(axis=1)]):
        offers = np.where(is_free[prefix_of[pending]], distances[pending], np.inf)
        choice = offers.argmin(axis=1)
        is_winner = wins_leaf(prefix_of[pending] * size + choice, offers[np.arange(len(pending)), choice])
        winners, won = pending[is_winner], choice[is_winner]
        codes[winners] = won
        is_free[prefix_of[winners], won] = False
        pending = pending[~is_winner]
    return codes


def _whole_prefixes(
    rows: Int64[np.ndarray, " k"], prefixes: Int64[np.ndarray, " n"], limit: int
) -> Iterator[Int64[np.ndarray, " c"]]:
    """Cut rows into chunks of about ``limit`` that never split a prefix."""
    rows = rows[np.argsort(prefixes[rows], kind="stable")]
    starts = np.flatnonzero(is_run_start(prefixes[rows]))
    while len(rows):
        later = starts[starts >= limit]
        cut = int(later[0]) if len(later) else len(rows)
        yield rows[:cut]
        rows, starts = rows[cut:], starts[starts >= cut] - cut


def check_packable(sizes: Sequence[int]) -> None:
    """Refuse codebooks whose SIDs ``pack`` cannot number.

    Raises:
        ConfigError: for 2^63 SIDs or more.
    """
    if prod(sizes) >= 1 << 63:
        raise ConfigError(f"codebooks {tuple(sizes)} have 2^63 SIDs or more; use smaller ones")


def pack(codes: Int[np.ndarray, "n L"], sizes: Sequence[int]) -> Int64[np.ndarray, " n"]:
    """Turn each row of codes into one integer that sorts as the rows do (mixed radix)."""
    keys = np.zeros(len(codes), np.int64)
    for level, size in enumerate(sizes):
        keys = keys * size + codes[:, level]
    return keys


def wins_leaf(leaves: Int64[np.ndarray, " n"], distances: Float32[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether each item is the nearest (of equals, the first) among those that ask for its leaf."""
    order = np.lexsort((distances, leaves))
    is_winner = np.empty(len(leaves), bool)
    is_winner[order] = is_run_start(leaves[order])
    return is_winner


def is_run_start(ordered: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether each value differs from the one before it."""
    return np.concatenate([np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]])


def rank_in_runs(ordered: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number the members of each run of equal values from 0."""
    is_start = is_run_start(ordered)
    return np.arange(len(ordered)) - np.flatnonzero(is_start)[np.cumsum(is_start) - 1]


POLICIES: dict[str, Policy] = {"reassign": reassign, "bucket": keep_buckets, "extra_code": append_code}
