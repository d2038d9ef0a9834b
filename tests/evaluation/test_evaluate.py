"""The evaluator on three requests whose every metric can be counted by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from genrec_rl.errors import ConfigError, DataError, RolloutError
from genrec_rl.evaluation.evaluate import (
    Plan,
    Predictions,
    System,
    evaluate,
    measure_requests,
    positives_seen,
    predict,
)
from genrec_rl.types import NO_ITEM, Action, Interval
from reward_models.scripted import Popularity

PLAN = Plan(ks=(1, 3), beams=3, draws=50)
POPULARITY = np.array([50, 30, 10, 5, 3, 2])


def run(systems, examples, catalog, **more):
    return evaluate(systems, examples, catalog=catalog, popularity=POPULARITY, plan=PLAN, **more)


def mean(report, system, decoding, metric):
    return report.systems[system][decoding][metric].mean


def test_metrics_of_each_decoding(good, examples, catalog):
    report = run([System("good", lambda: good)], examples, catalog)
    assert mean(report, "good", "constrained", "HR@1") == pytest.approx(1 / 3)
    assert mean(report, "good", "constrained", "HR@3") == pytest.approx(2 / 3)
    assert mean(report, "good", "constrained", "HaR@3") == 0
    assert mean(report, "good", "unconstrained", "HR@1") == 0
    assert mean(report, "good", "unconstrained", "HR@3") == pytest.approx(2 / 3)
    assert mean(report, "good", "unconstrained", "HaR@3") == pytest.approx(1 / 9)
    assert mean(report, "good", "unconstrained", "HaR@1") == pytest.approx(1 / 3)


def test_value_appears_with_what_items_were_worth_and_pages_are(good, examples, catalog):
    """Values of a: 4 on its hit at rank 1; b: 1 of 4 at rank 2, its rank 1 is a miss; c: nothing."""
    values = [[4.0, 9.0], [1.0, 3.0], [0.0]]
    valued = [replace(page, values=np.array(value)) for page, value in zip(examples, values, strict=True)]
    system = System("good", lambda: good)
    item_values = np.array([1.0, 0, 0, 0, 9, 0])
    report = run([system], valued, catalog, item_values=item_values)
    assert mean(report, "good", "constrained", "value@1") == pytest.approx(1 / 2)
    assert mean(report, "good", "constrained", "value@3") == pytest.approx((1 + 1 / 4) / 2)
    assert mean(report, "good", "constrained", "value_head@3") == pytest.approx(1 / 9)
    for requests, worth in ((valued, None), (examples, item_values)):
        plain = run([system], requests, catalog, item_values=worth).systems["good"]["constrained"]
        assert not [name for name in plain if name.startswith("value")]


def test_valid_first_moves_invalid_sids_behind(good, examples, catalog):
    report = run([System("good", lambda: good)], examples, catalog)
    assert mean(report, "good", "unconstrained", "HR_valid_first@1") == pytest.approx(1 / 3)
    assert "HR_valid_first@1" not in report.systems["good"]["constrained"]


def test_graded_ndcg_takes_gains_in_the_order_of_the_positives(good, examples, catalog):
    # b: order of row 1 found at rank 2, click of row 3 missed; a found first, c missed
    report = run([System("good", lambda: good)], examples, catalog)
    of_b = (2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert mean(report, "good", "constrained", "NDCG_graded@3") == pytest.approx((1 + of_b + 0) / 3)


def test_positives_that_were_taken_before_are_counted(examples):
    again = replace(examples[0], context=replace(examples[0].context, history=examples[0].positives))
    disliked = replace(examples[0], context=replace(examples[0].context, disliked=examples[0].positives))
    assert positives_seen([again]) == positives_seen([disliked]) == 1
    assert positives_seen([]) == 0


def test_ranks_given_to_what_was_disliked_count_as_seen(good, examples, catalog):
    """User a is answered 2, 0, 1 after a history of 0 and 1."""
    known = replace(examples[0], context=replace(examples[0].context, disliked=np.array([2])))
    for example, at_1, at_3 in ((examples[0], 0, 2 / 3), (known, 1, 1)):
        report = run([System("good", lambda: good, ("constrained",))], [example], catalog)
        assert mean(report, "good", "constrained", "seen@1") == pytest.approx(at_1)
        assert mean(report, "good", "constrained", "seen@3") == pytest.approx(at_3)


def test_exposed_items_are_no_hits(catalog, examples, good):
    exposed_only = [replace(examples[0], actions=np.array([Action.EXPOSE, Action.CLICK], dtype=np.int8))]
    report = run([System("good", lambda: good, ("constrained",))], exposed_only, catalog)
    assert mean(report, "good", "constrained", "HR@3") == 0


def test_catalogue_metrics_have_no_interval(good, examples, catalog):
    report = run([System("good", lambda: good)], examples, catalog)
    coverage = report.systems["good"]["constrained"]["coverage@3"]
    assert coverage.mean == pytest.approx(4 / 6)
    assert math.isnan(coverage.low)
    assert math.isnan(coverage.high)
    assert mean(report, "good", "constrained", "distinct@1") == 2


def test_rewards_are_ungated_and_zero_where_invalid(good, examples, catalog):
    reward = Popularity(counts=POPULARITY)
    report = run([System("good", lambda: good)], examples, catalog, scorers={"R": reward})
    scores = np.log1p(POPULARITY) / np.log1p(50)
    assert mean(report, "good", "constrained", "R@1") == pytest.approx((scores[2] + scores[0] * 2) / 3)
    assert mean(report, "good", "unconstrained", "R@1") == pytest.approx(scores[0] * 2 / 3)
    assert mean(report, "good", "unconstrained", "R@3") == pytest.approx((scores[1] + scores[0] * 2) / 3)
    assert mean(report, "good", "unconstrained", "R_mean@3") < mean(report, "good", "unconstrained", "R@3")


def test_pairs_are_later_minus_earlier_on_the_decodings_both_have(good, bad, examples, catalog):
    report = run([System("bad", lambda: bad, ("constrained",)), System("good", lambda: good)], examples, catalog)
    assert list(report.paired) == ["good-bad"]
    assert list(report.paired["good-bad"]) == ["constrained"]
    assert report.paired["good-bad"]["constrained"]["HR@3"].mean == pytest.approx(2 / 3)


def test_system_against_its_twin_differs_by_nothing(good, examples, catalog):
    report = run([System("one", lambda: good), System("two", lambda: good)], examples, catalog)
    assert set(report.paired["two-one"]["unconstrained"].values()) == {Interval(0, 0, 0)}


@pytest.mark.parametrize(("proposed", "wanted"), [(0, 2), (2, 0)])
def test_shared_sid_counts_for_each_of_its_items_in_the_sid_column(proposed, wanted, catalog, examples):
    codes = catalog.codes.copy()
    codes[2] = codes[0]
    shared = replace(catalog, codes=codes)
    request = replace(examples[0], items=np.array([wanted, 5]))
    answers = Predictions("x", "constrained", np.array([[proposed]]), codes[[[proposed]]], np.zeros((1, 1)))
    values = measure_requests(answers, [request], catalog=shared, popularity=POPULARITY, ks=(1,))
    assert values["HR@1"].tolist() == [0]
    assert values["HR_sid@1"].tolist() == [1]


def test_unique_sids_need_no_sid_column(good, examples, catalog):
    report = run([System("good", lambda: good)], examples, catalog)
    assert not [name for name in report.systems["good"]["constrained"] if "_sid" in name]


def test_requests_go_in_parts_and_come_back_in_order(good, examples, catalog, monkeypatch):
    monkeypatch.setattr("genrec_rl.evaluation.evaluate.REQUESTS_AT_ONCE", 2)
    answers = predict(good, examples, name="good", decoding="constrained", plan=PLAN, scorers={})
    assert good.asked == [(2, 3, True), (1, 3, True)]
    assert answers.rows_PK.tolist() == [[2, 0, 1], [0, 1, 4], [0, 1, 2]]


def test_one_policy_is_loaded_at_a_time(good, bad, examples, catalog):
    order = []
    systems = [
        System(name, lambda name=name, policy=policy: order.append(f"load {name}") or policy, ("constrained",))
        for name, policy in (("good", good), ("bad", bad))
    ]
    run(systems, examples, catalog, sinks=[lambda answers: order.append(f"answer {answers.system}")])
    assert order == ["load good", "answer good", "load bad", "answer bad"]


def test_protocol_counts_requests_users_and_settings(good, examples, catalog):
    twice = [*examples, replace(examples[0], request_id="again")]
    report = run([System("good", lambda: good)], twice, catalog, protocol={"split": "test"})
    assert report.protocol == {
        "split": "test", "requests": 4, "users": 3, "positives_seen": 0.4, "ks": "1, 3", "beams": 3,
        "bootstrap_draws": 50, "bootstrap_seed": 0,
    }  # fmt: skip


def test_invalid_sid_under_constraint_is_refused(catalog, bad, examples):
    bad.tables[True] = bad.tables[False]
    with pytest.raises(RolloutError, match="9 invalid SIDs from constrained decoding"):
        run([System("bad", lambda: bad)], examples, catalog)


def test_places_without_an_answer_are_no_invalid_sids(catalog, bad, examples):
    bad.tables[True] = bad.tables[False]
    answer = bad.recommend

    def without_answers(*args, **kwargs):
        found = answer(*args, **kwargs)
        return replace(found, log_probs_PG=torch.full_like(found.log_probs_PG, -torch.inf))

    bad.recommend = without_answers
    rows = predict(bad, examples, name="b", decoding="constrained", plan=PLAN, scorers={}).rows_PK
    assert (rows == NO_ITEM).all()


def test_every_sid_invalid_is_counted_not_an_error(bad, examples, catalog):
    report = run([System("bad", lambda: bad)], examples, catalog)
    assert mean(report, "bad", "unconstrained", "HaR@3") == 1
    assert math.isnan(mean(report, "bad", "unconstrained", "gini@3"))
    assert (
        predict(bad, examples, name="b", decoding="unconstrained", plan=PLAN, scorers={}).rows_PK == NO_ITEM
    ).all()


def test_two_systems_of_one_name_are_refused(good, examples, catalog):
    with pytest.raises(ConfigError, match="each needs a name"):
        run([System("x", lambda: good), System("x", lambda: good)], examples, catalog)


def test_no_request_is_refused(good, catalog):
    with pytest.raises(DataError, match="0 requests"):
        run([System("x", lambda: good)], [], catalog)


def test_name_that_would_blur_a_pair_is_refused(good):
    with pytest.raises(ConfigError, match="'grpo-sr'"):
        System("grpo-sr", lambda: good)


@pytest.mark.parametrize("wrong", [{"ks": (0,)}, {"ks": (51,)}, {"ks": ()}, {"draws": 0}])
def test_plan_refuses_what_cannot_be_measured(wrong):
    with pytest.raises(ConfigError):
        Plan(**wrong)
