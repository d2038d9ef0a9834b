import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec_rl.config import load_component
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.types import Context
from reward_models.sim import SIM
from reward_models.sim import frozen as frozen_module
from reward_models.sim import reward as reward_module
from reward_models.sim.model import ItemTables, SIMConfig, SIMNetwork
from reward_models.sim.reward import OrderOutput

CONFIG = SIMConfig(dim=8, top_k=2, n_short=2, max_history=6, hidden=[16])


def sim(seed=0, slope=1.0, intercept=0.0, cache_mb=1):
    torch.manual_seed(seed)
    tables = ItemTables(
        codes=torch.arange(7)[:, None] % torch.tensor([2, 3]),
        vectors=torch.randn(7, 5),
        search_keys=torch.arange(7) % 2,
    )
    network = SIMNetwork(tables, CONFIG)
    return SIM(network, catalog_fingerprint="c" * 64, slope=slope, intercept=intercept, cache_mb=cache_mb)


def contexts(n=3):
    return [Context(f"u{p}", 1_000, np.arange(p) % 7, np.arange(p), np.zeros(p, dtype=np.int64)) for p in range(n)]


ROWS = np.array([[0, 1, 2, 3], [6, 5, 4, 3], [1, 1, 2, 2]])


def test_scores_are_sigmoids_of_calibrated_logits():
    model = sim(slope=2.0, intercept=-1.0)
    expected = torch.sigmoid(2 * model.logits(contexts(), ROWS) - 1)
    np.testing.assert_array_equal(model.score(contexts(), ROWS), expected.numpy())


def test_dropout_is_off_when_scoring():
    model = sim()
    np.testing.assert_array_equal(model.score(contexts(), ROWS), model.score(contexts(), ROWS))


def test_scoring_in_chunks_changes_nothing(monkeypatch):
    whole = sim().score(contexts(), ROWS)
    monkeypatch.setattr(frozen_module, "_MAX_CELLS", 1)
    np.testing.assert_allclose(sim().score(contexts(), ROWS), whole, atol=1e-6)


def test_a_cache_changes_no_score():
    model = sim(cache_mb=0)
    np.testing.assert_array_equal(model.score(contexts(), ROWS), sim(cache_mb=1).score(contexts(), ROWS))
    np.testing.assert_array_equal(model.score(contexts(), ROWS), model.score(contexts(), ROWS))


def test_a_negative_cache_is_refused():
    with pytest.raises(ConfigError, match="cache_mb -1 must be at least 0"):
        sim(cache_mb=-1)


def test_no_requests_have_no_scores():
    assert sim().score([], np.empty((0, 4), dtype=np.int64)).shape == (0, 4)


def test_saved_and_loaded_models_score_bit_equal(tmp_path):
    model = sim(slope=1.7, intercept=-0.3)
    model.save_pretrained(tmp_path)
    loaded = SIM.from_pretrained(tmp_path, cache_mb=3)
    assert loaded.cache_mb == 3
    assert loaded.fingerprint == model.fingerprint
    np.testing.assert_array_equal(loaded.score(contexts(), ROWS), model.score(contexts(), ROWS))


def test_weights_and_calibration_show_in_the_fingerprint():
    assert len({m.fingerprint for m in (sim(), sim(seed=1), sim(slope=2.0), sim(intercept=1.0))}) == 4


def test_no_pickle_is_written(tmp_path):
    sim().save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_byte_is_refused_by_file(tmp_path, name):
    sim().save_pretrained(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-3] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: sha256 .* differs"):
        SIM.from_pretrained(tmp_path)


def test_another_catalogue_is_refused_naming_both(tmp_path):
    sim().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="catalogue cccccccccccc, but the catalogue in use is dddddddddddd"):
        SIM.from_pretrained(tmp_path, catalog=SimpleNamespace(fingerprint="d" * 64))
    SIM.from_pretrained(tmp_path, catalog=SimpleNamespace(fingerprint="c" * 64))


def test_another_kind_of_model_is_refused(tmp_path):
    sim().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model": "XGB"}
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
    }
    reward_module.write_files(tmp_path, files)
    with pytest.raises(DataError, match="holds XGB format 1, expected SIM format 1"):
        SIM.from_pretrained(tmp_path)


def test_a_yaml_block_loads_it_and_checks_its_catalogue(tmp_path):
    sim().save_pretrained(tmp_path)
    block = {"class_path": "reward_models.sim.SIM", "init_args": {"path": str(tmp_path)}}
    load = {"expected": RewardModel, "key": "reward_model", "factory": "from_pretrained"}
    loaded = load_component(block, **load, provided={"catalog": SimpleNamespace(fingerprint="c" * 64)})
    assert loaded.fingerprint == sim().fingerprint
    with pytest.raises(DataError, match="catalogue"):
        load_component(block, **load, provided={"catalog": SimpleNamespace(fingerprint="d" * 64)})


def two_outputs(click_weight=1.0, order_weight=3.0) -> SIM:
    torch.manual_seed(0)
    tables = ItemTables(torch.arange(7)[:, None] % torch.tensor([2, 3]), torch.randn(7, 5), torch.arange(7) % 2)
    order = OrderOutput(2.0, -1.0, click_weight, order_weight)
    network = SIMNetwork(tables, CONFIG, predicts_orders=True)
    return SIM(network, catalog_fingerprint="c" * 64, slope=1.5, intercept=0.5, order=order)


def test_with_orders_the_reward_is_the_weighted_mean_of_calibrated_probabilities():
    model = two_outputs()
    logits = model._frozen.all_logits(contexts(), ROWS)
    click, order = torch.sigmoid(1.5 * logits[..., 0] + 0.5), torch.sigmoid(2 * logits[..., 1] - 1)
    np.testing.assert_allclose(model.score(contexts(), ROWS), ((click + 3 * order) / 4).numpy(), rtol=1e-6)
    found = model.probabilities(contexts(), ROWS)
    np.testing.assert_array_equal(found["order"], order.numpy())
    assert set(sim().probabilities(contexts(), ROWS)) == {"click"}


def test_saved_and_loaded_it_predicts_orders_and_weights_can_be_chosen_anew(tmp_path):
    two_outputs().save_pretrained(tmp_path)
    assert SIM.from_pretrained(tmp_path).fingerprint == two_outputs().fingerprint
    loaded = SIM.from_pretrained(tmp_path, order_weight=0.0)
    assert loaded.fingerprint == two_outputs(order_weight=0.0).fingerprint
    np.testing.assert_array_equal(loaded.score(contexts(), ROWS), loaded.probabilities(contexts(), ROWS)["click"])


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 2.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_weights_that_earn_nothing_or_less_are_refused(weights):
    with pytest.raises(ConfigError, match="click_weight"):
        two_outputs(*weights)


def test_weights_of_a_model_without_orders_are_refused(tmp_path):
    sim().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does not predict orders, so order_weight weigh"):
        SIM.from_pretrained(tmp_path, order_weight=1.0)


def test_a_network_with_orders_needs_their_calibration():
    with pytest.raises(ConfigError, match="network predicts orders, but order is None"):
        SIM(two_outputs().network, catalog_fingerprint="c" * 64)
