import numpy as np
import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.sft.rows import IGNORED, build_rows, target_items
from tests.fixtures import make_example


def answers(rows) -> list[list[int]]:
    return [[token for token in row["labels"] if token != IGNORED] for row in rows]


def test_page_row_is_prompt_then_the_pages_positives(policy):
    example = make_example([0, 4], [1], [5])
    (row,) = build_rows([example], policy.prompts, target="page", max_items=10)
    prompt = policy.prompts.prompt(example.context).tolist()
    answer = policy.prompts.answer(np.array([1, 5])).tolist()
    assert row["input_ids"] == prompt + answer
    assert row["labels"] == [IGNORED] * len(prompt) + answer


def test_item_rows_repeat_the_prompt_for_each_positive(policy):
    pages = [make_example([0], [1], [5]), make_example([2], [3])]
    rows = build_rows(pages, policy.prompts, target="item", max_items=9)
    expected = [policy.prompts.answer(np.array([i])).tolist() for i in (1, 5, 3)]
    assert answers(rows) == expected


def test_with_one_positive_a_page_both_targets_are_the_same_rows(policy):
    examples = [make_example([0, 4], [1]), make_example([], [2])]
    page = build_rows(examples, policy.prompts, target="page", max_items=10)
    item = build_rows(examples, policy.prompts, target="item", max_items=10)
    assert list(page) == list(item)


def test_exposures_follow_the_positives_and_are_left_out_by_default():
    example = make_example([0], [1], [2], [3, 4])
    assert target_items(example, max_items=10).tolist() == [1, 2]
    assert target_items(example, max_items=10, max_exposed=1).tolist() == [1, 2, 3]


def test_long_page_keeps_its_most_intense_items():
    assert target_items(make_example([0], [1, 2], [3]), max_items=2).tolist() == [1, 2]


def test_unknown_target_is_refused(policy):
    with pytest.raises(ConfigError, match="target 'pages' is not one of page, item"):
        build_rows([], policy.prompts, target="pages", max_items=1)
