import json

import pytest

from genrec_rl.data.store import load_dataset
from genrec_rl.errors import ConfigError
from genrec_rl.rewards.components import load_reward_model
from genrec_rl.rewards.scoring import score_candidates
from genrec_rl.sids.catalog import Catalog
from recipes import sft, train_xgb


def train(stages, output_dir, *words):
    folders = ["--data_dir", str(stages / "data"), "--sid_dir", str(stages / "sids")]
    train_xgb.main([*folders, "--output_dir", str(output_dir), "--n_trees", "20", "--n_threads", "1", *words])
    return json.loads((output_dir / "reward.json").read_text())


@pytest.fixture(scope="module")
def policy_dir(stages):
    folders = ["--data_dir", str(stages / "data"), "--sid_dir", str(stages / "sids")]
    words = ["--hidden_size", "32", "--num_layers", "1", "--num_heads", "2", "--intermediate_size", "32"]
    sft.main([*folders, *words, "--num_train_epochs", "1", "--output_dir", str(stages / "sft")])
    return stages / "sft"


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
    assert 0 <= proposed["gauc"]["mean"] <= 1


def test_a_policy_that_is_not_there_is_refused_before_anything_is_written(stages, tmp_path):
    with pytest.raises(ConfigError, match="no finished 'sft' stage"):
        train(stages, tmp_path / "out", "--policy_dir", "nowhere")
    assert not (tmp_path / "out").exists()
