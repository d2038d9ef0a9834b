"""Metrics against hand-worked tables, torchmetrics, and the properties that hold for every list."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import retrieval

from genrec_rl import metrics
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.types import NO_ITEM, Action, Interval

N_ITEMS = 12


def pages(*lists):
    return [np.array(page) for page in lists]


def assert_close(one, two):
    np.testing.assert_allclose([one.low, one.mean, one.high], [two.low, two.mean, two.high], atol=1e-12)


def test_hit_rate_asks_for_any_positive_in_the_first_k():
    rows = np.array([[4, 7, 1], [4, 7, 1], [0, 2, 3]])
    positives = pages([7, 1], [9], [0])
    assert metrics.hit_rate(rows, positives, k=1).tolist() == [0, 0, 1]
    assert metrics.hit_rate(rows, positives, k=2).tolist() == [1, 0, 1]


def test_recall_is_the_share_of_positives_found():
    rows = np.array([[4, 7, 1], [5, 6, 8]])
    np.testing.assert_allclose(metrics.recall(rows, pages([7, 1, 2], [5]), k=3), [2 / 3, 1])


def test_ndcg_ideal_list_holds_at_most_k_positives():
    rows = np.array([[4, 7, 1]])
    found_at_2_and_3 = 1 / math.log2(3) + 1 / math.log2(4)
    assert metrics.ndcg(rows, pages([7, 1]), k=3)[0] == pytest.approx(found_at_2_and_3 / (1 + 1 / math.log2(3)))
    assert metrics.ndcg(np.array([[7, 1, 2]]), pages([7, 1, 2, 9]), k=2)[0] == pytest.approx(1)


def test_graded_ndcg_puts_orders_before_clicks():
    gains = [metrics.action_gains(np.array([Action.ORDER, Action.CLICK]))]
    assert gains[0].tolist() == [2, 1]
    click_first = metrics.ndcg(np.array([[1, 7]]), pages([7, 1]), k=2, gains=gains)[0]
    assert click_first == pytest.approx((1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3)))
    assert metrics.ndcg(np.array([[7, 1]]), pages([7, 1]), k=2, gains=gains)[0] == pytest.approx(1)


def test_exposure_has_no_gain():
    assert metrics.action_gains(np.array([Action.EXPOSE])).tolist() == [0]


def test_invalid_sid_keeps_its_rank():
    with_invalid = np.array([[NO_ITEM, 3, 5]])
    assert metrics.hit_rate(with_invalid, pages([3]), k=1)[0] == 0
    assert metrics.ndcg(with_invalid, pages([3]), k=3)[0] == pytest.approx(1 / math.log2(3))


def test_invalid_sid_never_hits_the_neighbour_request():
    # the key of row -1 of request 1 would be the last row of request 0
    assert metrics.hit_rate(np.array([[0], [NO_ITEM]]), pages([5], [1]), k=1).tolist() == [0, 0]
    assert metrics.hit_rate(np.array([[5], [NO_ITEM]]), pages([5], [1]), k=1).tolist() == [1, 0]


def test_repeated_item_counts_once_at_its_best_rank():
    rows = np.array([[3, 3, 3]])
    assert metrics.recall(rows, pages([3, 4]), k=3)[0] == 0.5
    assert metrics.ndcg(rows, pages([3, 4]), k=3)[0] == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_repeated_positive_counts_once_with_its_best_gain():
    rows, gains = np.array([[4, 3]]), [np.array([1.0, 2.0, 1.0])]
    assert metrics.recall(rows, pages([3, 3, 4]), k=1)[0] == 0.5
    expected = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert metrics.ndcg(rows, pages([3, 3, 4]), k=2, gains=gains)[0] == pytest.approx(expected)


def test_hallucination_rate_counts_each_invalid_rank():
    rows = np.array([[NO_ITEM, 3, NO_ITEM, 5], [1, 2, 3, 4]])
    assert metrics.hallucination_rate(rows, k=4).tolist() == [0.5, 0]
    assert metrics.hallucination_rate(rows, k=1).tolist() == [1, 0]


def test_seen_items_give_their_ranks_to_those_behind():
    rows = np.array([[1, 3, 2], [9, 8, 5]])
    assert metrics.without_seen(rows, pages([1], [8, 9])).tolist() == [[3, 2, NO_ITEM], [5, NO_ITEM, NO_ITEM]]


def test_seen_share_counts_ranks_given_to_the_history():
    rows = np.array([[3, 1, NO_ITEM, 5], [1, 2, 3, 4]])
    assert metrics.seen_share(rows, pages([1, 3, 9], []), k=4).tolist() == [0.5, 0]
    assert metrics.seen_share(rows, pages([1, 3, 9], [2]), k=1).tolist() == [1, 0]


def test_reward_at_k_takes_the_maximum_or_the_mean():
    rewards = np.array([[0.2, 0.0, 0.7]])
    assert metrics.reward_at_k(rewards, k=2)[0] == pytest.approx(0.2)
    assert metrics.reward_at_k(rewards, k=3)[0] == pytest.approx(0.7)
    assert metrics.reward_at_k(rewards, k=3, reduce="mean")[0] == pytest.approx(0.3)


def test_long_tail_starts_where_the_head_holds_its_share():
    popularity = np.array([50, 30, 15, 5])  # items 0 and 1 hold 80 %
    rows = np.array([[0, 1, 2, 3], [2, NO_ITEM, NO_ITEM, 3]])
    assert metrics.long_tail_share(rows, popularity, k=4).tolist() == [0.5, 0.5]
    assert metrics.long_tail_share(rows, popularity, k=2).tolist() == [0, 0.5]


def test_concentration_of_a_hand_made_set():
    rows = np.array([[0, 1], [0, 2], [0, NO_ITEM]])
    assert metrics.coverage(rows, k=2, n_items=4) == 0.75
    assert metrics.coverage(rows, k=1, n_items=4) == 0.25
    assert metrics.distinct_at_1(rows) == 1
    assert metrics.top_item_share(rows, k=2) == pytest.approx(3 / 5)
    # exposures 0 1 1 3: all |x - y| sum to 18, over 2 * 4^2 * mean 5/4
    assert metrics.gini(rows, k=2, n_items=4) == pytest.approx(0.45)


def test_gini_is_zero_when_exposure_is_equal():
    assert metrics.gini(np.array([[0, 1], [2, 3]]), k=2, n_items=4) == pytest.approx(0)


def test_concentration_without_any_valid_item_is_not_a_number():
    rows = np.full((2, 3), NO_ITEM)
    assert math.isnan(metrics.gini(rows, k=3, n_items=4))
    assert math.isnan(metrics.top_item_share(rows, k=3))
    assert metrics.distinct_at_1(rows) == 0
    assert metrics.coverage(rows, k=3, n_items=4) == 0


@pytest.mark.parametrize("k", [0, 4])
def test_k_outside_the_list_names_the_limit(k):
    with pytest.raises(ConfigError, match=rf"k={k} is outside 1\.\.3"):
        metrics.hit_rate(np.array([[1, 2, 3]]), pages([1]), k=k)


@pytest.mark.parametrize("metric", [metrics.recall, metrics.ndcg])
def test_page_without_positive_names_the_request(metric):
    with pytest.raises(DataError, match="request 1 has no positive"):
        metric(np.array([[1], [1]]), [np.array([1]), np.array([], dtype=int)], k=1)


def test_hit_rate_of_a_page_without_positive_is_zero():
    assert metrics.hit_rate(np.array([[1]]), [np.array([], dtype=int)], k=1).tolist() == [0]


def test_list_without_request_is_refused():
    with pytest.raises(DataError, match="2 lists for 1 requests"):
        metrics.hit_rate(np.array([[1], [1]]), pages([1]), k=1)


def test_positive_that_is_no_row_is_refused():
    with pytest.raises(DataError, match="rows of at least 0"):
        metrics.hit_rate(np.array([[1]]), pages([NO_ITEM]), k=1)


def test_interval_of_a_constant_is_a_point():
    assert metrics.user_bootstrap(np.full(5, 0.25), list("abcde"), n=50, seed=0) == Interval(0.25, 0.25, 0.25)


def test_bootstrap_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(size=2000)
    interval = metrics.user_bootstrap(values, np.arange(2000), n=2000, seed=1)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 / math.sqrt(2000), rel=0.1)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low < interval.mean < interval.high


def test_bootstrap_draws_whole_users():
    # two users: a draw is all of one (mean 0 or 1) or both (.5); requests drawn alone would be finer
    values, users = np.repeat([0.0, 1.0], 50), ["a"] * 50 + ["b"] * 50
    assert metrics.user_bootstrap(values, users, n=500, seed=0) == Interval(0.5, 0.0, 1.0)


def test_user_with_more_requests_weighs_more():
    interval = metrics.user_bootstrap(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"], n=10, seed=0)
    assert interval.mean == 0.75


def test_paired_interval_is_narrower_than_the_single_ones():
    rng = np.random.default_rng(0)
    b = rng.random(400)
    a = b + 0.01 + 0.001 * rng.random(400)
    difference = metrics.paired_bootstrap(a, b, np.arange(400), n=500, seed=0)
    assert 0.01 < difference.low < difference.mean < difference.high < 0.011


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(DataError, match="3 against 2 requests"):
        metrics.paired_bootstrap(np.zeros(3), np.zeros(2), list("abc"), seed=0)


def test_bootstrap_needs_one_user_a_value():
    with pytest.raises(DataError, match="3 values for 2 user ids"):
        metrics.user_bootstrap(np.zeros(3), list("ab"), seed=0)


def test_columns_share_their_draws():
    values = np.random.default_rng(0).random(50)
    both = metrics.bootstrap_columns({"x": values, "y": 2 * values}, np.arange(50), n=200, seed=3)
    assert both["y"].low == pytest.approx(2 * both["x"].low)
    assert_close(both["x"], metrics.user_bootstrap(values, np.arange(50), n=200, seed=3))


def test_chunked_draws_equal_one_chunk(monkeypatch):
    values = np.random.default_rng(0).random(30)
    whole = metrics.user_bootstrap(values, np.arange(30), n=100, seed=3)
    monkeypatch.setattr(metrics, "_CELLS_PER_CHUNK", 30 * 7)
    assert_close(metrics.user_bootstrap(values, np.arange(30), n=100, seed=3), whole)


rows_lists = st.lists(st.integers(NO_ITEM, N_ITEMS - 1), min_size=6, max_size=6)
positive_sets = st.sets(st.integers(0, N_ITEMS - 1), min_size=1, max_size=8).map(sorted)
requests = st.lists(st.tuples(rows_lists, positive_sets), min_size=1, max_size=5)


def unpack(drawn):
    return np.array([rows for rows, _ in drawn]), [np.array(page) for _, page in drawn]


@given(requests)
def test_hit_rate_and_recall_never_fall_with_k(drawn):
    rows, positives = unpack(drawn)
    for metric in (metrics.hit_rate, metrics.recall):
        curve = np.array([metric(rows, positives, k=k) for k in range(1, 7)])
        assert (np.diff(curve, axis=0) >= 0).all()


@given(st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=1, max_size=5))
def test_best_reward_never_falls_with_k(rewards):
    curve = np.array([metrics.reward_at_k(np.array(rewards), k=k) for k in range(1, 7)])
    assert (np.diff(curve, axis=0) >= 0).all()


@given(rows_lists, st.integers(0, N_ITEMS - 1))
def test_single_positive_bounds_of_ndcg(row, positive):
    rows, positives = np.array([row]), pages([positive])
    first, all_k = (metrics.hit_rate(rows, positives, k=k)[0] for k in (1, 6))
    value = metrics.ndcg(rows, positives, k=6)[0]
    later = all_k - first
    assert first + later / math.log2(7) - 1e-12 <= value <= first + later / math.log2(3) + 1e-12


@given(requests, st.integers(1, 6))
def test_repeating_an_item_later_never_helps(drawn, k):
    rows, positives = unpack(drawn)
    repeated = rows.copy()
    repeated[:, -1] = repeated[:, 0]
    for metric in (metrics.hit_rate, metrics.recall, metrics.ndcg):
        assert (metric(repeated, positives, k=k) <= metric(rows, positives, k=k) + 1e-12).all()


@given(requests, st.randoms(use_true_random=False))
def test_permuting_requests_permutes_metrics_and_keeps_intervals(drawn, random):
    rows, positives = unpack(drawn)
    order = list(range(len(rows)))
    random.shuffle(order)
    users = np.array([f"u{i % 3}" for i in range(len(rows))])
    value = metrics.ndcg(rows, positives, k=5)
    permuted = metrics.ndcg(rows[order], [positives[i] for i in order], k=5)
    np.testing.assert_allclose(permuted, value[order])
    one, two = (metrics.user_bootstrap(v, u, n=20, seed=0) for v, u in ((value, users), (permuted, users[order])))
    assert_close(one, two)


@settings(max_examples=50)
@given(requests, st.integers(1, 6))
def test_torchmetrics_agrees(drawn, k):
    rows, positives = unpack(drawn)
    rows = np.array([np.random.default_rng(i).permutation(N_ITEMS)[:6] for i in range(len(rows))])
    for row, page, hit, share, gain in zip(
        rows,
        positives,
        metrics.hit_rate(rows, positives, k=k),
        metrics.recall(rows, positives, k=k),
        metrics.ndcg(rows, positives, k=k),
        strict=True,
    ):
        preds = torch.zeros(N_ITEMS)
        preds[torch.from_numpy(row)] = torch.arange(6, 0, -1.0)
        target = torch.zeros(N_ITEMS, dtype=torch.bool)
        target[torch.from_numpy(page)] = True
        assert hit == retrieval.retrieval_hit_rate(preds, target, top_k=k)
        assert share == pytest.approx(float(retrieval.retrieval_recall(preds, target, top_k=k)))
        # the items never ranked are tied in torchmetrics, which k <= 6 leaves out of the numerator
        assert gain == pytest.approx(float(retrieval.retrieval_normalized_dcg(preds, target, top_k=k)), rel=1e-5)


@settings(max_examples=50)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=6, max_size=6).filter(any), st.integers(1, 6))
def test_torchmetrics_agrees_on_graded_relevance(gains, k):
    gain = np.array(gains)
    positives = np.flatnonzero(gain)
    ours = metrics.ndcg(np.arange(6)[None], [positives], k=k, gains=[gain[positives]])[0]
    preds = torch.arange(6, 0, -1.0)
    assert ours == pytest.approx(
        float(retrieval.retrieval_normalized_dcg(preds, torch.tensor(gains, dtype=torch.long), top_k=k)),
        rel=1e-5,
    )


def test_value_recall_is_the_share_of_the_pages_value_in_the_first_k():
    rows = np.array([[4, 7, 1], [4, 7, 1], [4, 4, 9]])
    positives, values = pages([7, 1, 2], [1], [4, 9]), pages([6.0, 0.0, 2.0], [5.0], [1.0, 3.0])
    np.testing.assert_allclose(metrics.value_recall(rows, positives, values, k=2), [0.75, 0, 0.25])
    np.testing.assert_allclose(metrics.value_recall(rows, positives, values, k=3), [0.75, 1, 1])


def test_value_recall_of_equal_values_is_recall():
    rows = np.array([[4, 7, NO_ITEM], [5, 6, 8]])
    positives = pages([7, 1, 2], [5, 8])
    expected = metrics.recall(rows, positives, k=2)
    values = [np.full(len(page), 3.5) for page in positives]
    np.testing.assert_allclose(metrics.value_recall(rows, positives, values, k=2), expected)


def test_value_recall_of_a_page_worth_nothing_is_undefined():
    found = metrics.value_recall(np.array([[4], [4]]), pages([4], [4]), pages([0.0], [2.0]), k=1)
    assert np.isnan(found).tolist() == [True, False]


def test_value_by_rank_counts_a_repeated_item_once():
    found = metrics.value_by_rank(np.array([[4, 4, 7]]), pages([4, 7]), pages([2.0, 0.0]), k=3)
    assert found.tolist() == [[2, 0, 0]]


def test_head_share_counts_ranks_of_the_items_with_the_largest_amounts():
    amounts = np.array([5.0, 1, 9, 0])
    rows = np.array([[2, 0, NO_ITEM], [3, 1, 2]])
    np.testing.assert_allclose(metrics.head_share(rows, amounts, k=3, share=0.25), [1 / 3, 1 / 3])
    np.testing.assert_allclose(metrics.head_share(rows, amounts, k=2, share=0.5), [1, 0])


def test_top_share_takes_at_least_one_item():
    assert metrics.top_share(np.array([1.0, 6, 3]), share=0.01) == 0.6
    assert metrics.top_share(np.array([1.0, 6, 3]), share=0.5) == 0.9
    assert math.isnan(metrics.top_share(np.zeros(3), share=0.1))


@pytest.mark.parametrize("share", [0, 1.5, float("nan")])
def test_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        metrics.top_share(np.ones(3), share=share)


def test_gini_of_amounts_is_0_when_equal_and_1_less_1_over_n_for_one_holder():
    assert metrics.gini_of(np.full(4, 2.5)) == pytest.approx(0)
    assert metrics.gini_of(np.array([0, 0, 0, 2.5])) == pytest.approx(0.75)


def test_undefined_requests_are_left_out_of_a_mean_and_its_interval():
    users = np.array(["a", "b", "c", "d", "e"])
    values = np.array([1.0, np.nan, 0.0, np.nan, 1.0])
    whole = np.arange(5.0)
    found = metrics.bootstrap_columns({"part": values, "whole": whole}, users, n=500, seed=0)
    assert found["part"].mean == pytest.approx(2 / 3)
    assert 0 <= found["part"].low < found["part"].high == 1
    assert found["whole"] == metrics.bootstrap_columns({"whole": whole}, users, n=500, seed=0)["whole"]


def test_column_that_is_nowhere_defined_has_no_mean():
    found = metrics.bootstrap_columns({"x": np.full(3, np.nan)}, ["a", "b", "c"], n=10, seed=0)["x"]
    assert math.isnan(found.mean)
    assert math.isnan(found.low)
