import importlib

import numpy as np
import pytest

OWN_REWARD_MODELS = ("sim-soft", "sim-hard", "sim-orders", "xgb", "ensemble", "popularity", "constant")


def pytest_addoption(parser):
    parser.addoption("--reward", help="class of the reward model under test: package.module.Class")
    parser.addoption("--reward_dir", help="folder to load it from; without one the class is called plainly")


def pytest_generate_tests(metafunc):
    if "reward_model" in metafunc.fixturenames:
        named = metafunc.config.getoption("--reward")
        metafunc.parametrize("reward_model", [named] if named else OWN_REWARD_MODELS, indirect=True)


@pytest.fixture
def reward_model(request):
    named = request.config.getoption("--reward")
    if named is None:
        return _own(request.param)
    module, _, name = named.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    folder = request.config.getoption("--reward_dir")
    return cls.from_pretrained(folder) if folder else cls()


def _own(name):
    from reward_models.scripted import Constant, Popularity

    if name == "constant":
        return Constant(0.25)
    if name == "popularity":
        return Popularity(np.arange(7))

    if name == "ensemble":
        from reward_models.ensemble import Ensemble

        return Ensemble([_own("sim-soft"), _own("popularity"), _own("constant")], kappa=0.5)

    if name == "xgb":
        from tests.reward_models.xgb.test_fit import fit

        return fit()

    import torch

    from reward_models.sim.model import ItemTables, SIMConfig, SIMNetwork
    from reward_models.sim.reward import SIM, OrderOutput

    torch.manual_seed(0)
    tables = ItemTables(
        codes=torch.arange(7)[:, None] % torch.tensor([2, 3]),
        vectors=torch.randn(7, 5),
        search_keys=torch.arange(7) % 2,
    )
    predicts_orders = name == "sim-orders"
    search = "soft" if predicts_orders else name.removeprefix("sim-")
    config = SIMConfig(search=search, dim=8, top_k=2, n_short=2, max_history=6, hidden=[16])
    network = SIMNetwork(tables, config, predicts_orders=predicts_orders)
    for parameter in network.parameters():  # large enough that what matters shows in the scores
        torch.nn.init.normal_(parameter, std=0.3)
    order = OrderOutput(0.4, -0.5, click_weight=1.0, order_weight=2.0) if predicts_orders else None
    return SIM(network, catalog_fingerprint="0" * 64, slope=0.5, intercept=-0.1, order=order)
