"""Pictures are made where there is something to draw, and refused where there is not."""

import json

import pytest
from matplotlib.image import imread

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.evaluation import plots
from genrec_rl.types import EvalReport, Interval

ROW = {f"{name}@{k}": Interval(0.01 * k, 0.005 * k, 0.012 * k) for name in ("HR", "NDCG", "HaR") for k in (1, 10)}


@pytest.fixture
def report():
    bars = {"popularity": {"constrained": ROW}}
    policies = {name: {"constrained": ROW, "unconstrained": ROW} for name in ("sft", "grpo_sr")}
    return EvalReport({"requests": 941}, bars | policies)


def log_run(folder, rows):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def rl_run(tmp_path):
    rows = [{"step": step, "train/reward/raw": 0.1 * step, "eval/ndcg@10": 0.05} for step in range(3)]
    return log_run(tmp_path / "grpo_sr", [*rows, {"step": 3, "train/reward/raw": None}])


def has_ink(path):
    return imread(path)[..., :3].min() < 0.5


@pytest.mark.slow
def test_every_picture_is_written_for_rl_policies(tmp_path, report, rl_run):
    sft_run = log_run(tmp_path / "sft", [{"step": 1, "train/loss": 2.0}])
    plots.plot_all(report, {"sft": sft_run, "grpo_sr": rl_run}, tmp_path)
    assert all(has_ink(tmp_path / name) for name in ("accuracy.png", "validity.png", "training.png"))


@pytest.mark.slow
def test_no_training_picture_without_rl(tmp_path, report):
    plots.plot_all(report, {"sft": tmp_path / "nowhere"}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.png", "validity.png"]


def test_validity_needs_a_freely_decoded_system(tmp_path):
    report = EvalReport({"requests": 1}, {"popularity": {"constrained": ROW}})
    with pytest.raises(ConfigError, match="no system was decoded without constraint"):
        plots.plot_validity(report, tmp_path / "x.png")


def test_run_without_rewards_names_its_file(tmp_path):
    run = log_run(tmp_path / "sft", [{"step": 1, "train/loss": 2.0}])
    with pytest.raises(DataError, match=r"sft/metrics\.jsonl holds none of train/reward/raw"):
        plots.plot_training({"sft": run}, tmp_path / "x.png")


def test_missing_log_names_its_file(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.jsonl is missing"):
        plots.plot_training({"sft": tmp_path}, tmp_path / "x.png")
