"""What a user sees of a training run: one progress bar with the numbers that matter, and the run's records."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from typing_extensions import override

from genrec_rl.tracking import Tracker


class ProgressBar(ProgressCallback):
    """transformers' bar with the newest numbers behind it, in place of a printed dictionary per log line."""

    def __init__(self, shown: Sequence[str]) -> None:
        super().__init__()
        self.shown = shown
        self._newest: dict[str, str] = {}

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the chosen numbers after the time left."""
        if state.is_world_process_zero and self.training_bar is not None:
            found = {name: logs[name] for name in self.shown if logs and logs.get(name) is not None}
            self._newest |= {name.rpartition("/")[2]: f"{float(value):.4g}" for name, value in found.items()}
            self.training_bar.set_postfix(self._newest, refresh=False)


class TrackerCallback(TrainerCallback):
    """Sends every logged row to the tracker: ``train/<name>`` and ``eval/<name>``.

    ``train/seconds`` is what training took since the row before, loading of rows included, evaluations and
    checkpoints not.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._seconds = self._begun = 0.0

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; so do the ends of evaluations and checkpoints."""
        self._begun = time.perf_counter()

    on_evaluate = on_save = on_train_begin

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the clock, and let it go on."""
        now = time.perf_counter()
        self._seconds += now - self._begun
        self._begun = now

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log one row on the main process."""
        if state.is_world_process_zero and logs:
            row = {_section(name): value for name, value in logs.items()}
            row["train/seconds"], self._seconds = self._seconds, 0.0
            self.tracker.log(row, step=state.global_step)


class TableCallback(TrainerCallback):
    """Logs a table of samples every ``every`` steps."""

    def __init__(
        self, tracker: Tracker, *, name: str, columns: Sequence[str], rows: Callable[[], Sequence[Any]], every: int
    ) -> None:
        self.tracker, self.name, self.columns, self.rows, self.every = tracker, name, columns, rows, every

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the newest samples."""
        if state.is_world_process_zero and (state.global_step - 1) % self.every == 0:
            self.tracker.log_table(self.name, self.columns, self.rows(), state.global_step)


class EvaluationTableCallback(TrainerCallback):
    """Logs a table after every evaluation."""

    def __init__(
        self, tracker: Tracker, *, name: str, columns: Sequence[str], rows: Callable[[], Sequence[Any]]
    ) -> None:
        self.tracker, self.name, self.columns, self.rows = tracker, name, columns, rows

    @override
    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the newest rows."""
        if state.is_world_process_zero:
            self.tracker.log_table(self.name, self.columns, self.rows(), state.global_step)


def use_progress_bar(trainer: Trainer, shown: Sequence[str]) -> None:
    """Replace the trainer's printed dictionaries by the bar."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressBar(shown))


def _section(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
