import numpy as np
import pytest
import torch

from genrec_rl.sft.rows import IGNORED, WeightedRows, build_rows, draw_kept
from genrec_rl.sft.targets import answers_of
from tests.fixtures import make_policy
from tests.sft.test_user_tree import TABLE
from tests.sft.test_worth import BUCKETS, worth


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


def test_history_dropout_leaves_out_history_items_and_no_answer(policy):
    taught = answers_of(TABLE, np.array([2]), target="page", max_items=10)
    whole = build_rows(taught, policy.prompts)[0]["input_ids"]
    thinned = build_rows(taught, policy.prompts, history_dropout=0.5)
    torch.manual_seed(0)
    lengths = {len(thinned[0]["input_ids"]) for _ in range(20)}
    assert lengths == {len(whole) - 2 * left_out for left_out in range(4)}
    assert thinned[0]["input_ids"][-9:] == whole[-9:]


def test_draw_keeps_an_item_with_one_minus_the_dropout():
    torch.manual_seed(0)
    assert draw_kept(10_000, dropout=0.3).mean() == pytest.approx(0.7, abs=0.02)


def test_value_stands_behind_the_item_and_weighs_like_it(catalog):
    policy = make_policy(catalog, values=BUCKETS)
    known = worth(policy, user=1.0)
    row = build_rows(known.answers, policy.prompts, known)[3]
    plain = build_rows(known.answers, policy.prompts)[3]
    (token,) = known.value_tokens(3).tolist()
    assert row["input_ids"] == [*plain["input_ids"], token]
    assert row["labels"] == [*plain["labels"], token]
    (weight,) = set(row["weights"][-4:])
    assert row["weights"] == [0.0] * (len(row["labels"]) - 4) + [weight] * 4
    assert weight == pytest.approx(float(known.token_weights(3, n_levels=3)[0]))


def test_collator_pads_weights_and_leaves_plain_rows_alone():
    def pad(rows):
        return {"labels": torch.zeros(len(rows), max(len(row["labels"]) for row in rows))}

    rows = [{"input_ids": [1, 2], "labels": [3, 4]}, {"input_ids": [1], "labels": [3]}]
    assert "weights" not in WeightedRows(pad)(rows)
    weighted = [row | {"weights": [0.5] * len(row["labels"])} for row in rows]
    assert WeightedRows(pad)(weighted)["weights"].tolist() == [[0.5, 0.5], [0.5, 0.0]]
