"""The recipe from words to files, on a synthetic market and two untrained policies."""

import json

import polars as pl
import pytest

from genrec_rl.data.sources.synthetic import make_synthetic
from genrec_rl.data.store import load_dataset, write_dataset
from genrec_rl.errors import ConfigError
from genrec_rl.models.policy import BackboneSize, PromptGrammar, create_policy
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import finish_stage
from recipes import evaluate
from reward_models.scripted import Popularity


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    import numpy as np

    root = tmp_path_factory.mktemp("runs")
    write_dataset(make_synthetic(n_users=40, n_items=60, n_requests=500, seed=0), root / "data")
    dataset = load_dataset(root / "data")
    codes = np.stack(np.unravel_index(np.arange(60), (4, 4, 4)), axis=1).astype(np.int32)
    catalog = Catalog(
        codes=codes,
        codebook_sizes=(4, 4, 4),
        item_ids=np.array(dataset.item_ids),
        vectors=np.eye(60, dtype=np.float32),
        centroids=[],
        items_fingerprint=dataset.items_fingerprint,
        popularity=dataset.popularity,
    )
    catalog.save(root / "sids")
    for stage in ("data", "sids"):
        finish_stage(root / stage, stage=stage, settings={}, inputs={}, seconds=0)
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
    evaluate.main([*words, *reward_words(stages), "--max_requests", "20"])
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
def test_policies_alone_without_reward(words, tmp_path):
    evaluate.main([*words, "--reward_model", "none", "--baselines", "false", "--split", "valid"])
    content = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert list(content["systems"]) == ["sft", "grpo_sr"]
    assert content["protocol"]["split"].startswith("valid pages")
    assert "R@1" not in content["systems"]["sft"]["constrained"]


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
