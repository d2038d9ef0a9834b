import numpy as np
import pytest

from genrec_rl.data.pages import DAY
from genrec_rl.errors import DataError
from genrec_rl.types import Action, Context, Example
from reward_models.xgb.counts import LogCounts


def page(history, taken, *, left=(), time=10 * DAY, user="u") -> Example:
    n = len(history)
    context = Context(user, time, np.array(history, np.int32), np.zeros(n, np.int64), np.arange(n, dtype=np.int32))
    actions = [Action.CLICK] * len(taken) + [Action.EXPOSE] * len(left)
    return Example("r", context, np.array([*taken, *left], np.int32), np.array(actions, np.int8))


def transitions(counts: LogCounts, pairs, *, user="stranger", time=99 * DAY) -> list[float]:
    before, after = np.array(pairs).T
    return counts.transitions([page([], [], user=user, time=time).context], before[None], after[None])[0].tolist()


def test_transition_weighs_its_steps_by_the_decay_and_adds_up():
    counts = LogCounts.fit([page([1, 2], [3, 4]), page([1], [3])], n_items=6, n_last=2, decay=0.5)
    # first page: 2-3 one step, 1-3 two, 3-4 one, 2-4 two, 1-4 three (too far); second page: 1-3 one
    assert transitions(counts, [(2, 3), (1, 3), (3, 4), (2, 4), (1, 4), (3, 1)]) == [1, 0.5 + 1, 1, 0.5, 0, 0]


def test_history_items_alone_are_no_transition():
    assert transitions(LogCounts.fit([page([1, 2], [3])], n_items=6), [(1, 2)]) == [0]


def test_counts_of_no_pages_answer_zero():
    counts = LogCounts.fit([], n_items=6)
    assert transitions(counts, [(1, 2)]) == [0]
    assert counts.taken_before(np.array([1]), np.array([DAY])).tolist() == [0]
    assert np.isnan(counts.days_since_taken(np.array([1]), np.array([DAY]))).all()


def test_a_users_own_transitions_count_from_before_the_request_only():
    pages = [
        page([0], [1], user="a", time=3 * DAY),
        page([0, 1], [2], user="a", time=5 * DAY),
        page([0], [1], user="b"),
    ]
    counts = LogCounts.fit(pages, n_items=6)
    asked = [(0, 1), (1, 2), (0, 2)]
    assert transitions(counts, asked, user="a", time=9 * DAY) == [2, 1, 0.5]
    assert transitions(counts, asked, user="a", time=5 * DAY) == [2, 0, 0]
    assert transitions(counts, asked, user="a", time=1 * DAY) == [1, 0, 0]
    assert transitions(counts, asked, user="b", time=1 * DAY) == [1, 1, 0.5]
    assert transitions(counts, asked, user="stranger", time=1 * DAY) == [2, 1, 0.5]


def test_requests_of_several_users_take_off_their_own():
    counts = LogCounts.fit([page([0], [1], user="a"), page([0], [1], user="b"), page([1], [0], user="b")], n_items=6)
    contexts = [page([], [], user=user, time=0).context for user in ("a", "b", "c")]
    before, after = np.array([[0, 1]]), np.array([[1, 0]])
    assert counts.transitions(contexts, before, after).tolist() == [[1, 1], [1, 0], [2, 1]]


def test_taken_is_counted_strictly_before_and_within_days():
    pages = [page([], [1], time=day * DAY) for day in (1, 3, 3, 8)]
    counts = LogCounts.fit(pages, n_items=6)
    rows, times = np.array([1, 1, 1, 1, 0, 2]), np.array([0, 3, 4, 20, 20, 20]) * DAY
    assert counts.taken_before(rows, times).tolist() == [0, 1, 3, 4, 0, 0]
    assert counts.taken_before(rows, times, days=3).tolist() == [0, 1, 3, 0, 0, 0]


def test_days_since_taken_is_of_the_latest_before_and_of_the_item_itself():
    counts = LogCounts.fit([page([], [0], time=9 * DAY), page([], [1], time=4 * DAY)], n_items=6)
    days = counts.days_since_taken(np.array([1, 1, 0]), np.array([10, 4, 10]) * DAY)
    assert days[0] == 6
    assert np.isnan(days[1])
    assert days[2] == 1


def test_shown_counts_what_was_left_too():
    counts = LogCounts.fit([page([], [1], left=[2], time=DAY)], n_items=6)
    rows, times = np.array([1, 2, 3]), np.full(3, 2 * DAY)
    assert counts.shown_before(rows, times).tolist() == [1, 1, 0]
    assert counts.taken_before(rows, times).tolist() == [1, 0, 0]


def test_times_that_are_not_seconds_are_refused():
    with pytest.raises(DataError, match="times must be seconds"):
        LogCounts.fit([page([], [1], time=1 << 40)], n_items=6)
