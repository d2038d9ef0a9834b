import json

import pytest

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.tracking import Tracker, finish_stage, is_main_process, require_stage, run_recipe, stage_key


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_written_with_their_step_and_nan_as_null(tmp_path):
    with Tracker(tmp_path, job_type="test", config={}) as tracker:
        tracker.log({"a": 1.5}, step=3)
        tracker.log({"a": float("nan")})
    assert rows_of(tmp_path / "metrics.jsonl") == [{"step": 3, "a": 1.5}, {"a": None}]


def test_tables_are_written_row_by_row(tmp_path):
    with Tracker(tmp_path, job_type="test", config={}) as tracker:
        tracker.log_table("samples", ["x", "y"], [(1, "a"), (2, "b")], step=7)
    assert rows_of(tmp_path / "samples.jsonl") == [{"step": 7, "x": 1, "y": "a"}, {"step": 7, "x": 2, "y": "b"}]


def test_a_second_run_into_the_same_folder_replaces_the_tables(tmp_path):
    for value in (1, 2):
        with Tracker(tmp_path, job_type="test", config={}) as tracker:
            tracker.log_table("samples", ["x"], [(value,)], step=0)
    assert rows_of(tmp_path / "samples.jsonl") == [{"step": 0, "x": 2}]


def test_a_tracker_of_another_rank_writes_nothing(tmp_path):
    with Tracker(tmp_path / "run", job_type="test", config={}, enabled=False) as tracker:
        tracker.log({"a": 1.0})
    assert not (tmp_path / "run").exists()


def test_wandb_that_cannot_start_is_one_warning_and_metrics_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("wandb.init", lambda **_: 1 / 0)
    with Tracker(tmp_path, job_type="test", config={}) as tracker:
        tracker.log({"a": 1.0})
    assert "metrics.jsonl goes on" in capsys.readouterr().out
    assert rows_of(tmp_path / "metrics.jsonl") == [{"a": 1.0}]


def test_wandb_that_dies_in_the_middle_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    class Dying:
        dir = str(tmp_path)

        def log(self, _):
            raise OSError("disk full")

        def finish(self):
            raise OSError("disk full")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("wandb.init", lambda **_: Dying())
    with Tracker(tmp_path, job_type="test", config={}) as tracker:
        tracker.log({"a": 1.0})
        tracker.log({"a": 2.0})
    assert "disk full" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "metrics.jsonl")) == 2


def test_no_account_means_offline(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr("wandb.init", lambda **settings: seen.update(settings))
    with Tracker(tmp_path / "run", job_type="test", config={}) as tracker:
        tracker.log({"a": 1.0})
    assert seen["mode"] == "offline"


def test_stage_key_follows_settings_and_inputs_but_not_the_folder(tmp_path):
    key = stage_key({"a": 1, "output_dir": "x"}, {})
    assert key == stage_key({"a": 1, "output_dir": "y"}, {})
    assert key != stage_key({"a": 2}, {})
    assert key != stage_key({"a": 1}, {"data": tmp_path})


def test_a_run_that_is_refused_before_it_logs_leaves_the_older_one_whole(tmp_path):
    finish_stage(tmp_path, stage="data", settings={}, inputs={}, seconds=1.0)
    (tmp_path / "metrics.jsonl").write_text("old")
    with pytest.raises(ConfigError), Tracker(tmp_path, job_type="test", config={}):
        raise ConfigError("no")
    assert (tmp_path / "metrics.jsonl").read_text() == "old"
    with Tracker(tmp_path, job_type="test", config={}) as tracker:
        tracker.log({"a": 1.0})
    with pytest.raises(ConfigError, match="no finished"):
        require_stage(tmp_path, stage="data", command="make it")


def test_a_resumed_run_goes_on_in_its_files(tmp_path):
    for resume in (False, True):
        with Tracker(tmp_path, job_type="test", config={}, resume=resume) as tracker:
            tracker.log({"a": 1.0})
    assert len(rows_of(tmp_path / "metrics.jsonl")) == 2


def test_a_stage_made_from_other_inputs_is_refused(tmp_path):
    data, other, sids = (tmp_path / name for name in ("data", "other", "sids"))
    for folder, seed in ((data, 0), (other, 1)):
        folder.mkdir()
        finish_stage(folder, stage="data", settings={"seed": seed}, inputs={}, seconds=1.0)
    sids.mkdir()
    finish_stage(sids, stage="sids", settings={}, inputs={"data": data}, seconds=1.0)
    assert require_stage(sids, stage="sids", command="make it", made_from={"data": data}) == sids
    with pytest.raises(ConfigError, match="made from other data"):
        require_stage(sids, stage="sids", command="make it", made_from={"data": other})


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "stage.json").write_text('{"key":')
    with pytest.raises(DataError, match=r"stage\.json is damaged"):
        require_stage(tmp_path, stage="data", command="make it")


def test_a_stage_is_known_by_its_record(tmp_path):
    with pytest.raises(ConfigError, match=f"no finished 'data' stage in {tmp_path}; make it with `make it "):
        require_stage(tmp_path, stage="data", command="make it")
    finish_stage(tmp_path, stage="data", settings={"a": 1}, inputs={}, seconds=1.0)
    assert require_stage(tmp_path, stage="data", command="make it") == tmp_path


def test_an_error_of_ours_is_one_line_and_exit_code_2(capsys):
    def main():
        raise ConfigError("value [x] is wrong")

    with pytest.raises(SystemExit) as stop:
        run_recipe(main)
    assert stop.value.code == 2
    assert "ConfigError: value [x] is wrong" in capsys.readouterr().err


def test_an_error_of_others_keeps_its_trace():
    with pytest.raises(ZeroDivisionError):
        run_recipe(lambda: 1 / 0)


def test_only_rank_0_is_the_main_process(monkeypatch):
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
