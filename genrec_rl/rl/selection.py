"""Which checkpoint is kept: the best on validation, and the policy that RL started from is one of them."""

from pathlib import Path

from transformers import Trainer

from genrec_rl.models.policy import Policy, load_policy
from genrec_rl.sids.catalog import Catalog

METRIC = "eval_ndcg@10"


def keep_best(trainer: Trainer, policy: Policy, *, start_dir: str | Path, catalog: Catalog) -> tuple[Policy, str]:
    """Return the policy to keep, and a sentence saying why.

    The trainer has loaded its best checkpoint; where none is better than the evaluation at step 0, the start
    comes back, so that RL never hands on a policy that is worse on validation.
    """
    measured = [(row["step"], row[METRIC]) for row in trainer.state.log_history if METRIC in row]
    start = next((value for step, value in measured if step == 0), None)
    later = [(value, step) for step, value in measured if step > 0]
    if start is None or not later:
        return policy, "the last step is kept: nothing was evaluated before and after training"
    best, step = max(later)
    numbers = f"validation NDCG@10 {start:.4f} at the start, {best:.4f} at step {step}, the best"
    if best > start:
        return policy, numbers
    return load_policy(start_dir, catalog=catalog), f"{numbers}: RL did not help, the start is kept"
