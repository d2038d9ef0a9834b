import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from genrec_rl.data.store import load_dataset
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.policies import BeamOptions, load_recommender
from genrec_rl.rewards.components import load_reward_model
from genrec_rl.rewards.scoring import score_candidates
from genrec_rl.sids.catalog import Catalog
from recipes import train_xgb
from reward_models.scripted import Popularity
from reward_models.sim.fit import halve_users
from reward_models.xgb import XGB


def train(stages, output_dir, *words):
    folders = ["--data_dir", str(stages / "data"), "--sid_dir", str(stages / "sids")]
    train_xgb.main([*folders, "--output_dir", str(output_dir), "--n_trees", "20", "--n_threads", "1", *words])
    return json.loads((output_dir / "reward.json").read_text())


def test_it_writes_a_model_that_the_next_stage_loads(stages, tmp_path):
    written = train(stages, tmp_path)
    catalog = Catalog.load(stages / "sids")
    block = {"class_path": "reward_models.xgb.XGB", "init_args": {"path": str(tmp_path)}}
    model = load_reward_model(block, catalog=catalog)
    assert model.fingerprint == written["fingerprint"]
    (example, *_) = load_dataset(stages / "data").examples("valid")
    assert score_candidates(model, [example.context], example.items[None]).shape == (1, len(example.items))
    assert {"reliability.png", "stage.json", "manifest.json"} <= {path.name for path in tmp_path.iterdir()}


def test_with_a_policy_it_is_judged_inside_the_policys_own_groups(stages, tmp_path, policy_dir):
    words = ["--policy_dir", str(policy_dir), "--beams", "10", "--objective", "rank:ndcg", "--requests", "running"]
    written = train(stages, tmp_path, *words, "--max_requests", "150")
    proposed = written["report"]["slices"]["proposed"]["model"]
    assert proposed["n_candidates"] == 10 * written["report"]["n_pages"]
    dataset, catalog = load_dataset(stages / "data"), Catalog.load(stages / "sids")
    _, held_out = halve_users(dataset.examples("valid"), seed=0)
    model = XGB.from_pretrained(tmp_path, catalog=catalog)
    policy = load_recommender(policy_dir, catalog=catalog, options=BeamOptions())
    contexts = [example.context for example in held_out]
    rows_PG = policy.recommend(contexts, k=10, constrained=True).rows_PG.numpy()
    scores_PG = model.score(contexts, rows_PG)
    hits = [np.isin(rows, example.positives) for rows, example in zip(rows_PG, held_out, strict=True)]
    aucs = [roc_auc_score(hit, scores) for hit, scores in zip(hits, scores_PG, strict=True) if 0 < hit.sum() < 10]
    assert len(aucs) > 3
    assert proposed["gauc"]["mean"] == pytest.approx(np.mean(aucs))


def test_trees_see_the_score_of_another_reward_model(stages, tmp_path):
    catalog = Catalog.load(stages / "sids")
    Popularity(np.arange(1, catalog.n_items + 1)).save_pretrained(tmp_path / "popularity")
    block = {"class_path": "reward_models.scripted.Popularity", "init_args": {"path": str(tmp_path / "popularity")}}
    train(stages, tmp_path / "xgb", "--scorer", json.dumps(block), "--named_columns", "true")
    loaded = XGB.from_pretrained(tmp_path / "xgb", catalog=catalog)
    assert loaded.features[-3:] == ("scorer_log_odds", "category", "first_code")


def test_a_policy_that_is_not_there_is_refused_before_anything_is_written(stages, tmp_path):
    with pytest.raises(ConfigError, match="no finished 'sft' stage"):
        train(stages, tmp_path / "out", "--policy_dir", "nowhere")
    assert not (tmp_path / "out").exists()
