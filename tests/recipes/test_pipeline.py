"""The six stages, one after the other, on a synthetic market: what `make demo` does, in a minute."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import reward_models.sim
from genrec_rl.errors import ConfigError, GenRecError
from recipes import build_sids, evaluate, grpo_sr, prepare, rspo, sft, train_reward, train_xgb
from tests.fixtures import make_policy

SIM = "reward_models.sim.SIM"
SMALL_POLICY = ["--hidden_size", "32", "--num_layers", "1", "--num_heads", "2", "--intermediate_size", "32"]
SMALL_POLICY += ["--num_train_epochs", "1", "--max_history", "8", "--eval_beams", "10", "--disable_tqdm", "true"]
SMALL_RL = ["--num_generations", "4", "--per_device_train_batch_size", "16", "--max_steps", "2", "--eval_steps", "1"]
SMALL_RL += ["--save_steps", "1", "--logging_steps", "1", "--eval_beams", "10", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run every stage once; the tests look at what they left."""
    root = tmp_path_factory.mktemp("runs")
    data, sids = ["--data_dir", str(root / "data")], ["--sid_dir", str(root / "sids")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        market = ["--n_users", "40", "--n_items", "60", "--n_requests", "500"]
        prepare.main(["--source", "synthetic", *market, "--output_dir", str(root / "data")])
        build_sids.main([*data, "--output_dir", str(root / "sids"), "--epochs", "1"])
        sft.main([*data, *sids, *SMALL_POLICY, "--output_dir", str(root / "sft")])
        train_reward.main([*data, *sids, "--epochs", "1", "--output_dir", str(root / "reward")])
        patch.setenv("WANDB_MODE", "offline")
        grpo_sr.main(rl_words(root, "--output_dir", str(root / "grpo_sr"), "--check_reward", "false"))
        patch.setenv("WANDB_MODE", "disabled")
        policies = [f"{name}={root / name}" for name in ("sft", "grpo_sr")]
        reward = ["--reward_dir", str(root / "reward")]
        evaluate.main([*data, *sids, *reward, "--policies", *policies, "--output_dir", str(root / "eval")])
    return root


def rl_words(root, *words) -> list[str]:
    block = json.dumps({"class_path": SIM, "init_args": {"path": str(root / "reward")}})
    stages = ["--data_dir", str(root / "data"), "--sid_dir", str(root / "sids"), "--policy_dir", str(root / "sft")]
    return [*stages, "--reward_model", block, *SMALL_RL, *words]


@pytest.mark.slow
def test_every_stage_finishes(runs):
    for name in ("data", "sids", "sft", "reward", "grpo_sr", "eval"):
        assert json.loads((runs / name / "stage.json").read_text())["key"], name


@pytest.mark.slow
def test_a_policy_knows_what_it_was_taught(runs):
    for name in ("sft", "grpo_sr"):
        assert json.loads((runs / name / "config.json").read_text())["target"] == "page", name


@pytest.mark.parametrize(("page_coef", "target"), [(0.0, "running"), (0.1, "running+page")])
def test_page_coef_counts_as_teaching_pages_before_anything_validates(catalog, monkeypatch, page_coef, target):
    policy, seen = make_policy(catalog), []
    policy.model.config.target = "running"

    def validate(_settings, _args, inputs):
        seen.append(inputs.policy.model.config.target)
        raise ConfigError("far enough")

    monkeypatch.setattr(grpo_sr, "make_validation", validate)
    inputs = SimpleNamespace(policy=policy, dataset=SimpleNamespace(titles=[]))
    with pytest.raises(ConfigError, match="far enough"):
        grpo_sr.make_trainer(None, SimpleNamespace(page_coef=page_coef), inputs, None, checks_reward=False)
    assert seen == [target]


@pytest.mark.slow
def test_report_compares_both_policies_and_the_bars(runs):
    report = json.loads((runs / "eval" / "eval.json").read_text())
    assert report["systems"].keys() == {"popularity", "cooccurrence", "sft", "grpo_sr"}
    for system in ("sft", "grpo_sr"):
        assert report["systems"][system].keys() == {"constrained", "unconstrained"}
        assert report["systems"][system]["constrained"]["HaR@10"]["mean"] == 0
    assert "grpo_sr-sft" in report["paired"]
    predictions = pl.read_parquet(runs / "eval" / "predictions.parquet")
    expected = ["request_id", "user_id", "system", "decoding", "rank", "item_id", "sid", "score", "is_valid", "value"]
    assert predictions.columns == expected
    assert predictions.filter(~pl.col("is_valid"))["item_id"].is_null().all()


@pytest.mark.slow
@pytest.mark.parametrize("softmax", ["vocabulary", "children"])
def test_values_are_taught_saved_and_asked_for(runs, tmp_path, softmax):
    stages = ["--data_dir", str(runs / "data"), "--sid_dir", str(runs / "sids")]
    words = ["--target", "running", "--n_value_buckets", "4", "--value_user_weight", "1", "--softmax", softmax]
    words += ["--action_weights", "2", "1", "0.5", "--logging_steps", "1"]
    sft.main([*stages, *SMALL_POLICY, *words, "--output_dir", str(tmp_path / "vsl")])
    assert len(json.loads((tmp_path / "vsl" / "config.json").read_text())["value_means"]) == 5
    rows = [json.loads(line) for line in (tmp_path / "vsl" / "metrics.jsonl").read_text().splitlines()]
    assert {"train/value_nll", "eval/value@10"} <= {name for row in rows for name in row}
    asked = ["--policies", f"vsl={tmp_path / 'vsl'}", "--reward_model", "none", "--rerank_value", "1"]
    evaluate.main([*stages, *asked, "--baselines", "false", "--output_dir", str(tmp_path / "eval")])
    systems = json.loads((tmp_path / "eval" / "eval.json").read_text())["systems"]
    assert list(systems) == ["vsl", "vsl_valued"]
    assert systems["vsl_valued"]["constrained"]["value@10"]["mean"] > 0
    assert "value@10" in (tmp_path / "eval" / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n_value_buckets", "4"], "needs target item or running"),
        (["--n_value_buckets", "-1"], "n_value_buckets -1"),
        (["--value_coef", "-1"], "value_coef -1"),
        (["--n_value_buckets", "4", "--value_coef", "0"], "value_coef 0 teaches no value token"),
        (["--action_weights", "1", "2", "1"], "action_weights"),
        (["--value_weight_clip", "0.99"], "percentile: give 50 to 100"),
    ],
)
def test_contradicting_value_settings_are_one_clear_error(runs, tmp_path, words, message):
    stages = ["--data_dir", str(runs / "data"), "--sid_dir", str(runs / "sids")]
    with pytest.raises(ConfigError, match=message):
        sft.main([*stages, *SMALL_POLICY, *words, "--output_dir", str(tmp_path / "vsl")])
    assert not (tmp_path / "vsl" / "stage.json").exists()


@pytest.mark.slow
def test_metrics_file_holds_every_stage_of_the_reward(runs):
    rows = [json.loads(line) for line in (runs / "grpo_sr" / "metrics.jsonl").read_text().splitlines()]
    logged = {name for row in rows for name in row}
    expected = {"train/reward/raw", "train/reward/gated", "train/reward/anchored", "train/nll", "train/entropy"}
    expected |= {"train/rollout/hallucination_rate", "train/rollout/gate_pass_rate", "eval/ndcg@10", "eval/har@10"}
    expected |= {"train/rollout/positive_in_group_rate", "train/rollout/zero_advantage_share"}
    expected |= {"train/rollout/coverage", "eval/R_mean@10", "eval/kl_to_start", "eval/top_item_share@10"}
    assert expected <= logged
    table = [json.loads(line) for line in (runs / "grpo_sr" / "rollouts.jsonl").read_text().splitlines()]
    assert {"title", "sid", "reward", "calibrated", "is_valid"} <= table[0].keys()
    magnets = [json.loads(line) for line in (runs / "grpo_sr" / "magnets.jsonl").read_text().splitlines()]
    assert {row["step"] for row in magnets} == {0, 1, 2}
    assert all(0 < row["share"] <= 1 and row["gold"] is None for row in magnets)


@pytest.mark.slow
def test_offline_wandb_run_reads_back_with_the_same_numbers(runs):
    (run,) = (runs / "grpo_sr" / "wandb").glob("offline-run-*")
    wandb = str(Path(sys.executable).parent / "wandb")
    lines = subprocess.run([wandb, "leet", "inspect", "--json", str(run)], capture_output=True, text=True, check=True)
    assert "train/rollout/hallucination_rate" in lines.stdout
    assert "train/reward/anchored" in lines.stdout
    assert "rollouts" in lines.stdout


@pytest.mark.slow
def test_aligned_policy_loads_and_belongs_to_the_catalogue(runs):
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (runs / "grpo_sr").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "term"), [("dpo", "dpo"), ("s_dpo", "s_dpo"), ("rspo_unified", "rspo")])
def test_preference_recipe_and_its_variants_leave_a_stage_of_their_own(runs, tmp_path, variant, term):
    config = Path(rspo.__file__).parent / "variants" / f"{variant}.yaml"
    folder = tmp_path / "out"
    words = ["--config", str(config), "--output_dir", str(folder), "--check_reward", "false"]
    rspo.main(rl_words(runs, *words, "--constrained_rollouts", "true"))
    record = json.loads((folder / "stage.json").read_text())
    assert (record["stage"], record["settings"]["policy_term"]) == ("rspo", term)
    logged = {name for line in (folder / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert {f"train/{term}", "train/preference/tied_group_share", "train/nll", "eval/ndcg@10"} <= logged


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy_dir", "nowhere"], r"no finished 'sft' stage in nowhere.*accelerate launch recipes/sft\.py"),
        (["--nll_coeff", "1"], r"unknown option '--nll_coeff'; did you mean '--nll_coef'"),
        (["--reward_model", '{"class_path": "subprocess.Popen"}'], r"outside the trusted packages"),
        (["--reward_model", '{"class_path": "reward_models.sim.SIMM"}'], r"did you mean 'SIM'"),
        (["--gate", '{"class_path": "genrec_rl.rewards.gates.ValidGate", "init_args": {"tua": 1}}'], r"'tua'"),
        (["--learning_rate", "fast"], r"grpo_sr\.py: argument --learning_rate.*invalid float value: 'fast'"),
    ],
    ids=["missing stage", "typo", "foreign class", "wrong class", "wrong argument", "wrong type"],
)
def test_bad_settings_are_one_clear_error_and_write_nothing(runs, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        grpo_sr.main([*rl_words(runs, "--output_dir", str(tmp_path / "out")), *words])
    assert not (tmp_path / "out").exists()


def test_learning_validation_pages_and_choosing_by_them_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="set load_best_model_at_end: false"):
        sft.main(["--learn_valid", "true", "--output_dir", str(tmp_path / "sft")])


@pytest.mark.slow
def test_catalogue_of_other_data_is_refused(runs, tmp_path):
    build_words = ["--data_dir", str(runs / "data"), "--output_dir", str(tmp_path / "sids"), "--epochs", "1"]
    build_sids.main([*build_words, "--codebook_sizes", "8", "8", "8"])
    sids = ["--sid_dir", str(tmp_path / "sids"), "--reward_model", "none"]
    words = ["--data_dir", str(runs / "data"), *sids, "--policies", f"sft={runs / 'sft'}"]
    with pytest.raises(ConfigError, match="made from other sids"):
        evaluate.main([*words, "--output_dir", str(tmp_path / "eval")])


@pytest.mark.slow
def test_reward_that_orders_nothing_stops_the_run_at_step_0(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(reward_models.sim.SIM, "score", lambda self, contexts, rows: np.full(rows.shape, 0.5))
    with pytest.raises(GenRecError, match=r"re-ranks the start's validation beams.*check_reward: false"):
        grpo_sr.main(
            rl_words(runs, "--output_dir", str(tmp_path / "out"), "--eval_on_start", "true", "--gate", "none")
        )  # fmt: skip  (a gate orders beams too)
    assert not (tmp_path / "out" / "stage.json").exists()


def test_check_of_the_reward_needs_an_evaluation_at_step_0(tmp_path):
    with pytest.raises(ConfigError, match="set eval_on_start: true"):
        grpo_sr.main(["--eval_on_start", "false", "--output_dir", str(tmp_path / "out")])


def test_held_out_users_are_not_chosen_by_where_none_are(tmp_path):
    words = ["--metric_for_best_model", "eval_ndcg@10_held_out", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="no user is held out without an unlabelled_share above 0"):
        grpo_sr.main(words)


@pytest.mark.slow
def test_a_policy_that_learnt_validation_pages_is_judged_by_test_alone(runs, tmp_path):
    shutil.copytree(runs / "sft", tmp_path / "sft")
    record = json.loads((tmp_path / "sft" / "stage.json").read_text())
    record["settings"]["learn_valid"] = True
    (tmp_path / "sft" / "stage.json").write_text(json.dumps(record))
    stages = [
        "--data_dir",
        str(runs / "data"),
        "--sid_dir",
        str(runs / "sids"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    for main, words in (
        (evaluate.main, ["--policies", f"sft={tmp_path / 'sft'}", "--split", "valid", "--reward_model", "none"]),
        (grpo_sr.main, [*rl_words(runs)[6:], "--policy_dir", str(tmp_path / "sft")]),
        (train_xgb.main, ["--policy_dir", str(tmp_path / "sft"), "--max_requests", "20"]),
    ):
        with pytest.raises(ConfigError, match="learnt the validation pages"):
            main([*stages, *words])


@pytest.mark.slow
def test_reward_outside_the_unit_interval_stops_the_run(runs, tmp_path, monkeypatch):
    original = reward_models.sim.SIM.score
    monkeypatch.setattr(reward_models.sim.SIM, "score", lambda self, *args: original(self, *args) + 1)
    with pytest.raises(GenRecError, match=r"outside \[0, 1\]"):
        grpo_sr.main(rl_words(runs, "--output_dir", str(tmp_path / "out")))
    assert not (tmp_path / "out" / "stage.json").exists()


@pytest.mark.slow
def test_requests_without_labels_join_the_prompts(runs, tmp_path):
    words = ["--unlabelled_share", "0.9", "--unlabelled_users", "0.5", "--check_reward", "false"]
    grpo_sr.main([*rl_words(runs, "--output_dir", str(tmp_path / "out"), "--max_steps", "2"), *words])
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/ndcg@10_held_out" in row][-1] == 2
    hits = [
        row["train/rollout/positive_in_group_rate"] for row in rows if "train/rollout/positive_in_group_rate" in row
    ]
    assert max(hits) < 0.5  # nine prompts of ten have no positive to hit
