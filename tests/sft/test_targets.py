from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from genrec_rl.data.pages import DAY, Disliked
from genrec_rl.errors import ConfigError
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.sft.targets import WHOLE, answers_of, page_items, training_requests
from genrec_rl.types import Action
from tests.fixtures import make_catalog, make_example, make_policy
from tests.sft.test_user_tree import TABLE, make_table


def taught(table=TABLE, chosen=None, *, target: str, **limits) -> list[tuple[int, list[int], int]]:
    """Page, items and known history of every answer."""
    chosen = np.arange(len(table)) if chosen is None else np.array(chosen)
    answers = answers_of(table, chosen, target=target, **({"max_items": 10} | limits))
    return [(int(answers.pages[i]), answers.items(i).tolist(), int(answers.knows[i])) for i in range(len(answers))]


def test_page_answers_with_all_positives_after_the_history_before_it():
    assert taught(target="page") == [
        (0, [0, 1], 0), (1, [2], 2), (2, [3, 4, 5], 3), (3, [6], 6), (4, [7, 8], 7), (5, [9], 9),
    ]  # fmt: skip


def test_item_answers_with_each_positive_after_the_history_before_the_page():
    assert taught(target="item", chosen=[1, 2]) == [(1, [2], 2), (2, [3], 3), (2, [4], 3), (2, [5], 3)]


def test_running_knows_the_pages_earlier_positives():
    assert taught(target="running", chosen=[1, 2]) == [(1, [2], 2), (2, [3], 3), (2, [4], 4), (2, [5], 5)]


def test_joined_targets_are_taught_together_in_order_of_what_they_know():
    assert taught(target="page+running", chosen=[0, 4]) == [
        (0, [0, 1], 0), (0, [0], 0), (0, [1], 1), (4, [7, 8], 7), (4, [7], 7), (4, [8], 8),
    ]  # fmt: skip


def test_what_joined_targets_teach_alike_is_taught_once():
    """Pages 1 and 3 have one positive; page 2's first is the same answer for item and running."""
    assert taught(target="page+running", chosen=[1, 3]) == [(1, [2], 2), (3, [6], 6)]
    assert taught(target="item+running", chosen=[2]) == [
        (2, [3], 3), (2, [4], 3), (2, [5], 3), (2, [4], 4), (2, [5], 5),
    ]  # fmt: skip


def test_page_of_one_positive_stays_whole_where_exposures_follow_it():
    """Page 2 as two clicks and an exposure, page 1 as a click alone."""
    table = make_table([[[0, 1], [2], [3, 4]]])
    actions = table.actions.copy()
    actions[4] = Action.EXPOSE
    parts = ("history_items", "history_times", "history_pages")
    table = replace(table, actions=actions, **{name: getattr(table, name)[:4] for name in parts})
    assert taught(table, [1], target="page+running", max_exposed=1) == [(1, [2], 2)]
    assert taught(table, [2], target="page+item", max_exposed=1) == [(2, [3, 4], 3), (2, [3], 3)]
    assert taught(table, [2], target="page+item") == [(2, [3], 3)]


def test_running_knows_nothing_behind_another_pages_item():
    table = make_table([[[0], [1, 2, 3], [4]]])
    # In time: 0, 1, 4 (of the other request), 2, 3.
    order = np.array([0, 1, 4, 2, 3])
    table = replace(table, history_items=table.items[order], history_pages=table.history_pages[order])
    assert taught(table, [1], target="running") == [(1, [1], 1), (1, [2], 2), (1, [3], 2)]


def test_context_is_cut_to_the_newest_items():
    answers = answers_of(TABLE, np.array([2]), target="running", max_items=10)
    assert [answers.context(i, max_history=2).history.tolist() for i in range(3)] == [[1, 2], [2, 3], [3, 4]]


def test_answer_is_asked_for_when_its_item_came():
    answers = answers_of(TABLE, np.array([2]), target="running", max_items=10)
    times = TABLE.history_times
    assert [answers.context(i, max_history=9).time for i in range(3)] == [TABLE.times[2], times[4], times[5]]


@pytest.mark.parametrize("target", ["page", "item"])
def test_training_asks_when_serving_does(target):
    """A page's prompt is the same, whether it is taught or asked for: here pages begin before their first click."""
    prompts = make_policy(make_catalog(), grammar=PromptGrammar(separator="day")).prompts
    table = replace(TABLE, times=TABLE.history_times[TABLE.history_end] - DAY // 4)
    answers = answers_of(table, np.arange(len(table)), target=target, max_items=10)
    for i, page in enumerate(answers.pages):
        asked = prompts.prompt(table.example(int(page)).context)
        assert prompts.prompt(answers.context(i, max_history=50)).tolist() == asked.tolist()


def test_history_never_reaches_into_another_user():
    answers = answers_of(TABLE, np.arange(6), target="page", max_items=10)
    assert [answers.context(i, max_history=9).history.tolist() for i in (3, 4, 5)] == [[], [6], []]


def test_exposures_follow_the_positives_and_are_left_out_by_default():
    example = make_example([0], [1], [2], [3, 4])
    assert page_items(example, max_items=10).tolist() == [1, 2]
    assert page_items(example, max_items=10, max_exposed=1).tolist() == [1, 2, 3]


def test_long_page_keeps_its_most_intense_items():
    assert page_items(make_example([0], [1, 2], [3]), max_items=2).tolist() == [1, 2]
    assert taught(target="page", chosen=[2], max_items=2) == [(2, [3, 4], 3)]


def test_whole_pages_have_no_entry():
    assert answers_of(TABLE, np.arange(6), target="page", max_items=10).entries.tolist() == [WHOLE] * 6


@pytest.mark.parametrize("target", ["pages", "page+", "item+run"])
def test_unknown_target_is_refused(target):
    with pytest.raises(ConfigError, match="is not one of page, item, running"):
        taught(target=target)


@pytest.mark.parametrize("limits", [{"max_items": 0}, {"max_exposed": -1}])
def test_limits_that_teach_nothing_are_refused(limits):
    with pytest.raises(ConfigError, match="must be at least"):
        taught(target="page", **limits)


def test_running_requests_are_every_item_after_all_before_it():
    dataset = SimpleNamespace(pages=TABLE, split=SimpleNamespace(train=np.array([0, 2])))
    found = training_requests(dataset, "running", max_history=3)
    asked = [(example.context.history.tolist(), example.positives.tolist()) for example in found]
    assert asked == [([], [0]), ([0], [1]), ([0, 1, 2], [3]), ([1, 2, 3], [4]), ([2, 3, 4], [5])]
    assert all((example.context.history_times <= example.context.time).all() for example in found)
    assert found[-1].positives.tolist() == [5]
    assert [example.positives.tolist() for example in found[1:3]] == [[1], [3]]
    assert {example.context.user_id for example in found} == {"u0"}


def test_running_requests_know_what_was_disliked_before_their_page():
    start, end = np.zeros(6, int), np.array([0, 1, 2, 2, 2, 2])
    disliked = Disliked(np.array([11, 12]), np.array([0, 1]), start, end)
    dataset = SimpleNamespace(pages=replace(TABLE, disliked=disliked), split=SimpleNamespace(train=np.array([0, 2])))
    found = training_requests(dataset, "running", max_history=1)
    assert [example.context.disliked.tolist() for example in found] == [[], [], [11, 12], [11, 12], [11, 12]]


def test_page_requests_are_the_training_pages():
    dataset = SimpleNamespace(examples=lambda split, max_history: (split, max_history))
    assert training_requests(dataset, "page", max_history=7) == ("train", 7)


def test_unknown_requests_are_refused():
    with pytest.raises(ConfigError, match="requests 'day' is not one of page, running"):
        training_requests(SimpleNamespace(), "day", max_history=7)
