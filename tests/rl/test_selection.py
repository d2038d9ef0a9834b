from types import SimpleNamespace

import pytest

from genrec_rl.errors import RewardError
from genrec_rl.rl.choices import GUARDED
from genrec_rl.rl.selection import RewardCheck, guarded, keep_best


def trainer_with(*measured, best=True):
    rows = [{"step": step, "eval_ndcg@10": value} for step, value in measured] + [{"step": 1, "loss": 0.5}]
    args = SimpleNamespace(load_best_model_at_end=best, metric_for_best_model="eval_ndcg@10")
    return SimpleNamespace(state=SimpleNamespace(log_history=rows), args=args)


def test_a_better_checkpoint_is_kept(policy, catalog):
    trainer = trainer_with((0, 0.1), (5, 0.3), (9, 0.2))
    kept, verdict = keep_best(trainer, policy, start_dir="nowhere", catalog=catalog, keep_start=True)
    assert kept is policy
    assert verdict == "validation NDCG@10 0.1000 at the start, 0.3000 at step 5, the best"


def test_a_trainer_that_holds_its_last_step_is_judged_by_that(policy, catalog, tmp_path):
    policy.save_pretrained(tmp_path)
    trainer = trainer_with((0, 0.2), (5, 0.3), (9, 0.1), best=False)
    kept, verdict = keep_best(trainer, policy, start_dir=tmp_path, catalog=catalog, keep_start=True)
    assert kept is not policy
    assert "0.1000 at step 9, the last" in verdict


@pytest.mark.parametrize("best", [0.1, 0.05])
def test_without_improvement_the_start_comes_back(policy, catalog, tmp_path, best):
    policy.save_pretrained(tmp_path)
    kept, verdict = keep_best(
        trainer_with((0, 0.1), (5, best)), policy, start_dir=tmp_path, catalog=catalog, keep_start=True
    )
    assert kept is not policy
    assert verdict.endswith("RL did not help, the start is kept")


def test_without_evaluations_the_last_step_is_kept(policy, catalog):
    kept, verdict = keep_best(trainer_with(), policy, start_dir="nowhere", catalog=catalog, keep_start=True)
    assert kept is policy
    assert verdict.startswith("the last step is kept")


def test_unless_asked_for_the_trained_policy_is_kept_and_the_start_recommended(policy, catalog):
    kept, verdict = keep_best(
        trainer_with((0, 0.3), (5, 0.1)), policy, start_dir="runs/sft", catalog=catalog, keep_start=False
    )
    assert kept is policy
    assert verdict.endswith("RL did not help, so serve the start (runs/sft)")


def evaluate(*, step=0, reranked, error=0.01):
    measured = {"eval_ndcg@10": 0.2, "eval_reranked_ndcg@10": reranked, "eval_reranked_gain_error": error}
    RewardCheck().on_evaluate(args=None, state=SimpleNamespace(global_step=step), control=None, metrics=measured)


@pytest.mark.parametrize(("reranked", "error"), [(0.17, 0.01), (0.2, 0.0)], ids=["worse", "a constant reward"])
def test_a_reward_that_orders_beams_worse_stops_the_run_at_step_0(reranked, error):
    with pytest.raises(RewardError, match=f"from NDCG@10 0.2000 to {reranked:.4f}"):
        evaluate(reranked=reranked, error=error)
    evaluate(step=5, reranked=reranked, error=error)


def test_a_reward_within_the_noise_is_warned_of_and_a_better_one_is_not(recwarn):
    evaluate(reranked=0.25)
    assert not recwarn
    with pytest.warns(UserWarning, match="not shown to know more"):
        evaluate(reranked=0.19)


def test_a_run_without_a_reward_model_in_its_validation_goes_on():
    state = SimpleNamespace(global_step=0)
    RewardCheck().on_evaluate(args=None, state=state, control=None, metrics={"eval_ndcg@10": 0.2})


START = {"step": 0, "eval_ndcg@10": 0.2, "eval_har@10": 0.1, "eval_gold_mean@10": 0.5}


@pytest.mark.parametrize(
    ("found", "guarded_value"),
    [
        ({"eval_har@10": 0.1, "eval_gold_mean@10": 0.5}, 0.3),
        ({"eval_har@10": 0.11, "eval_gold_mean@10": 0.6}, -0.7),
        ({"eval_har@10": 0.0, "eval_gold_mean@10": 0.49}, -0.7),
        ({}, 0.3),
    ],
    ids=["as the start", "more invented", "less gold", "unmeasured"],
)
def test_a_guard_that_breaks_costs_more_than_any_accuracy(found, guarded_value):
    measured = {"eval_ndcg@10": 0.3} | found
    assert guarded(measured, [{"step": 0, "loss": 1.0}, START])[GUARDED] == pytest.approx(guarded_value)


def test_the_start_keeps_its_own_guards():
    assert guarded(START, []) == {GUARDED: 0.2}


def guarded_trainer(*rows):
    history = [START | {GUARDED: 0.2}]
    history += [row | guarded(row, [START]) for row in rows]
    args = SimpleNamespace(load_best_model_at_end=True, metric_for_best_model=GUARDED)
    return SimpleNamespace(state=SimpleNamespace(log_history=history), args=args)


def row(step, ndcg, har, gold=0.5):
    return {"step": step, "eval_ndcg@10": ndcg, "eval_har@10": har, "eval_gold_mean@10": gold}


def test_the_best_checkpoint_within_the_guards_is_named_with_them(policy, catalog):
    trainer = guarded_trainer(row(5, 0.4, 0.2), row(9, 0.3, 0.1))
    kept, verdict = keep_best(trainer, policy, start_dir="x", catalog=catalog, keep_start=True)
    assert kept is policy
    assert "0.3000 at step 9, the best of 1 among 2 checkpoints" in verdict
    assert verdict.endswith("that keep the start's HaR@10 0.1000 and gold 0.5000")


def test_where_all_break_a_guard_the_start_is_kept_and_why_is_said(policy, catalog, tmp_path):
    policy.save_pretrained(tmp_path)
    trainer = guarded_trainer(row(5, 0.4, 0.2), row(9, 0.3, 0.1, gold=0.4))
    kept, verdict = keep_best(trainer, policy, start_dir=tmp_path, catalog=catalog, keep_start=True)
    assert kept is not policy
    assert "all are worse in HaR@10 (0.2000, the start 0.1000), the start is kept" in verdict
