"""The recipe from words to files, on a synthetic market and two untrained policies."""

import json

import polars as pl
import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.models.policy import BackboneSize, PromptGrammar, create_policy
from genrec_rl.sids.catalog import Catalog
from recipes import evaluate
from reward_models.scripted import Popularity
from tests.fixtures import write_market


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    dataset, catalog = write_market(root)
    for seed, name in enumerate(("sft", "grpo_sr")):
        policy = create_policy(catalog, grammar=PromptGrammar(), backbone=BackboneSize(16, 1, 2, 16), seed=seed)
        policy.save_pretrained(root / name)
    Popularity(dataset.popularity).save_pretrained(root / "reward")
    return root


@pytest.fixture
def words(stages, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return [
        "--data_dir", str(stages / "data"), "--sid_dir", str(stages / "sids"), "--output_dir", str(tmp_path / "eval"),
        "--policies", f"sft={stages / 'sft'}", f"grpo_sr={stages / 'grpo_sr'}",
        "--ks", "1", "10", "--beams", "10", "--bootstrap_draws", "20",
    ]  # fmt: skip


def reward_words(stages):
    block = {"class_path": "reward_models.scripted.Popularity", "init_args": {"path": "elsewhere"}}
    return ["--reward_model", json.dumps(block), "--reward_dir", str(stages / "reward")]


@pytest.mark.slow
def test_recipe_writes_all_it_promises(stages, words, tmp_path, capsys):
    evaluate.main([*words, *reward_words(stages), "--max_requests", "20", "--exclude_seen", "false"])
    written = {path.name for path in (tmp_path / "eval").iterdir()}
    promised = {"eval.json", "predictions.parquet", "table.md", "accuracy.png", "validity.png", "stage.json"}
    assert promised <= written
    content = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert list(content["systems"]) == ["popularity", "cooccurrence", "sft", "grpo_sr"]
    assert content["systems"]["popularity"]["constrained"]["R@1"]["mean"] == 1  # the reward IS popularity here
    assert content["systems"]["sft"]["constrained"]["HaR@10"]["mean"] == 0
    assert 0 < content["systems"]["sft"]["unconstrained"]["HaR@10"]["mean"] <= 1
    assert "grpo_sr-sft" in content["paired"]
    predictions = pl.read_parquet(tmp_path / "eval" / "predictions.parquet")
    assert len(predictions) == 20 * 10 * (1 + 1 + 2 + 2)
    table = (tmp_path / "eval" / "table.md").read_text()
    assert "Smoke test only: at most 20 requests" in table
    assert "grpo_sr against sft, constrained" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("excluded", ["true", "false"])
def test_no_system_answers_with_the_history_where_it_is_excluded(words, tmp_path, excluded):
    evaluate.main([*words, "--reward_model", "none", "--max_requests", "20", "--exclude_seen", excluded])
    content = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert ("not excluded" in content["protocol"]["ranking"]) == (excluded == "false")
    seen = [of["constrained"]["seen@10"]["mean"] for of in content["systems"].values()]
    assert len(seen) == 4
    assert (max(seen) > 0) == (excluded == "false")


@pytest.mark.slow
def test_policies_alone_without_reward(words, tmp_path):
    evaluate.main([*words, "--reward_model", "none", "--baselines", "false", "--split", "valid"])
    content = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert list(content["systems"]) == ["sft", "grpo_sr"]
    assert content["protocol"]["split"].startswith("valid pages")
    assert "R@1" not in content["systems"]["sft"]["constrained"]


@pytest.mark.slow
@pytest.mark.parametrize("others", [[], ["sft"]])
def test_policy_of_real_items_is_asked_constrained_only(stages, words, tmp_path, others):
    size = BackboneSize(16, 1, 2, 16)
    made = create_policy(Catalog.load(stages / "sids"), grammar=PromptGrammar(), backbone=size, softmax="children")
    made.save_pretrained(tmp_path / "fast")
    policies = [f"fast={tmp_path / 'fast'}", *(f"{name}={stages / name}" for name in others)]
    evaluate.main(
        [*words, "--reward_model", "none", "--baselines", "false", "--max_requests", "20", "--policies", *policies]
    )
    systems = json.loads((tmp_path / "eval" / "eval.json").read_text())["systems"]
    assert set(systems["fast"]) == {"constrained"}
    assert (tmp_path / "eval" / "validity.png").is_file() == bool(others)
    assert all(set(systems[name]) == {"constrained", "unconstrained"} for name in others)


def test_a_cut_history_with_seen_items_excluded_is_refused(words):
    with pytest.raises(ConfigError, match=r"older items in than the newest 5 \(max_history\)"):
        evaluate.main([*words, "--exclude_seen", "true", "--max_history", "5"])


def test_word_without_equals_is_refused_before_anything_loads(tmp_path):
    with pytest.raises(ConfigError, match=r"'runs/demo/sft' is not name=DIR"):
        evaluate.main(["--data_dir", str(tmp_path), "--policies", "runs/demo/sft", "--reward_model", "none"])


def test_missing_reward_model_names_its_command(words, tmp_path):
    with pytest.raises(ConfigError, match=r"no folder '.*nowhere'; make it with `python recipes/train_reward.py"):
        evaluate.main([*words, "--reward_dir", str(tmp_path / "nowhere")])


def test_missing_data_names_its_command(words, tmp_path):
    with pytest.raises(ConfigError, match=r"recipes/prepare\.py"):
        evaluate.main([*words, "--reward_model", "none", "--data_dir", str(tmp_path / "nowhere")])


def test_unknown_key_offers_the_nearest():
    with pytest.raises(ConfigError, match="--policies"):
        evaluate.main(["--policy", "sft=x"])


def test_reranking_without_a_reward_model_is_refused(words):
    with pytest.raises(ConfigError, match="rerank needs a reward_model"):
        evaluate.main([*words, "--reward_model", "none", "--rerank", "1"])


@pytest.mark.slow
def test_rerank_adds_each_policy_in_the_order_of_its_rewards(stages, words, tmp_path):
    evaluate.main([*words, *reward_words(stages), "--max_requests", "20", "--rerank", "1000", "--baselines", "false"])
    systems = json.loads((tmp_path / "eval" / "eval.json").read_text())["systems"]
    assert list(systems) == ["sft", "grpo_sr", "sft_reranked", "grpo_sr_reranked"]
    plain, reranked = (systems[name]["constrained"] for name in ("sft", "sft_reranked"))
    assert reranked["R@10"]["mean"] == plain["R@10"]["mean"]  # the same ten items,
    assert reranked["R@1"]["mean"] == reranked["R@10"]["mean"] > plain["R@1"]["mean"]  # the best of them first
