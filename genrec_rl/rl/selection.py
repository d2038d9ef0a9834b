"""Which checkpoint is kept: the best on validation, held against the policy that RL started from."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from typing_extensions import override

from genrec_rl.decoding import validation
from genrec_rl.errors import RewardError
from genrec_rl.models.policy import Policy, load_policy
from genrec_rl.rl.choices import GUARDED
from genrec_rl.sids.catalog import Catalog

METRIC = "eval_ndcg@10"
GUARDS = {"eval_har@10": ("HaR@10", -1.0), "eval_gold_mean@10": ("gold", 1.0)}
"""What ``guard`` holds against the start where it is measured: its name, and the sign of the better direction."""
RERANKED, GAIN_ERROR = (f"eval_{name}" for name in (validation.RERANKED, validation.GAIN_ERROR))


class RewardCheck(TrainerCallback):
    """Stops a run at step 0 whose reward model orders the start's beams worse than the start does itself.

    What such a reward model teaches is not what users took next: the reward would rise, and accuracy fall. Where the
    difference is within its interval, a warning says so. The reward is looked at behind its gate, as it trains
    (``rewards.scoring.GatedReward``).
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


class Patience(EarlyStoppingCallback):
    """Stops after so many evaluations without a better one, those before a resumed run's checkpoint among them.

    The evaluation that a resumed run begins with does not count: it is that checkpoint's again.
    """

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._begun_at = state.global_step
        evaluated = {row["step"] for row in state.log_history if any(name.startswith("eval_") for name in row)}
        self.early_stopping_patience_counter = sum(step > (state.best_global_step or 0) for step in evaluated)

    @override
    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        if state.global_step > self._begun_at:
            super().on_evaluate(args, state, control, metrics, **kwargs)


def keep_best(
    trainer: Trainer, policy: Policy, *, start_dir: str | Path, catalog: Catalog, keep_start: bool
) -> tuple[Policy, str]:
    """Return the policy to hand on, and a sentence that compares it with the start.

    The trainer holds the checkpoint that it loaded (``load_best_model_at_end``) or its last step. Where that is not
    better than the evaluation at step 0, the sentence says so, and with ``keep_start`` the start comes back.
    """
    measured = [row for row in trainer.state.log_history if METRIC in row]
    start = next((row for row in measured if row["step"] == 0), None)
    later = [row for row in measured if row["step"] > 0]
    chosen_by = trainer.args.metric_for_best_model
    loaded = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    step = -1 if loaded is None else int(Path(loaded).name.rpartition("-")[2])
    if start is None or not later:
        which = "the last step" if loaded is None else f"step {step}, the best by {chosen_by},"
        return policy, f"{which} is kept: without eval_on_start and eval_strategy it is not held against the start"
    held = next((row for row in later if row["step"] == step), later[-1])
    which = "the last" if loaded is None else "the best"
    numbers = (
        f"validation NDCG@10 {start[METRIC]:.4f} at the start, {held[METRIC]:.4f} at step {held['step']}, {which}"
    )
    broken = []
    if chosen_by == GUARDED:
        steps = {row["step"] for row in later}  # (a resumed run evaluates its checkpoint once more)
        kept = {row["step"] for row in later if not broken_guards(row, start)}
        broken = broken_guards(held, start)
        numbers += f" of {len(kept)} among {len(steps)} evaluations that keep the start's {_guards_of(start)}"
    if held[METRIC] > start[METRIC] and not broken:
        return policy, numbers
    why = "RL did not help" if not broken else f"all are worse in {' or '.join(broken)}"
    if keep_start:
        return load_policy(start_dir, catalog=catalog), f"{numbers}: {why}, the start is kept"
    return policy, f"{numbers}: {why}, so serve the start ({start_dir})"


def broken_guards(row: Mapping[str, float], start: Mapping[str, float]) -> list[str]:
    """Name what an evaluation has worse than the start: HaR@10 above it, or the gold model's mean below it."""
    return [
        f"{name} ({row[key]:.4f}, the start {start[key]:.4f})"
        for key, (name, sign) in GUARDS.items()
        if key in start and key in row and sign * (row[key] - start[key]) < 0
    ]


def guarded(measured: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return NDCG@10, less 1 where a guard is broken, so that any evaluation that keeps them all comes first.

    Args:
        measured: this evaluation.
        history: the rows logged before, of which step 0's evaluation is the start.
    """
    start = next((row for row in history if row["step"] == 0 and METRIC in row), None)
    is_broken = start is not None and bool(broken_guards(measured, start))
    return {GUARDED: measured[METRIC] - is_broken}


def _guards_of(start: Mapping[str, float]) -> str:
    held = [f"{name} {start[key]:.4f}" for key, (name, _) in GUARDS.items() if key in start]
    return " and ".join(held) or "nothing (HaR was not measured, and there is no gold model)"
