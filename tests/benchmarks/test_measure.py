from dataclasses import replace

import numpy as np
import pytest

from benchmarks.tables.measure import Answers, Requests, follows_same_day, measure, pair, summarise
from genrec_rl.data.pages import DAY
from genrec_rl.types import NO_ITEM
from tests.fixtures import make_context, make_example

REQUESTS = Requests(
    user_ids=np.array(["a", "b"]),
    positives=[np.array([3]), np.array([5])],
    seen=[np.array([1]), np.array([9, 8])],
    is_same_day=np.array([True, False]),
)
ROWS = np.array([[1, 3, *range(10, 58)], [5, 8, *range(10, 58)]])


def test_metrics_by_hand():
    found = measure(Answers(ROWS), REQUESTS)
    assert found["HR@1"].tolist() == [0, 1]
    assert found["Recall@5"].tolist() == [1, 1]
    assert found["NDCG@10"].tolist() == pytest.approx([1 / np.log2(3), 1])
    assert found["HR@1/unseen"].tolist() == [1, 1]
    assert "HaR@10" not in found


def test_hallucination_is_that_of_free_beams():
    free = np.where(np.arange(50) % 5 == 0, NO_ITEM, ROWS)
    assert measure(Answers(ROWS, free_PK=free), REQUESTS)["HaR@10"].tolist() == [0.2, 0.2]


def test_fewer_beams_have_numbers_of_their_own():
    found = measure(Answers(ROWS, narrow_PK=ROWS[:, 1:21]), REQUESTS)
    assert found["Recall@10/20_beams"].tolist() == [1, 0]
    assert "HR@50/20_beams" not in found


def test_samples_have_a_rate_of_their_own():
    found = measure(Answers(ROWS, sampled_PK=np.array([[NO_ITEM], [4]])), REQUESTS)
    assert found["HaR-s"].tolist() == [1, 0]


def test_strata_hold_their_own_requests():
    means = summarise(measure(Answers(ROWS), REQUESTS), REQUESTS)
    assert means["NDCG@10/same_day"] == pytest.approx(1 / np.log2(3))
    assert means["NDCG@10/new_day"] == 1
    assert means["NDCG@10"] == pytest.approx((1 / np.log2(3) + 1) / 2)


def test_requests_that_a_metric_says_nothing_of_are_left_out_of_its_mean():
    columns = measure(Answers(ROWS), REQUESTS) | {"value@10": np.array([np.nan, 0.5])}
    assert summarise(columns, REQUESTS)["value@10"] == 0.5


def test_strata_divide_by_day_and_by_number_of_positives():
    requests = replace(REQUESTS, positives=[np.array([3]), np.array([5, 6])])
    assert {name: part.tolist() for name, part in requests.strata.items()} == {
        "/same_day": [True, False],
        "/new_day": [False, True],
        "/several": [False, True],
        "/one": [True, False],
    }


def test_users_whose_requests_were_no_prompts_are_a_stratum():
    examples = [make_example([1], [2]), make_example([1], [3])]
    requests = Requests.of(examples, is_held_out=lambda example: example is examples[1])
    assert requests.strata["/held_out"].tolist() == [False, True]
    assert requests.strata["/unlabelled"].tolist() == [True, False]


def test_what_was_disliked_is_seen():
    assert [seen.tolist() for seen in Requests.of([make_example([1], [2], disliked=[4])]).seen] == [[1, 4]]


def test_division_with_an_empty_side_is_left_out():
    assert set(REQUESTS.strata) == {"/same_day", "/new_day"}


def test_pairs_compare_the_mean_of_the_seeds_user_by_user():
    hit, miss = measure(Answers(ROWS), REQUESTS), measure(Answers(ROWS[:, ::-1]), REQUESTS)
    found = pair({"a": {0: hit, 1: miss}, "b": {0: miss, 1: miss}}, [("a", "b")], REQUESTS, draws=50)["a-b"]
    assert found["Recall@10"].mean == 0.5  # seeds of a find 1 and 0, those of b 0
    assert (found["Recall@10"].low, found["Recall@10"].high) == (0.5, 0.5)
    assert found["NDCG@10/new_day"].mean == 0.5


def test_only_seeds_that_both_have_are_compared():
    hit, miss = measure(Answers(ROWS), REQUESTS), measure(Answers(ROWS[:, ::-1]), REQUESTS)
    systems = {"a": {1: hit}, "b": {0: hit, 1: miss}, "c": {2: hit}}
    found = pair(systems, [("a", "b"), ("a", "c")], REQUESTS, draws=50)
    assert found["a-b"]["Recall@10"].mean == 1  # the b of seed 0 would give 0, or .5 with that of seed 1
    assert set(found) == {"a-b"}


def test_what_draws_nothing_stands_against_every_seed():
    hit, miss = measure(Answers(ROWS), REQUESTS), measure(Answers(ROWS[:, ::-1]), REQUESTS)
    found = pair({"a": {0: miss}, "b": {1: hit, 2: miss}}, [("a", "b")], REQUESTS, unseeded={"a"}, draws=50)
    assert found["a-b"]["Recall@10"].mean == -0.5


@pytest.mark.parametrize(("seconds", "same"), [(0, True), (-1, False), (DAY - 1, True), (DAY, False)])
def test_day_is_the_calendars(seconds, same):
    example = make_example([1], [2])
    times = np.array([5 * DAY])
    context = make_context([1])
    object.__setattr__(context, "history_times", times)
    object.__setattr__(context, "time", 5 * DAY + seconds)
    object.__setattr__(example, "context", context)
    assert follows_same_day(example) == same
