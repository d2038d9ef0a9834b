"""Residual k-means: vectors to codes, one level after the other.

GenRec and OneRec (METHODS section 5): with R^1 the vectors, for every level l

    C^l = kmeans(R^l, K_l)      s_i^l = argmin_k ||R_i^l - c_k^l||      R_i^{l+1} = R_i^l - c_{s_i^l}^l

    Axes: n items, D dimensions, L levels, K codes of one level.
"""

from collections.abc import Callable, Sequence

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int32

from genrec_rl.errors import ConfigError, DataError

MAX_CODEBOOK_SIZE = 8192
MAX_RESEEDS = 10


def default_codebook_sizes(n_items: int, *, n_levels: int = 3) -> tuple[int, ...]:
    """Choose the same size K for every level: the smallest power of two with K^2 >= 2 n.

    Two levels then have two prefixes per item, so that even a crowded prefix holds far fewer items than the
    last codebook has codes. 1,682 items give 64, 12,101 give 256, 100,000 give 512; at most 8,192 (OneRec),
    and never more codes than items.
    """
    if n_items < 1:
        raise DataError("0 items: a codebook needs at least one; check items.parquet")
    wanted = int(np.ceil(np.sqrt(2 * n_items)))
    size = 1 << (wanted - 1).bit_length()
    largest = 1 << (n_items.bit_length() - 1)
    return (min(size, largest, MAX_CODEBOOK_SIZE),) * n_levels


def multi_resolution_sizes(n_items: int) -> tuple[int, ...]:
    """Choose 4K, K and K/4 with the default's K: GR4AD's 16384, 4096, 1024 in proportion, as many SIDs as K, K, K.

    1,682 items give 256, 64, 16 and 12,101 give 1024, 256, 64; never more codes than items, never fewer than two.
    """
    size = default_codebook_sizes(n_items)[0]
    largest = 1 << (n_items.bit_length() - 1)
    return min(4 * size, largest), size, max(size // 4, min(2, largest))


def fit(
    vectors: Float32[np.ndarray, "n D"],
    *,
    codebook_sizes: Sequence[int],
    seed: int,
    niter: int = 25,
    max_points_per_centroid: int = 256,
    on_level: Callable[[int], None] | None = None,
) -> list[Float32[np.ndarray, "K D"]]:
    """Fit one codebook per level on the residuals that the levels before leave.

    Args:
        vectors: finite, one row an item; unit norm is the caller's choice.
        codebook_sizes: codes of each level, from coarse to fine; they may shrink (GR4AD's multi-resolution).
        seed: of the k-means starts; equal seeds and thread counts give equal codebooks.
        niter: Lloyd iterations of each level.
        max_points_per_centroid: larger levels are fitted on a random sample of this many points per code.
        on_level: called with the index of each level that is done, for progress bars.

    Raises:
        ConfigError: for a codebook that is empty or larger than the number of items.
        DataError: for vectors that are not a finite matrix.
    """
    check_sizes(codebook_sizes, n_items=len(vectors))
    residuals = check_vectors(vectors).copy()
    centroids: list[Float32[np.ndarray, "K D"]] = []
    for level, size in enumerate(codebook_sizes):
        book = fit_level(residuals, size, seed=seed + level, niter=niter, max_points=max_points_per_centroid)
        residuals -= book[nearest_codes(residuals, book)]
        centroids.append(book)
        if on_level is not None:
            on_level(level)
    return centroids


def encode(
    vectors: Float32[np.ndarray, "n D"],
    centroids: Sequence[Float32[np.ndarray, "K D"]],
    prices: Sequence[Float32[np.ndarray, " K"]] = (),
) -> Int32[np.ndarray, "n L"]:
    """Give each vector, level by level, the code of the centroid nearest to its residual, its price added.

    ``prices`` are those of ``balanced.fit``; none means that all codes are free.
    """
    residuals = check_vectors(vectors).copy()
    codes = np.empty((len(residuals), len(centroids)), np.int32)
    for level, book in enumerate(centroids):
        codes[:, level] = nearest_codes(residuals, book, prices[level] if len(prices) else None)
        residuals -= book[codes[:, level]]
    return codes


def decode(
    codes: Int32[np.ndarray, "n l"], centroids: Sequence[Float32[np.ndarray, "K D"]]
) -> Float32[np.ndarray, "n D"]:
    """Sum the centroids of a prefix of ``l`` codes; codes beyond the last codebook carry no vector."""
    parts = [book[codes[:, level]] for level, book in enumerate(centroids[: codes.shape[1]])]
    if not parts:
        return np.zeros((len(codes), centroids[0].shape[1]), np.float32)
    return np.asarray(np.sum(parts, axis=0), np.float32)


def relative_error(vectors: Float32[np.ndarray, "n D"], decoded: Float32[np.ndarray, "n D"]) -> float:
    """Return sum ||x - decoded||^2 / sum ||x||^2: 0 is exact, 1 is as good as decoding everything to zero."""
    return float(np.square(vectors - decoded).sum() / np.square(vectors).sum())


def nearest_codes(
    points: Float32[np.ndarray, "n D"],
    book: Float32[np.ndarray, "K D"],
    prices: Float32[np.ndarray, " K"] | None = None,
) -> Int32[np.ndarray, " n"]:
    """Return the index k of the smallest ||x - c_k||^2 + price_k of each point x (exact search)."""
    return nearest(*(points, book) if prices is None else priced(points, book, prices))[1]


def priced(
    points: Float32[np.ndarray, "n D"], book: Float32[np.ndarray, "K D"], prices: Float[np.ndarray, " K"]
) -> tuple[Float32[np.ndarray, "n D+1"], Float32[np.ndarray, "K D+1"]]:
    """Make prices distances along one dimension more, in which all points are 0 and c_k is sqrt(price_k)."""
    heights = np.sqrt(prices, dtype=np.float32, casting="same_kind")
    return np.column_stack([points, np.zeros(len(points), np.float32)]), np.column_stack([book, heights])


def nearest(
    points: Float32[np.ndarray, "n D"], book: Float32[np.ndarray, "K D"]
) -> tuple[Float32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """Return squared distance and index of each point's nearest centroid."""
    distances, codes = faiss.knn(np.ascontiguousarray(points), np.ascontiguousarray(book), 1)
    return distances[:, 0], codes[:, 0].astype(np.int32)


def check_vectors(vectors: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n D"]:
    """Return the vectors as contiguous float32.

    Raises:
        DataError: naming the first row that holds NaN or infinity, or the shape where it is no matrix.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise DataError(f"item vectors have shape {vectors.shape}; expected (items, dimensions)")
    is_finite = np.isfinite(vectors).all(axis=1)
    if not is_finite.all():
        row = int(np.argmin(is_finite))
        raise DataError(f"item vector of row {row} is not finite; check the text or embedding of that item")
    return vectors


def check_sizes(codebook_sizes: Sequence[int], *, n_items: int, of: str = "items") -> None:
    """Refuse codebooks that cannot be fitted.

    Raises:
        ConfigError: for none, or one that is empty or larger than the number of items.
    """
    for level, size in enumerate(codebook_sizes):
        if not 1 <= size <= n_items:
            raise ConfigError(
                f"codebook_sizes[{level}] is {size}, outside 1 to {n_items} (the number of {of}); "
                f"for this catalogue the default is {default_codebook_sizes(n_items)}"
            )
    if not codebook_sizes:
        raise ConfigError("codebook_sizes is empty; give one size a level, such as 256 256 256")


def fit_level(
    points: Float32[np.ndarray, "n D"], size: int, *, seed: int, niter: int, max_points: int
) -> Float32[np.ndarray, "K D"]:
    """Fit one codebook; every code owns a point, where there are enough distinct ones."""
    kmeans = faiss.Kmeans(
        points.shape[1],
        size,
        niter=niter,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=max_points,
    )
    kmeans.train(points)
    return reseed_empty(points, np.asarray(kmeans.centroids, np.float32))


def reseed_empty(points: Float32[np.ndarray, "n D"], book: Float32[np.ndarray, "K D"]) -> Float32[np.ndarray, "K D"]:
    """Move each centroid that owns no point onto one of the worst served points, until none is empty.

    Where fewer distinct points than codes exist, the surplus codes stay unused; the report shows it.
    """
    book = book.copy()
    for _ in range(MAX_RESEEDS):
        distances, codes = nearest(points, book)
        empty = np.flatnonzero(np.bincount(codes, minlength=len(book)) == 0)
        worst = np.argsort(-distances, kind="stable")[: len(empty)]
        worst = worst[distances[worst] > np.finfo(np.float32).eps]
        worst = worst[np.unique(points[worst], axis=0, return_index=True)[1]] if len(worst) else worst
        if not len(worst):
            break
        book[empty[: len(worst)]] = points[worst]
    return book
