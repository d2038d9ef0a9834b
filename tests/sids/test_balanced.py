import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from genrec_rl.errors import ConfigError
from genrec_rl.sids import balanced, rq_kmeans

LINE = np.array([[0.0], [0.1], [0.2], [0.9]], np.float32)
TWO = np.array([[0.0], [1.0]], np.float32)


def crowd(n=200, seed=0) -> np.ndarray:
    """Nine in ten points in one place."""
    random = np.random.default_rng(seed)
    points = random.normal(size=(n, 4)).astype(np.float32) * 0.1
    points[: n // 10] += 0.3 * random.normal(size=(n // 10, 4)).astype(np.float32)
    return points


def test_price_sends_away_the_point_with_the_nearest_way_out():
    # distances 0/1, .01/.81, .04/.64, .81/.01: ways out of code 0 are 1, .8, .6; one must go, price (.6 + .8) / 2
    codes, prices = balanced.auction(LINE, TWO, capacity=2)
    assert codes.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(prices, [0.7, 0], atol=1e-6)


def test_without_a_surplus_all_codes_are_free():
    codes, prices = balanced.auction(LINE, TWO, capacity=3)
    assert codes.tolist() == [0, 0, 0, 1]
    assert prices.tolist() == [0, 0]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), capacity=st.integers(3, 5))
def test_auction_is_the_cheapest_assignment_within_the_capacities(seed, capacity):
    random = np.random.default_rng(seed)
    points, book = random.normal(size=(12, 2)).astype(np.float32), random.normal(size=(4, 2)).astype(np.float32)
    codes, _ = balanced.auction(points, book, capacity=capacity)
    costs = np.square(points[:, None] - book[None]).sum(-1)
    rows, seats = linear_sum_assignment(np.repeat(costs, capacity, axis=1))
    assert np.bincount(codes, minlength=4).max() <= capacity
    assert costs[np.arange(12), codes].sum() == pytest.approx(costs[rows, seats // capacity].sum(), rel=1e-4)


def test_few_candidates_are_searched_again_and_give_the_same_prices(monkeypatch):
    random = np.random.default_rng(0)
    points, book = (random.normal(size=(n, 2)).astype(np.float32) for n in (64, 8))
    codes, of_all = balanced.auction(points, book, capacity=9)
    monkeypatch.setattr(balanced, "CANDIDATES", 3)
    again, of_few = balanced.auction(points, book, capacity=9)
    np.testing.assert_allclose(of_few, of_all, atol=0.05)
    assert max(np.bincount(codes).max(), np.bincount(again).max()) <= 9


def test_codes_of_a_crowd_are_spread_and_stay_so_when_vectors_are_encoded_again():
    points = crowd()
    books, prices = balanced.fit(points, codebook_sizes=(8, 4), seed=0, slack=1.2)
    counts = np.bincount(rq_kmeans.encode(points, books, prices)[:, 0], minlength=8)
    plain = np.bincount(rq_kmeans.encode(points, rq_kmeans.fit(points, codebook_sizes=(8,), seed=0))[:, 0])
    assert counts.max() <= 31  # 1.2 x 200 / 8 = 30
    assert plain.max() > 36


def test_equal_vectors_count_once_and_keep_one_code():
    points = np.concatenate([crowd(40), np.repeat(crowd(40)[:1], 100, axis=0) + np.float32(1e-7)])
    assert len(balanced.distinct(points)) == 40
    books, prices = balanced.fit(points, codebook_sizes=(4, 4), seed=0)
    codes = rq_kmeans.encode(points, books, prices)
    assert (codes[40:] == codes[0]).all()


def test_distinct_keeps_the_first_of_each_in_order_and_knows_no_negative_zero():
    rows = np.array([[1, 0], [0, 0], [1, 0.000001], [0, -0.000001]], np.float32)
    assert balanced.distinct(rows).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("slack", [0.9, float("nan")])
def test_too_little_room_is_refused(slack):
    with pytest.raises(ConfigError, match="balance_slack is"):
        balanced.fit(crowd(), codebook_sizes=(4,), seed=0, slack=slack)


def test_more_codes_than_distinct_vectors_are_refused():
    with pytest.raises(ConfigError, match=r"codebook_sizes\[0\] is 4, outside 1 to 1"):
        balanced.fit(np.ones((9, 2), np.float32), codebook_sizes=(4,), seed=0)


def test_equal_seeds_give_equal_codebooks():
    one, other = (balanced.fit(crowd(), codebook_sizes=(4, 4), seed=3) for _ in range(2))
    assert all((a == b).all() for part in (0, 1) for a, b in zip(one[part], other[part], strict=True))
