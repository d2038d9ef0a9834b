from types import SimpleNamespace

import pytest

from genrec_rl.errors import RewardError
from genrec_rl.rl.choices import GUARDED
from genrec_rl.rl.selection import Patience, RewardCheck, guarded, keep_best


def trainer_with(*measured, best=True):
    rows = [{"step": step, "eval_ndcg@10": value} for step, value in measured] + [{"step": 1, "loss": 0.5}]
    return held_by(rows, metric="eval_ndcg@10", best=best)


def held_by(rows, *, metric, best=True):
    """A trainer that loaded the first of its best checkpoints, as transformers does."""
    later = [row for row in rows if row["step"] > 0 and metric in row]
    loaded = f"runs/checkpoint-{max(later, key=lambda row: row[metric])['step']}" if best and later else None
    args = SimpleNamespace(load_best_model_at_end=best, metric_for_best_model=metric)
    return SimpleNamespace(state=SimpleNamespace(log_history=rows, best_model_checkpoint=loaded), args=args)


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


def test_the_checkpoint_that_was_loaded_is_judged_whatever_it_was_chosen_by(policy, catalog):
    trainer = trainer_with((0, 0.2), (5, 0.3), (9, 0.1))
    trainer.args.metric_for_best_model = "eval_hr@10"
    trainer.state.best_model_checkpoint = "runs/checkpoint-9"
    assert (
        "0.1000 at step 9, the best"
        in keep_best(trainer, policy, start_dir="x", catalog=catalog, keep_start=False)[1]
    )


def test_a_best_step_that_was_never_saved_leaves_the_last(policy, catalog):
    trainer = trainer_with((0, 0.2), (5, 0.3), (9, 0.1))
    trainer.state.best_model_checkpoint = None
    assert (
        "0.1000 at step 9, the last"
        in keep_best(trainer, policy, start_dir="x", catalog=catalog, keep_start=False)[1]
    )


def stops_at(values, *, patience, begun_at=0):
    """The step at which a run with one evaluation a step ends; a resumed one evaluates its first step once more."""
    callback, control = Patience(early_stopping_patience=patience), SimpleNamespace(should_training_stop=False)
    args = SimpleNamespace(metric_for_best_model="ndcg", greater_is_better=True, load_best_model_at_end=True,
                           eval_strategy="steps")  # fmt: skip
    before = values[: begun_at + 1] if begun_at else []
    state = SimpleNamespace(
        global_step=begun_at,
        best_metric=max(values[: begun_at + 1]),
        best_global_step=before.index(max(before)) if before else None,
        log_history=[{"step": step, "eval_ndcg": value} for step, value in enumerate(before)],
    )
    callback.on_train_begin(args, state, control)
    for step in range(begun_at, len(values)):
        state.global_step = step
        callback.on_evaluate(args, state, control, {"eval_ndcg": values[step]})
        state.best_metric = max(state.best_metric, values[step])
        if control.should_training_stop:
            break
    return step


def test_patience_counts_evaluations_without_a_better_one():
    assert stops_at([0.1, 0.2, 0.2, 0.1, 0.3], patience=2) == 3


def test_patience_does_not_count_the_evaluation_that_a_resumed_run_begins_with():
    rising = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert stops_at(rising, patience=1) == stops_at(rising, patience=1, begun_at=2) == 4


def test_patience_counts_on_after_a_resume():
    falling = [0.5, 0.4, 0.3, 0.2, 0.1]
    assert stops_at(falling, patience=3) == stops_at(falling, patience=3, begun_at=2) == 3


def test_without_a_start_the_loaded_step_is_named(policy, catalog):
    for best, said in ((True, "step 5, the best by eval_ndcg@10, is kept"), (False, "the last step is kept")):
        trainer = trainer_with((5, 0.3), (9, 0.2), best=best)
        kept, verdict = keep_best(trainer, policy, start_dir="x", catalog=catalog, keep_start=True)
        assert kept is policy
        assert verdict == f"{said}: without eval_on_start and eval_strategy it is not held against the start"


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
    return held_by(history, metric=GUARDED)


def row(step, ndcg, har, gold=0.5):
    return {"step": step, "eval_ndcg@10": ndcg, "eval_har@10": har, "eval_gold_mean@10": gold}


def test_the_best_checkpoint_within_the_guards_is_named_with_them(policy, catalog):
    trainer = guarded_trainer(row(5, 0.4, 0.2), row(9, 0.3, 0.1))
    kept, verdict = keep_best(trainer, policy, start_dir="x", catalog=catalog, keep_start=True)
    assert kept is policy
    assert "0.3000 at step 9, the best of 1 among 2 evaluations" in verdict
    assert verdict.endswith("that keep the start's HaR@10 0.1000 and gold 0.5000")


def test_where_all_break_a_guard_the_start_is_kept_and_why_is_said(policy, catalog, tmp_path):
    policy.save_pretrained(tmp_path)
    trainer = guarded_trainer(row(5, 0.4, 0.2), row(9, 0.3, 0.1, gold=0.4))
    kept, verdict = keep_best(trainer, policy, start_dir=tmp_path, catalog=catalog, keep_start=True)
    assert kept is not policy
    assert "all are worse in HaR@10 (0.2000, the start 0.1000), the start is kept" in verdict
