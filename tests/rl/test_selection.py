from types import SimpleNamespace

import pytest

from genrec_rl.rl.selection import keep_best


def trainer_with(*measured):
    rows = [{"step": step, "eval_ndcg@10": value} for step, value in measured] + [{"step": 1, "loss": 0.5}]
    return SimpleNamespace(state=SimpleNamespace(log_history=rows))


def test_a_better_checkpoint_is_kept(policy, catalog):
    kept, verdict = keep_best(
        trainer_with((0, 0.1), (5, 0.3), (9, 0.2)), policy, start_dir="nowhere", catalog=catalog
    )
    assert kept is policy
    assert verdict == "validation NDCG@10 0.1000 at the start, 0.3000 at step 5, the best"


@pytest.mark.parametrize("best", [0.1, 0.05])
def test_without_improvement_the_start_comes_back(policy, catalog, tmp_path, best):
    policy.save_pretrained(tmp_path)
    kept, verdict = keep_best(trainer_with((0, 0.1), (5, best)), policy, start_dir=tmp_path, catalog=catalog)
    assert kept is not policy
    assert verdict.endswith("RL did not help, the start is kept")


def test_without_evaluations_the_last_step_is_kept(policy, catalog):
    kept, verdict = keep_best(trainer_with(), policy, start_dir="nowhere", catalog=catalog)
    assert kept is policy
    assert verdict.startswith("the last step is kept")
