"""Which checkpoint is kept: the best on validation, held against the policy that RL started from."""

import warnings
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from genrec_rl.decoding import validation
from genrec_rl.errors import RewardError
from genrec_rl.models.policy import Policy, load_policy
from genrec_rl.sids.catalog import Catalog

METRIC = "eval_ndcg@10"
RERANKED, GAIN_ERROR = (f"eval_{name}" for name in (validation.RERANKED, validation.GAIN_ERROR))


class RewardCheck(TrainerCallback):
    """Stops a run at step 0 whose reward model orders the start's beams worse than the start does itself.

    What such a reward model teaches is not what users took next: the reward would rise, and accuracy fall. Where the
    difference is within its interval, a warning says so. The reward is looked at as it is, without the gate.
    """

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Compare the first evaluation's NDCG@10 with that of the same beams re-ranked.

        Raises:
            RewardError: when the 95 % interval of the gain has nothing above 0.
        """
        measured = kwargs["metrics"]
        if state.global_step > 0 or RERANKED not in measured:
            return
        gain, margin = measured[RERANKED] - measured[METRIC], 1.96 * measured[GAIN_ERROR]
        found = (
            f"the reward model re-ranks the start's validation beams from NDCG@10 {measured[METRIC]:.4f} to "
            f"{measured[RERANKED]:.4f} ({gain:+.4f} [{gain - margin:+.4f}, {gain + margin:+.4f}])"
        )
        if gain + margin <= 0:
            raise RewardError(
                f"{found}: train a better one (recipes/train_xgb.py --policy_dir), or set check_reward: false"
            )
        if gain - margin <= 0:
            warnings.warn(f"{found}: it is not shown to know more than the start does", stacklevel=2)


def keep_best(
    trainer: Trainer, policy: Policy, *, start_dir: str | Path, catalog: Catalog, keep_start: bool
) -> tuple[Policy, str]:
    """Return the policy to hand on, and a sentence that compares it with the start.

    The trainer holds its best checkpoint (``load_best_model_at_end`` by ``METRIC``) or its last one. Where that is
    not better than the evaluation at step 0, the sentence says so, and with ``keep_start`` the start comes back.
    """
    measured = [(row["step"], row[METRIC]) for row in trainer.state.log_history if METRIC in row]
    start = next((value for step, value in measured if step == 0), None)
    later = [(value, step) for step, value in measured if step > 0]
    if start is None or not later:
        return policy, "the last step is kept: nothing was evaluated before and after training"
    has_best = trainer.args.load_best_model_at_end and trainer.args.metric_for_best_model == METRIC
    held, step = max(later) if has_best else later[-1]
    which = "the best" if has_best else "the last"
    numbers = f"validation NDCG@10 {start:.4f} at the start, {held:.4f} at step {step}, {which}"
    if held > start:
        return policy, numbers
    if keep_start:
        return load_policy(start_dir, catalog=catalog), f"{numbers}: RL did not help, the start is kept"
    return policy, f"{numbers}: RL did not help, so serve the start ({start_dir})"
