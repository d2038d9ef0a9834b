import numpy as np

from genrec_rl.sft.rows import IGNORED, build_rows
from genrec_rl.sft.targets import answers_of
from tests.sft.test_user_tree import TABLE


def rows_of(policy, target: str, *, chosen=(0, 1)) -> list[dict]:
    return list(build_rows(answers_of(TABLE, np.array(chosen), target=target, max_items=10), policy.prompts))


def test_row_is_prompt_then_answer_with_labels_on_the_answer(policy):
    row = rows_of(policy, "page", chosen=[2])[0]
    prompt = policy.prompts.prompt(TABLE.example(2).context).tolist()
    answer = policy.prompts.answer(np.array([3, 4, 5])).tolist()
    assert row["input_ids"] == prompt + answer
    assert row["labels"] == [IGNORED] * len(prompt) + answer


def test_item_rows_repeat_the_prompt_and_running_rows_go_on_with_it(policy):
    item, running = (rows_of(policy, target, chosen=[0]) for target in ("item", "running"))
    start = policy.prompts.prompt(TABLE.example(0).context).tolist()
    item_0 = policy.prompts.prompt(TABLE.example(1).context).tolist()[1:3]
    answers = [policy.prompts.answer(np.array([i])).tolist() for i in (0, 1)]
    assert [row["input_ids"] for row in item] == [start + answers[0], start + answers[1]]
    assert [row["input_ids"] for row in running] == [start + answers[0], start + item_0 + answers[1]]


def test_with_one_positive_a_page_all_targets_are_the_same_rows(policy):
    page, item, running = (rows_of(policy, target, chosen=[1, 3, 5]) for target in ("page", "item", "running"))
    assert page == item == running


def test_long_histories_keep_their_newest_items(policy):
    row = build_rows(answers_of(TABLE, np.array([2]), target="item", max_items=10), policy.prompts)[0]
    assert len(row["input_ids"]) == 1 + 2 * 3 + 3
