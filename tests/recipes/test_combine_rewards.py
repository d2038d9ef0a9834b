import json

import numpy as np
import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.rewards.components import load_reward_model
from genrec_rl.sids.catalog import Catalog
from recipes import combine_rewards, train_xgb
from reward_models.scripted import Constant, Popularity

POPULARITY = "reward_models.scripted.Popularity"


@pytest.fixture(scope="module")
def members(stages):
    """Trees, and popularity."""
    folders = ["--data_dir", str(stages / "data"), "--sid_dir", str(stages / "sids")]
    train_xgb.main([*folders, "--output_dir", str(stages / "xgb"), "--n_trees", "5", "--n_threads", "1"])
    n_items = Catalog.load(stages / "sids").n_items
    Popularity(np.arange(1, n_items + 1)).save_pretrained(stages / "popularity")
    return [str(stages / "xgb"), f"{POPULARITY}={stages / 'popularity'}"]


def combine(stages, output_dir, *words):
    folders = ["--data_dir", str(stages / "data"), "--sid_dir", str(stages / "sids")]
    combine_rewards.main([*folders, "--output_dir", str(output_dir), *words])
    return json.loads((output_dir / "reward.json").read_text())


def test_it_writes_an_ensemble_that_the_next_stage_loads(stages, tmp_path, members, policy_dir):
    written = combine(stages, tmp_path, "--members", *members, "--policy_dir", str(policy_dir), "--beams", "10")
    block = {"class_path": "reward_models.ensemble.Ensemble", "init_args": {"path": str(tmp_path), "kappa": 1.0}}
    model = load_reward_model(block, catalog=Catalog.load(stages / "sids"))
    assert [type(member).__name__ for member in model.members] == ["XGB", "Popularity"]
    assert model.fingerprint == written["fingerprint"]
    assert "proposed" in written["report"]["slices"]
    inputs = json.loads((tmp_path / "stage.json").read_text())["inputs"]
    assert set(inputs) == {"data", "sids", "member_0", "member_1", "policy"}


def test_members_that_are_none_are_refused_by_name(stages, tmp_path, members):
    Constant(0.5).save_pretrained(tmp_path / "constant")
    refused = {
        str(tmp_path / "nothing"): "nothing: no reward model",
        str(tmp_path / "constant"): "names model None",
        f"somebody.else.Model={tmp_path / 'constant'}": "outside the trusted packages",
        str(tmp_path / "out"): "is the output_dir",
    }
    for member, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            combine(stages, tmp_path / "out", "--members", member)
    assert not (tmp_path / "out").exists()


def test_by_value_one_member_is_multiplied_by_what_items_bring(stages, tmp_path, members):
    written = combine(stages, tmp_path, "--members", members[0], "--by_value", "true")
    block = {"class_path": "reward_models.expected_value.ExpectedValue", "init_args": {"path": str(tmp_path)}}
    model = load_reward_model(block, catalog=Catalog.load(stages / "sids"))
    assert type(model.member).__name__ == "XGB"
    assert model.fingerprint == written["fingerprint"]
    assert model.worth.std() > 0
