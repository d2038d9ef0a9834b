import json

import numpy as np
import pytest

from genrec_rl.config import load_component
from genrec_rl.data.store import load_dataset
from genrec_rl.errors import ConfigError
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.rewards.scoring import score_candidates
from genrec_rl.sids.catalog import Catalog
from recipes import train_reward


def train(stages, output_dir, *words):
    folders = ["--data_dir", str(stages / "data"), "--sid_dir", str(stages / "sids")]
    train_reward.main([*folders, "--output_dir", str(output_dir), "--epochs", "2", "--batch_size", "16", *words])
    return json.loads((output_dir / "reward.json").read_text())


def test_it_writes_a_model_that_the_next_stage_loads(stages, tmp_path, capsys):
    written = train(stages, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"model.safetensors", "manifest.json", "reliability.png", "metrics.jsonl", "stage.json"}
    catalog = Catalog.load(stages / "sids")
    model = load_component(
        {"class_path": "reward_models.sim.SIM", "init_args": {"path": str(tmp_path)}},
        expected=RewardModel,
        key="reward_model",
        factory="from_pretrained",
        provided={"catalog": catalog},
    )
    assert model.fingerprint == written["fingerprint"]
    example = load_dataset(stages / "data").examples("valid")[0]
    assert score_candidates(model, [example.context], np.array([[0, 1, -1]])).shape == (1, 3)
    assert {"exposed", "uniform", "popular"} == set(written["report"]["slices"])
    assert written["gates"]["embedding"]["positives_pass"] > written["gates"]["embedding"]["random_pass"] - 0.2
    assert "held-out users" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("learn_from", "weights"), [("log+proposed", ["--order_weight", "1"]), ("proposed", [])], ids=str
)
def test_it_learns_from_a_policys_proposals_and_is_judged_inside_them(
    stages, tmp_path, policy_dir, learn_from, weights
):
    words = ["--policy_dir", str(policy_dir), "--beams", "10", "--max_requests", "100", "--epochs", "1"]
    written = train(stages, tmp_path, *words, *weights, "--learn_from", learn_from)
    report = written["report"]
    assert report["slices"]["proposed"]["model"]["n_candidates"] == 10 * report["n_pages"]
    assert report["calibration"] == report["slices"]["proposed"]["calibration"]
    assert (report["order_calibration"] is not None) == bool(weights)
    assert set(written["gates"]) == {"embedding", "sid_prefix", "valid", "search"}
    recorded = json.loads((tmp_path / "stage.json").read_text())
    assert recorded["settings"]["learn_from"] == learn_from
    assert set(recorded["inputs"]) == {"data", "sids", "policy"}


def test_judged_by_a_policy_it_stays_what_the_log_taught(stages, tmp_path, policy_dir):
    words = ["--policy_dir", str(policy_dir), "--beams", "10", "--learn_from", "log"]
    judged, plain = train(stages, tmp_path / "judged", *words), train(stages, tmp_path / "plain")
    assert judged["fingerprint"] == plain["fingerprint"]
    assert judged["report"]["calibration"] == plain["report"]["calibration"]
    assert set(judged["report"]["slices"]) == {*plain["report"]["slices"], "proposed"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learn_from", "proposed"], "learn_from 'proposed' needs a policy_dir"),
        (["--policy_dir", "nowhere"], "no finished 'sft' stage"),
        (["--max_requests", "0"], "max_requests 0 must be at least 1"),
        (["--beams", "0"], "beams 0 must be at least 1"),
        (["--order_weight", "-1"], "order_weight -1.0 must be at least 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(stages, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        train(stages, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_the_same_seed_gives_the_same_model_and_report(stages, tmp_path):
    first, second = (train(stages, tmp_path / name, "--search", "hard") for name in "ab")
    assert first["fingerprint"] == second["fingerprint"]
    assert first["report"] == second["report"]


def test_hard_search_by_category_needs_the_column(stages, tmp_path):
    has_category = "category" in load_dataset(stages / "data").items.columns
    words = ["--search", "hard", "--search_key", "category"]
    if has_category:
        train(stages, tmp_path, *words)
    else:
        with pytest.raises(ConfigError, match="no column category"):
            train(stages, tmp_path, *words)


@pytest.mark.parametrize(("missing", "command"), [("data", "prepare.py"), ("sids", "build_sids.py")])
def test_a_missing_stage_is_one_line_with_the_command_that_makes_it(stages, tmp_path, missing, command):
    folders = {name: str(stages / name) for name in ("data", "sids")} | {missing: str(tmp_path / "nothing")}
    with pytest.raises(ConfigError, match=command):
        train_reward.main(["--data_dir", folders["data"], "--sid_dir", folders["sids"]])


def test_an_unknown_key_is_refused_with_the_nearest(stages, tmp_path):
    with pytest.raises(ConfigError, match="did you mean '--top_k'"):
        train(stages, tmp_path, "--topk", "3")
