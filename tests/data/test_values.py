import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genrec_rl.data.values import ValueBuckets, describe_values, fit_buckets, value_of_items
from genrec_rl.errors import ConfigError, DataError
from tests.sft.test_user_tree import TABLE, make_table, with_values


def counts(values: np.ndarray, n_buckets: int) -> list[int]:
    buckets = fit_buckets(values, n_buckets=n_buckets)
    return np.bincount(buckets.of(values), minlength=len(buckets)).tolist()


def test_zero_has_a_bucket_of_its_own():
    values = np.array([0.0, 0, 0, 1, 2, 3, 4])
    assert counts(values, 2) == [3, 2, 2]
    assert fit_buckets(values, n_buckets=2).means == (0.0, 1.5, 3.5)


def test_edges_are_of_log1p_and_belong_to_the_bucket_below():
    buckets = fit_buckets(np.array([1.0, 2, 3, 4]), n_buckets=2)
    assert buckets.edges == (np.log1p(2.0),)
    assert buckets.of(np.array([0, 1e-9, 2, 2.001, 1e9])).tolist() == [0, 1, 1, 2, 2]


def test_buckets_of_a_heavy_tail_are_equally_full():
    values = np.random.default_rng(0).lognormal(sigma=4.0, size=6400)
    assert values.max() > 1e3 * np.median(values)
    assert counts(values, 32) == [0, *[200] * 32]


@pytest.mark.parametrize("shares", [(3, 7), (7, 3), (1, 9)])
def test_equal_values_share_a_bucket_and_none_is_empty(shares):
    stars = np.repeat([4.0, 5.0], shares)
    assert counts(stars, 2) == [0, *shares]
    assert counts(stars, 32) == [0, *shares]


def test_one_distinct_value_is_one_bucket():
    assert fit_buckets(np.ones(5), n_buckets=8) == ValueBuckets((), (0.0, 1.0))


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=40).filter(any), st.integers(1, 12))
@example([1.0, 0.003, 0.003, 0.003], 2)
def test_means_lie_between_their_buckets_edges(values, n_buckets):
    found = fit_buckets(np.array(values), n_buckets=n_buckets)
    assert len(found) <= n_buckets + 1
    assert (found.of(np.array(found.means)) == np.arange(len(found))).all() or len(set(values)) > len(found)
    assert (np.diff(found.means) >= 0).all()


@pytest.mark.parametrize(("values", "n", "error"), [([0.0, 0.0], 2, DataError), ([1.0], 0, ConfigError)])
def test_buckets_of_nothing_are_refused(values, n, error):
    with pytest.raises(error, match="n_value_buckets"):
        fit_buckets(np.array(values), n_buckets=n)


@pytest.mark.parametrize(("edges", "means"), [((1.0,), (0.0, 1.0)), ((2.0, 1.0), (0, 1, 2, 3)), ((), (0, np.nan))])
def test_edges_and_means_must_fit(edges, means):
    with pytest.raises(DataError, match="value buckets"):
        ValueBuckets(edges, means)


def test_concentration_counts_positives_of_training_pages_alone():
    table = with_values(make_table([[[0, 0, 1], [2]], [[3]]]), [6.0, 0, 3, 100, 1])
    facts = describe_values(table, np.array([0, 2]), n_items=20, meaning="money")
    assert value_of_items(table, np.array([0, 2]), n_items=5).tolist() == [6, 3, 0, 1, 0]
    assert (facts.total, facts.share_with_value, facts.meaning) == (10.0, 0.75, "money")
    assert (facts.top_1_percent, facts.top_10_percent) == (0.6, 0.9)  # one and two of 20 items
    assert facts.gini == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("values", [None, np.zeros(10)])
def test_log_that_is_worth_nothing_has_no_facts(values):
    assert describe_values(with_values(TABLE, values), np.arange(6), n_items=12, meaning="") is None


def test_values_off_the_training_positives_are_refused():
    with pytest.raises(DataError, match="write values on clicks and orders"):
        describe_values(with_values(TABLE, np.eye(10)[9]), np.arange(5), n_items=12, meaning="")
