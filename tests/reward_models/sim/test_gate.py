import numpy as np
import pytest
import torch

from genrec_rl.config import load_component
from genrec_rl.errors import ConfigError
from genrec_rl.rewards.protocol import Gate
from reward_models.sim.gate import SearchGate
from reward_models.sim.model import ItemTables, SIMConfig, SIMNetwork
from reward_models.sim.reward import SIM
from tests.fixtures import make_catalog, make_context, make_example

# Items 0 to 3 have vectors (1, 0), (0, 1), (2, 0), (-1, 0); both projections leave them as they are.
VECTORS = torch.tensor([[1.0, 0], [0, 1], [2, 0], [-1, 0]])
CATALOG = make_catalog()


def sim(search="soft") -> SIM:
    tables = ItemTables(torch.zeros(4, 1, dtype=torch.long), VECTORS, torch.arange(4))
    config = SIMConfig(search=search, dim=2, n_heads=1, use_ids=False, use_codes=False, hidden=[2])
    network = SIMNetwork(tables, config)
    layers = [network.items.content_projection]
    layers += [network.gsu_candidate, network.gsu_behaviour] if search == "soft" else []
    for layer in layers:
        layer.weight.data = torch.eye(2)
    network.items.content_projection.bias.data.zero_()
    return SIM(network, catalog_fingerprint=CATALOG.fingerprint)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_similarity_is_the_sigmoid_of_the_largest_inner_product_with_the_history():
    gate = SearchGate(sim(), CATALOG, tau=0.5)
    found = gate.similarity([make_context([0, 1])], np.array([[0, 1, 2, 3]]), None)
    np.testing.assert_allclose(found, [sigmoid(np.array([1, 1, 2, 0]))], rtol=1e-6)


def test_candidate_and_behaviour_have_their_own_projections():
    model = sim()
    model.network.gsu_behaviour.weight.data = 3 * torch.eye(2)
    model.network.gsu_candidate.weight.data = torch.tensor([[0.0, 1], [0, 0]])
    found = SearchGate(model, CATALOG, tau=0.5).similarity([make_context([0])], np.array([[0, 1]]), None)
    np.testing.assert_allclose(found, [sigmoid(np.array([0, 3]))], rtol=1e-6)


def test_tau_is_fitted_so_that_the_share_of_positives_passes():
    examples = [make_example([0], [row]) for row in (0, 1, 2, 3)]
    gate = SearchGate(sim(), CATALOG, tau={"percentile": 25.0}, examples=examples)
    assert sigmoid(-1) < gate.tau < sigmoid(0)


def test_hard_search_is_refused():
    with pytest.raises(ConfigError, match="searches by key"):
        SearchGate(sim("hard"), CATALOG, tau=0.5)


def test_a_yaml_block_builds_it_from_a_folder(tmp_path):
    sim().save_pretrained(tmp_path)
    block = {"class_path": "reward_models.sim.gate.SearchGate", "init_args": {"sim": str(tmp_path), "tau": 0.6}}
    provided = {"catalog": CATALOG, "examples": []}
    assert load_component(block, expected=Gate, key="gate", provided=provided).tau == 0.6
