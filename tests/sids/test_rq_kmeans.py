import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids import rq_kmeans

FOUR_CORNERS = np.array([[9, 1], [9, -1], [-9, 1], [-9, -1]], np.float32)


def unit_vectors(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_two_levels_split_four_corners_left_right_then_up_down():
    centroids = rq_kmeans.fit(FOUR_CORNERS, codebook_sizes=(2, 2), seed=0)
    assert sorted(centroids[0].tolist()) == [[-9, 0], [9, 0]]
    assert sorted(centroids[1].tolist()) == [[0, -1], [0, 1]]


def test_decode_sums_the_centroids_of_a_prefix():
    centroids = [np.array([[1, 0], [0, 1]], np.float32), np.array([[0.5, 0], [0, 0.25]], np.float32)]
    codes = np.array([[0, 1], [1, 0]], np.int32)
    assert rq_kmeans.decode(codes, centroids).tolist() == [[1, 0.25], [0.5, 1]]
    assert rq_kmeans.decode(codes[:, :1], centroids).tolist() == [[1, 0], [0, 1]]
    assert rq_kmeans.decode(codes[:, :0], centroids).tolist() == [[0, 0], [0, 0]]


def test_decode_ignores_codes_beyond_the_last_codebook():
    centroids = [np.array([[1, 0], [0, 1]], np.float32)]
    assert rq_kmeans.decode(np.array([[1, 7]], np.int32), centroids).tolist() == [[0, 1]]


def test_encode_of_a_hand_worked_residual():
    centroids = [np.array([[1, 0], [0, 1]], np.float32), np.array([[0.2, 0], [0, 0.3]], np.float32)]
    vectors = np.array([[1.19, 0.0], [0.1, 1.25]], np.float32)
    assert rq_kmeans.encode(vectors, centroids).tolist() == [[0, 0], [1, 1]]


@settings(deadline=None, max_examples=30)
@given(
    points=arrays(np.float32, (7, 3), elements=st.floats(-2, 2, width=16)),
    book=arrays(np.float32, (4, 3), elements=st.floats(-2, 2, width=16)),
)
def test_nearest_code_is_as_near_as_brute_force(points, book):
    codes = rq_kmeans.nearest_codes(points, book)
    squared = np.square(points[:, None] - book[None]).sum(-1)
    np.testing.assert_allclose(squared[np.arange(7), codes], squared.min(1), atol=1e-5)


def test_encode_matches_brute_force_level_by_level():
    vectors = unit_vectors(200)
    centroids = rq_kmeans.fit(vectors, codebook_sizes=(8, 8, 8), seed=1)
    codes = rq_kmeans.encode(vectors, centroids)
    residuals = vectors.copy()
    for level, book in enumerate(centroids):
        squared = np.square(residuals[:, None] - book[None]).sum(-1)
        assert (codes[:, level] == squared.argmin(1)).all()
        residuals -= book[codes[:, level]]


def test_each_level_lowers_the_error():
    vectors = unit_vectors(300)
    centroids = rq_kmeans.fit(vectors, codebook_sizes=(16, 16, 16), seed=0)
    codes = rq_kmeans.encode(vectors, centroids)
    errors = [rq_kmeans.relative_error(vectors, rq_kmeans.decode(codes[:, :depth], centroids)) for depth in range(4)]
    assert errors[0] == pytest.approx(1.0)
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.5 * errors[1]


def test_relative_error_of_a_hand_worked_case():
    vectors = np.array([[3, 0], [0, 4]], np.float32)
    assert rq_kmeans.relative_error(vectors, np.array([[3, 1], [0, 2]], np.float32)) == pytest.approx(5 / 25)


def test_equal_seeds_give_equal_codebooks_and_others_differ():
    vectors = unit_vectors(100)
    first, again, other = (rq_kmeans.fit(vectors, codebook_sizes=(8, 8), seed=s) for s in (3, 3, 4))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()


def test_levels_may_shrink():
    centroids = rq_kmeans.fit(unit_vectors(64), codebook_sizes=(16, 8, 4), seed=0)
    assert [len(book) for book in centroids] == [16, 8, 4]


def test_empty_cluster_moves_to_the_worst_served_point():
    points = np.array([[0, 0], [1, 0], [5, 0]], np.float32)
    book = np.array([[0.5, 0], [100, 100]], np.float32)
    assert rq_kmeans.reseed_empty(points, book).tolist() == [[0.5, 0], [5, 0]]


def test_every_code_is_used_when_there_are_enough_distinct_points():
    centroids = rq_kmeans.fit(unit_vectors(40), codebook_sizes=(32,), seed=0)
    assert len(np.unique(rq_kmeans.encode(unit_vectors(40), centroids))) == 32


def test_fit_serves_rare_points_beside_a_crowd_of_equal_ones():
    rare = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    points = np.concatenate([np.zeros((200, 4), np.float32), rare])
    centroids = rq_kmeans.fit(points, codebook_sizes=(13,), seed=0)
    assert len(np.unique(rq_kmeans.encode(points, centroids))) == 13


def test_identical_vectors_leave_codes_unused_without_failing():
    centroids = rq_kmeans.fit(np.ones((9, 2), np.float32), codebook_sizes=(4, 4), seed=0)
    codes = rq_kmeans.encode(np.ones((9, 2), np.float32), centroids)
    assert len(np.unique(codes, axis=0)) == 1
    assert np.isfinite(centroids).all()


def test_progress_is_told_of_each_level():
    done = []
    rq_kmeans.fit(unit_vectors(20), codebook_sizes=(4, 4, 4), seed=0, on_level=done.append)
    assert done == [0, 1, 2]


@pytest.mark.parametrize(
    ("n_items", "size"), [(1, 1), (2, 2), (3, 2), (1682, 64), (12101, 256), (100_000, 512), (10**9, 8192)]
)
def test_default_codebook_size(n_items, size):
    assert rq_kmeans.default_codebook_sizes(n_items) == (size,) * 3


@given(st.integers(1, 2**25))
def test_default_codebooks_never_exceed_the_items_and_hold_two_prefixes_each(n_items):
    size = rq_kmeans.default_codebook_sizes(n_items)[0]
    assert size <= n_items
    assert n_items < 8 or size**2 >= 2 * n_items


def test_no_items_are_refused():
    with pytest.raises(DataError, match="0 items"):
        rq_kmeans.default_codebook_sizes(0)


def test_codebook_larger_than_the_catalogue_names_level_size_and_default():
    with pytest.raises(ConfigError, match=r"codebook_sizes\[1\] is 64, outside 1 to 10 .* default is \(8, 8, 8\)"):
        rq_kmeans.fit(unit_vectors(10), codebook_sizes=(4, 64), seed=0)


def test_nan_vector_names_its_row():
    vectors = unit_vectors(5)
    vectors[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3 is not finite"):
        rq_kmeans.fit(vectors, codebook_sizes=(2,), seed=0)


@pytest.mark.parametrize(
    ("n_items", "sizes"), [(1, (1, 1, 1)), (2, (2, 2, 2)), (12101, (1024, 256, 64)), (10**9, (32768, 8192, 2048))]
)
def test_multi_resolution_has_the_capacity_of_the_default(n_items, sizes):
    assert rq_kmeans.multi_resolution_sizes(n_items) == sizes


def test_a_price_makes_a_code_that_much_farther():
    points, book = np.array([[0.4], [0.6]], np.float32), np.array([[0.0], [1.0]], np.float32)
    assert rq_kmeans.nearest_codes(points, book).tolist() == [0, 1]
    assert rq_kmeans.nearest_codes(points, book, np.array([0.25, 0], np.float32)).tolist() == [1, 1]
    assert rq_kmeans.encode(points, [book], [np.array([0.15, 0], np.float32)]).tolist() == [[0], [1]]
