from types import SimpleNamespace

import pytest

from genrec_rl.config import read_block
from genrec_rl.errors import ConfigError
from genrec_rl.rewards import components
from genrec_rl.rewards.components import load_gate, load_gold_model, load_reward_model, reward_block
from reward_models.scripted import Constant


def test_a_block_on_the_command_line_is_json():
    assert read_block('{"class_path": "a.B"}', key="gate") == {"class_path": "a.B"}


@pytest.mark.parametrize("word", ["none", "None", "null", ""])
def test_none_means_no_component(word, catalog):
    assert read_block(word, key="gate") is None
    assert load_gate(word, catalog=catalog, dataset=None) is None


def test_broken_json_is_shown():
    with pytest.raises(ConfigError, match=r"gate: '\{class_path' is no JSON"):
        read_block("{class_path", key="gate")


def test_missing_reward_model_names_what_makes_one(catalog):
    with pytest.raises(ConfigError, match=r"recipes/train_reward\.py makes one"):
        load_reward_model(None, catalog=catalog)


def test_reward_dir_takes_the_place_of_the_blocks_path(tmp_path):
    block = {"class_path": "a.B", "init_args": {"path": "elsewhere", "cache_mb": 1}}
    expected = {"class_path": "a.B", "init_args": {"path": str(tmp_path), "cache_mb": 1}}
    assert reward_block(block, str(tmp_path)) == expected
    assert block["init_args"]["path"] == "elsewhere"
    assert reward_block("none") is None


def test_reward_dir_without_a_block_is_refused():
    with pytest.raises(ConfigError, match="reward_dir needs a reward_model"):
        reward_block(None, "runs/reward")


def test_reward_models_folder_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no folder '.*nowhere'; make it with"):
        reward_block({"class_path": "a.B", "init_args": {"path": str(tmp_path / "nowhere")}})


def test_gold_model_is_another_than_the_reward_model_or_none(catalog, tmp_path):
    for value in (0.4, 0.5):
        Constant(value).save_pretrained(tmp_path / str(value))
    block = {"class_path": "reward_models.scripted.Constant", "init_args": {"path": str(tmp_path / "0.5")}}
    assert load_gold_model("none", against=Constant(0.5), catalog=catalog) is None
    assert load_gold_model(block, against=Constant(0.4), catalog=catalog).value == 0.5
    with pytest.raises(ConfigError, match="gold_model is the reward model itself"):
        load_gold_model(block, against=Constant(0.5), catalog=catalog)


def test_gold_may_be_of_trusted_packages_members_too(catalog, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(components, "load_component", lambda *_, **given: seen.append(given) or Constant(0.5))
    block = {"class_path": "mine.Ensemble"}
    load_gold_model(block, against=Constant(0.4), catalog=catalog, trusted_packages=["mine"])
    assert seen[0]["provided"]["trusted_packages"] == seen[0]["trusted_packages"] == ["mine"]
    assert seen[0]["key"] == "gold_model"


def test_tau_is_fitted_on_whole_histories_as_rollouts_are_judged(catalog, monkeypatch):
    asked = []
    dataset = SimpleNamespace(examples=lambda split, **given: asked.append((split, given)) or [])
    monkeypatch.setattr(components, "load_component", lambda *_, **given: given["provided"]["examples"])
    load_gate({"class_path": "genrec_rl.rewards.gates.ValidGate"}, catalog=catalog, dataset=dataset)
    assert asked == [("valid", {"max_history": None})]
