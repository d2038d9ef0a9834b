from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from genrec_rl.data.pages import DAY
from genrec_rl.sft.targets import training_requests
from genrec_rl.types import Context
from reward_models.xgb.counts import LogCounts
from reward_models.xgb.features import FEATURES, NO_CATEGORY, ItemTables, request_features
from tests.fixtures import CODES
from tests.reward_models.xgb.test_counts import page
from tests.sft.test_user_tree import make_table

ITEMS = ItemTables(CODES, np.eye(12, dtype=np.float32), np.where(np.arange(12) < 8, np.arange(12) % 2, NO_CATEGORY))
PAGES = [page([0, 4], [1], left=[5], time=2 * DAY), page([4], [1, 2], time=100 * DAY), page([], [1], time=300 * DAY)]


def context(history, *, time=101 * DAY, days=None) -> Context:
    n = len(history)
    times = np.array(days if days is not None else [90] * n, np.int64) * DAY
    return Context("u", time, np.array(history, np.int32), times, np.arange(n, dtype=np.int32))


def features(history, candidates, *, max_history=50, items=ITEMS, **asked) -> dict[str, list[float]]:
    counts = LogCounts.fit(PAGES, n_items=12)
    found = request_features(
        counts, items, [context(history, **asked)], np.array([candidates]), max_history=max_history
    )
    assert found.shape == (1, len(candidates), len(FEATURES))
    assert found.dtype == np.float32
    return {name: found[0, :, f].tolist() for f, name in enumerate(FEATURES)}


def test_popularity_is_that_of_the_time_of_the_request():
    found = features([], [1, 2, 3])
    assert found["log_popularity"] == pytest.approx(np.log([3, 2, 1]))  # the third page is later
    assert found["log_popularity_90_days"] == pytest.approx(np.log([2, 2, 1]))
    assert found["days_since_taken"] == pytest.approx([1, 1, np.nan], nan_ok=True)
    assert found["taken_share"] == pytest.approx([7 / 12, 6 / 11, 5 / 10])


def test_an_item_that_was_shown_and_left_has_a_small_share():
    assert features([], [5])["taken_share"] == pytest.approx([5 / 11])


def test_transitions_weigh_the_newest_item_most():
    # counted: 4-1 twice, 0-1 .5, 1-2 once, 4-2 .5
    found = features([0, 4], [1, 2])
    assert found["follows_last"] == [2, 0.5]
    assert found["follows"] == [2 + 0.5 * 0.5, 0.5]
    assert found["follows_share"] == pytest.approx([2.25 / 3, 0.5 / 2])
    assert features([1], [4, 0])["precedes"] == [2, 0.5]


def test_cosines_are_to_the_last_the_nearest_and_the_last_few():
    found = features([3, 7], [3, 7, 5])
    assert found["cosine_last"] == [0, 1, 0]
    assert found["cosine_max"] == [1, 1, 0]
    assert found["cosine_mean_last"] == [0.5, 0.5, 0]


def test_attributes_have_cosines_of_their_own_and_are_missing_without_any():
    assert np.isnan(features([3, 7], [3])["attributes_max"]).all()
    described = replace(ITEMS, attributes=np.repeat(np.eye(6, dtype=np.float32), 2, axis=0))
    found = features([3, 7], [2, 6, 0], items=described)  # items 2 and 3 are alike, 6 and 7 too
    assert found["attributes_last"] == [0, 1, 0]
    assert found["attributes_max"] == [1, 1, 0]
    assert found["attributes_mean_last"] == [0.5, 0.5, 0]


def test_prefixes_count_shares_and_steps_back():
    # codes: item 0 (0 0 0), 1 (0 0 1), 2 (0 1 0), 4 (1 0 0)
    found = features([1, 2, 4], [0])
    assert found["prefix_1_share"] == pytest.approx([2 / 3])
    assert found["prefix_1_steps"] == [1]
    assert found["prefix_2_share"] == pytest.approx([1 / 3])
    assert found["prefix_2_steps"] == [2]


def test_items_without_a_category_match_nothing():
    found = features([8, 2], [9, 4])
    assert found["category_share"] == [0, 0.5]
    assert found["category_steps"] == pytest.approx([np.nan, 0], nan_ok=True)


def test_seen_items_and_the_users_activity():
    found = features([3, 5, 3], [3, 4], days=[90, 101, 101])
    assert found["times_seen"] == [2, 0]
    assert found["seen_steps"] == pytest.approx([0, np.nan], nan_ok=True)
    assert found["history_length"] == [3, 3]
    assert found["days_since_last"] == [0, 0]
    assert found["items_today"] == [2, 2]


def test_new_user_misses_what_needs_a_history():
    found = features([], [1])
    missing = {name for name, (value,) in found.items() if np.isnan(value)}
    assert missing == {
        *("cosine_last", "cosine_max", "cosine_mean_last", "prefix_1_share", "prefix_1_steps", "prefix_2_share"),
        *("prefix_2_steps", "category_share", "category_steps", "seen_steps", "days_since_last"),
        *("attributes_last", "attributes_max", "attributes_mean_last"),
    }
    assert found["follows"] == [0]


def test_max_history_cuts_the_oldest():
    assert features([3, 5, 7], [3], max_history=2)["times_seen"] == [0]


def test_requests_of_different_lengths_do_not_mix():
    counts = LogCounts.fit(PAGES, n_items=12)
    contexts, rows_PG = [context([0, 4, 7]), context([]), context([3])], np.array([[1, 2], [1, 3], [3, 4]])
    together = request_features(counts, ITEMS, contexts, rows_PG, max_history=50)
    for p in range(3):
        alone = request_features(counts, ITEMS, contexts[p : p + 1], rows_PG[p : p + 1], max_history=50)
        np.testing.assert_array_equal(together[p], alone[0])


def test_a_longer_history_gives_what_its_newest_items_give():
    long, newest = ([3, 5, 7, 0, 4], [0, 4])
    days = [101] * 5
    cut, alone = features(long, [3, 1], max_history=2, days=days), features(newest, [3, 1], days=days[:2])
    for name, expected in alone.items():
        np.testing.assert_array_equal(cut[name], expected, err_msg=name)


def test_a_running_request_sees_nothing_of_its_own_page():
    """Items 1 and 2 of a page come an hour apart; neither may stand in the other's features as taken or followed."""
    table = replace(
        make_table([[[0], [1, 2]]]), history_times=np.array([0, DAY, DAY + 3600]), times=np.array([0, DAY])
    )
    dataset = SimpleNamespace(pages=table, split=SimpleNamespace(train=np.array([0, 1])))
    request = training_requests(dataset, "running", max_history=50)[2]
    assert (request.context.history.tolist(), request.positives.tolist()) == ([0, 1], [2])
    asked = (ITEMS, [request.context], np.array([[1, 2, 3]]))
    whole, before = (LogCounts.fit(table.select(pages), n_items=12) for pages in ([0, 1], [0]))
    np.testing.assert_array_equal(
        request_features(whole, *asked, max_history=50), request_features(before, *asked, max_history=50)
    )
