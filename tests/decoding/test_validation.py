from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from genrec_rl.decoding.validation import Validation
from genrec_rl.types import NO_ITEM, Rollouts
from tests.fixtures import make_example


class Scripted:
    """Recommends items 0, 1, 2, ...; when free, every second SID is invalid."""

    def recommend(self, contexts, *, k, constrained):
        rows = torch.arange(k).repeat(len(contexts), 1)
        if not constrained:
            rows[:, ::2] = NO_ITEM
        return Rollouts(sids_PGL=torch.zeros(len(contexts), k, 3), rows_PG=rows, log_probs_PG=torch.zeros(1, k))


def test_means_over_all_pages():
    pages = [make_example([], [0]), make_example([4, 11], [2], disliked=[7]), make_example([0], [11])]
    found = Validation(pages, Scripted(), beams=10).measure(Accelerator(cpu=True))
    expected = {"hr@10": 2 / 3, "ndcg@10": (1 + 0.5 + 0) / 3, "seen@10": (0 + 0.2 + 0.1) / 3, "har@10": 0.5}
    assert found == pytest.approx(expected)


def test_a_process_without_pages_adds_nothing():
    assert Validation([], Scripted(), beams=10).measure(Accelerator(cpu=True)) == {
        "hr@10": 0,
        "ndcg@10": 0,
        "seen@10": 0,
        "har@10": 0,
    }


def test_hallucination_can_be_left_out():
    validation = Validation([make_example([], [0])], Scripted(), beams=10, measure_hallucination=False)
    assert validation.measure(Accelerator(cpu=True)).keys() == {"hr@10", "ndcg@10", "seen@10"}


def test_value_is_averaged_over_the_pages_that_are_worth_something():
    pages = [make_example([], [0, 11]), make_example([], [2]), make_example([], [3])]
    values = [[1.0, 3.0], [0.0], [5.0]]
    valued = [replace(page, values=np.array(value)) for page, value in zip(pages, values, strict=True)]
    found = Validation(valued, Scripted(), beams=10, measure_hallucination=False).measure(Accelerator(cpu=True))
    assert found.keys() == {"hr@10", "ndcg@10", "seen@10", "value@10"}
    assert found["value@10"] == pytest.approx((0.25 + 1) / 2)


def test_ndcg_is_also_given_of_the_held_out_alone():
    pages = [make_example([], [0]), make_example([], [2]), make_example([], [11])]
    validation = Validation(pages, Scripted(), beams=10, measure_hallucination=False,
                            is_held_out=lambda example: example is not pages[0])  # fmt: skip
    found = validation.measure(Accelerator(cpu=True))
    expected = {"hr@10": 2 / 3, "ndcg@10": 0.5, "seen@10": 0, "ndcg@10_held_out": (0.5 + 0) / 2}
    assert found == pytest.approx(expected)


def test_nobody_held_out_is_no_ndcg_of_zero():
    pages = [make_example([], [0])]
    validation = Validation(pages, Scripted(), beams=10, measure_hallucination=False, is_held_out=lambda _: False)
    assert validation.measure(Accelerator(cpu=True)).keys() == {"hr@10", "ndcg@10", "seen@10"}


def test_beams_are_also_ranked_by_a_reward_model():
    rewards = np.linspace(0.9, 0.1, 12)[::-1].copy()  # the later the item, the better
    validation = Validation(
        [make_example([], [9])], Scripted(), beams=10, measure_hallucination=False, reward_model=ByRow(rewards)
    )
    assert validation.measure(Accelerator(cpu=True))["reranked_ndcg@10"] == pytest.approx(1)


class ByRow:
    def __init__(self, rewards):
        self.rewards = rewards

    def score(self, contexts, candidates):
        return self.rewards[candidates]


def test_a_watch_sees_what_was_recommended_and_adds_its_numbers():
    seen = []

    def watch(proposals, accelerator):
        seen.append(proposals)
        return {"seen": 1.0}

    page = make_example([], [0])
    validation = Validation([page], Scripted(), beams=10, watch=watch)
    assert validation.measure(Accelerator(cpu=True))["seen"] == 1
    assert seen[0].examples == [page]
    assert (seen[0].free.rows_PG == NO_ITEM).sum() == 5
    assert Validation([], Scripted(), beams=10, watch=watch).measure(Accelerator(cpu=True))["seen"] == 1
    assert seen[1] is None
