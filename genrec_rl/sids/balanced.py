"""Balanced residual k-means: no code of a level owns much more than its share (GR4AD, METHODS sections 1.1 and 5).

A code that is asked for by more points than its capacity raises its price until the surplus goes elsewhere:

    s_i = argmin_k ||R_i - c_k||^2 + p_k,      p_k >= 0, and p_k > 0 only where code k is full

This is the ascending auction for the capacitated assignment (Bertsekas and Castanon, 1989), with all full codes
raising at once; at its end no other assignment within the capacities is cheaper, but for the least step. Because a
code follows from vector and prices, items of equal content keep equal codes and a new item is coded as an old one
would be, which a capacity enforced item by item breaks. So the capacity counts distinct vectors: of items with equal
ones, one.

Cost: each of ``ITERATIONS`` rounds of Lloyd's algorithm is one faiss search for ``CANDIDATES`` codes, n K D, and an
auction of at most ``MAX_ROUNDS`` passes over n x CANDIDATES numbers; no n x K table is made.

Axes: n points, D dimensions, K codes of a level, m candidate codes of a point, h points in codes that are too full.
"""

from collections.abc import Sequence
from math import ceil

import faiss
import numpy as np
from jaxtyping import Float32, Float64, Int64

from genrec_rl.errors import ConfigError
from genrec_rl.sids.collisions import is_run_start, rank_in_runs
from genrec_rl.sids.rq_kmeans import check_sizes, check_vectors, fit_level, nearest_codes, priced

CANDIDATES = 64
"""Cheapest codes that a point looks at before all are searched again."""
ITERATIONS = 5
"""Rounds of balanced Lloyd after the unbalanced ones."""
MAX_ROUNDS = 300
LEAST_STEP = 1e-6
"""Of the mean distance to the nearest code: the least that a price rises by, where two points have equal ways out."""
SAME = 5
"""Decimals in which vectors of equal content agree; a projection's float noise stays below."""


def fit(
    vectors: Float32[np.ndarray, "n D"],
    *,
    codebook_sizes: Sequence[int],
    seed: int,
    niter: int = 25,
    slack: float = 1.1,
    max_points_per_centroid: int = 256,
) -> tuple[list[Float32[np.ndarray, "K D"]], list[Float32[np.ndarray, " K"]]]:
    """Fit codebooks as ``rq_kmeans.fit`` does, then balance each; also return the prices of each level's codes.

    Args:
        vectors: finite, one row an item.
        codebook_sizes: codes of each level.
        seed: of the k-means starts.
        niter: Lloyd iterations of each level before it is balanced.
        slack: a code's capacity over the mean number of distinct vectors a code; 1 is the even spread.
        max_points_per_centroid: as in ``rq_kmeans.fit``.

    Raises:
        ConfigError: for a slack below 1, or a codebook that is empty or larger than the number of distinct vectors.
        DataError: for vectors that are not a finite matrix.
    """
    if not slack >= 1:
        raise ConfigError(f"balance_slack is {slack}; below 1 the codes hold fewer vectors than there are")
    residuals = distinct(check_vectors(vectors))
    check_sizes(codebook_sizes, n_items=len(residuals), of="distinct vectors")
    centroids, prices = [], []
    for level, size in enumerate(codebook_sizes):
        book = fit_level(residuals, size, seed=seed + level, niter=niter, max_points=max_points_per_centroid)
        book, price = _balance(residuals, book, capacity=ceil(slack * len(residuals) / size))
        residuals -= book[nearest_codes(residuals, book, price)]
        centroids.append(book)
        prices.append(price)
    return centroids, prices


def distinct(vectors: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n D"]:
    """Return one of each set of rows that agree in ``SAME`` decimals, in the order of their first."""
    rounded = np.ascontiguousarray(np.round(vectors, SAME) + 0.0)  # -0.0 + 0.0 is 0.0
    rows = rounded.view(np.dtype((np.void, rounded.dtype.itemsize * rounded.shape[1]))).reshape(-1)
    return vectors[np.sort(np.unique(rows, return_index=True)[1])]


def _balance(
    points: Float32[np.ndarray, "n D"], book: Float32[np.ndarray, "K D"], *, capacity: int
) -> tuple[Float32[np.ndarray, "K D"], Float32[np.ndarray, " K"]]:
    """Move centroids to the means of what they own within the capacity, and return their last prices."""
    for _ in range(ITERATIONS):
        codes, _ = auction(points, book, capacity=capacity)
        counts = np.bincount(codes, minlength=len(book))
        sums = np.zeros(book.shape, np.float64)
        np.add.at(sums, codes, points)
        book = np.where(counts[:, None] > 0, sums / counts.clip(min=1)[:, None], book).astype(np.float32)
    return book, auction(points, book, capacity=capacity)[1]


def auction(
    points: Float32[np.ndarray, "n D"], book: Float32[np.ndarray, "K D"], *, capacity: int
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " K"]]:
    """Return each point's code, ``capacity`` points a code at most where rounds suffice, and the prices for it.

    Each round every code that is too full raises its price to where just its surplus, the points with the nearest
    way out, would leave. Prices of others rise too, so that no more than the surplus leaves: a code with a price
    stays full, which makes the end optimal, but for the least step. Points look at their ``CANDIDATES`` cheapest
    codes; since prices only rise, a code outside costs at least the last of them as it was found, and the codes are
    searched again where a point has no cheaper one left. Where ``MAX_ROUNDS`` do not suffice a code may keep more (a
    crowd's codes outbid each other in small steps before one of its points leaves for an outlier's code, far away);
    the report's perplexity shows it.
    """
    prices = np.zeros(len(book))
    costs, near, bounds = _candidates(points, book, prices)
    least_step = LEAST_STEP * costs[:, 0].mean()
    for _ in range(MAX_ROUNDS):
        offers = costs + prices[near]
        best = offers.argmin(axis=1)
        codes = near[np.arange(len(near)), best]
        too_full = np.bincount(codes, minlength=len(book)) > capacity
        if not too_full.any():
            break
        holders = np.flatnonzero(too_full[codes])
        held = offers[holders]
        cheapest = np.take_along_axis(held, best[holders, None], axis=1)[:, 0]
        np.put_along_axis(held, best[holders, None], np.inf, axis=1)
        ways_out = np.minimum(held.min(axis=1), bounds[holders]) - cheapest
        if (ways_out < 0).any():
            costs, near, bounds = _candidates(points, book, prices)
            continue
        _raise_prices(prices, codes[holders], ways_out, capacity=capacity, least=least_step)
    return codes, prices.astype(np.float32)


def _candidates(
    points: Float32[np.ndarray, "n D"], book: Float32[np.ndarray, "K D"], prices: Float64[np.ndarray, " K"]
) -> tuple[Float64[np.ndarray, "n m"], Int64[np.ndarray, "n m"], Float64[np.ndarray, " n"]]:
    """Return distance and index of each point's cheapest codes, and what any other code costs at least."""
    found, near = faiss.knn(*priced(points, book, prices), min(CANDIDATES, len(book)))
    bounds = found[:, -1].astype(np.float64) if near.shape[1] < len(book) else np.full(len(points), np.inf)
    return found - prices[near], near, bounds


def _raise_prices(
    prices: Float64[np.ndarray, " K"],
    codes: Int64[np.ndarray, " h"],
    ways_out: Float64[np.ndarray, " h"],
    *,
    capacity: int,
    least: float,
) -> None:
    """Raise each code's price, in place, to halfway between its last leaver's and its first stayer's way out."""
    order = np.lexsort((ways_out, codes))
    codes, ways_out = codes[order], ways_out[order]
    n_of_code = np.bincount(codes, minlength=len(prices))[codes]
    leaver = np.flatnonzero(rank_in_runs(codes) == n_of_code - capacity - 1)
    prices[codes[is_run_start(codes)]] += np.maximum((ways_out[leaver] + ways_out[leaver + 1]) / 2, least)
