from types import SimpleNamespace

from genrec_rl.sft.callbacks import ProgressBar, TableCallback, TrackerCallback
from genrec_rl.tracking import Tracker

STATE = SimpleNamespace(is_world_process_zero=True, global_step=1)


class Recorder(Tracker):
    def __init__(self):
        self.rows, self.tables = [], []

    def log(self, values, step=None):
        self.rows.append((values, step))

    def log_table(self, name, columns, rows, step):
        self.tables.append((name, rows, step))


def test_rows_are_sorted_into_train_and_eval():
    tracker = Recorder()
    TrackerCallback(tracker).on_log(None, STATE, None, logs={"loss": 1.0, "eval_hr@10": 0.2, "reward/raw": 0.3})
    ((row, step),) = tracker.rows
    assert {name: row[name] for name in ("train/loss", "eval/hr@10", "train/reward/raw")} == {
        "train/loss": 1.0,
        "eval/hr@10": 0.2,
        "train/reward/raw": 0.3,
    }
    assert step == 1


def test_seconds_are_those_of_training_since_the_row_before(monkeypatch):
    """Two steps of 2 and 1 seconds, an evaluation of 9, a step of 5."""
    clock = iter([10.0, 12.0, 13.0, 22.0, 27.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    tracker = Recorder()
    callback = TrackerCallback(tracker)
    callback.on_train_begin(None, STATE, None)
    callback.on_step_end(None, STATE, None)
    callback.on_step_end(None, STATE, None)
    callback.on_log(None, STATE, None, logs={"loss": 1.0})
    callback.on_log(None, STATE, None, logs={"eval_hr@10": 0.2})
    callback.on_evaluate(None, STATE, None)
    callback.on_step_end(None, STATE, None)
    callback.on_log(None, STATE, None, logs={"loss": 1.0})
    assert [row["train/seconds"] for row, _ in tracker.rows] == [3.0, 0.0, 5.0]


def test_other_ranks_log_nothing():
    tracker = Recorder()
    other = SimpleNamespace(is_world_process_zero=False, global_step=1)
    TrackerCallback(tracker).on_log(None, other, None, logs={"loss": 1.0})
    assert tracker.rows == []


def test_tables_come_at_the_first_step_and_then_every_so_often():
    tracker = Recorder()
    callback = TableCallback(tracker, name="rollouts", columns=("x",), rows=lambda: [(1,)], every=3)
    for step in range(1, 8):
        callback.on_step_end(None, SimpleNamespace(is_world_process_zero=True, global_step=step), None)
    assert [step for _, _, step in tracker.tables] == [1, 4, 7]


def test_bar_shows_the_newest_of_each_chosen_number():
    bar = ProgressBar(["reward/raw", "eval_ndcg@10"])
    shown = {}
    bar.training_bar = SimpleNamespace(set_postfix=lambda values, refresh: shown.update(values))
    bar.on_log(None, STATE, None, logs={"reward/raw": 0.5, "other": 1})
    bar.on_log(None, STATE, None, logs={"eval_ndcg@10": 0.25})
    assert shown == {"raw": "0.5", "eval_ndcg@10": "0.25"}
