import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.types import NO_ITEM, Action, Context, Example
from reward_models.candidates import NegativeSampler, label_proposals
from reward_models.sim import fit as fit_module
from reward_models.sim.fit import (
    FitSettings,
    Proposals,
    category_search_keys,
    fit_sim,
    halve_users,
    sid_search_keys,
)
from reward_models.sim.model import SIMConfig

N_ITEMS = 12
CATALOG = SimpleNamespace(
    codes=np.stack([np.arange(N_ITEMS) % 2, np.arange(N_ITEMS) // 2], axis=1).astype(np.int32),
    vectors=np.eye(N_ITEMS, dtype=np.float32),
    fingerprint="f" * 64,
)
SAMPLER = NegativeSampler(np.ones(N_ITEMS, dtype=int), popular_share=0.5)
CONFIG = SIMConfig(dim=8, top_k=2, n_short=2, max_history=6, hidden=[16], dropout=0.1)
SETTINGS = FitSettings(epochs=4, patience=2, batch_size=8, learning_rate=0.03, negatives_per_positive=2)


def market(n_pages, *, seed):
    """Users who like the parity of their history: even items after even ones, odd after odd."""
    rng = np.random.default_rng(seed)
    pages = []
    for p in range(n_pages):
        parity = p % 2
        history = 2 * rng.choice(N_ITEMS // 2, size=3, replace=False) + parity
        liked = 2 * rng.integers(N_ITEMS // 2) + parity
        disliked = 2 * rng.integers(N_ITEMS // 2) + 1 - parity
        user = Context(f"u{p // 4}", 100, history, np.arange(3), np.zeros(3, dtype=np.int64))
        actions = np.array([Action.CLICK, Action.EXPOSE], dtype=np.int8)
        pages.append(Example(f"r{p}", user, np.array([liked, disliked]), actions))
    return pages


def fit(seed=0, on_epoch=None, train=None, **changes):
    return fit_sim(
        market(96, seed=1) if train is None else train,
        market(40, seed=2),
        catalog=CATALOG,
        sampler=SAMPLER,
        search_keys=sid_search_keys(CATALOG),
        config=dataclasses.replace(CONFIG, **changes),
        settings=SETTINGS,
        seed=seed,
        on_epoch=on_epoch,
    )


@pytest.mark.parametrize("search", ["soft", "hard"])
def test_it_learns_what_users_like(search):
    model = fit(search=search)
    pages = market(40, seed=3)
    scores = model.score([page.context for page in pages], np.stack([page.items for page in pages]))
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.9


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    fingerprints = []
    for seed, elsewhere in ((0, 11), (0, 12), (1, 11)):
        torch.manual_seed(elsewhere)
        fingerprints.append(fit(seed=seed).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_weights_of_the_best_epoch_are_kept_and_patience_ends_the_training(monkeypatch):
    weights = []

    def judge_worse_and_worse(network, judged):
        weights.append(network.items.id_embedding.weight.detach().clone())
        return -float(len(weights))

    monkeypatch.setattr(fit_module, "_mean_gauc", judge_worse_and_worse)
    model = fit()
    assert len(weights) == 1 + SETTINGS.patience
    assert torch.equal(model.network.items.id_embedding.weight, weights[0])
    assert not torch.equal(weights[0], weights[-1])


def test_every_epoch_is_reported_and_the_loss_falls():
    epochs = []
    fit(on_epoch=epochs.append)
    assert [e.number for e in epochs] == list(range(1, len(epochs) + 1))
    assert max(e.gauc for e in epochs) > 0.8
    assert epochs[-1].loss < epochs[0].loss


def test_search_keys_are_first_codes():
    np.testing.assert_array_equal(sid_search_keys(CATALOG), np.arange(N_ITEMS) % 2)


def test_equal_categories_have_equal_keys():
    np.testing.assert_array_equal(category_search_keys(["War", None, "War", "Comedy", None]), [0, 1, 0, 2, 1])


def test_halves_share_no_user_and_lose_no_page():
    pages = market(40, seed=0)
    tuning, report = halve_users(pages, seed=0)
    users = [{page.context.user_id for page in half} for half in (tuning, report)]
    assert not users[0] & users[1]
    assert [len(u) for u in users] == [5, 5]
    assert {p.request_id for p in tuning + report} == {p.request_id for p in pages}


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(DataError, match="0 training and 40 tuning pages"):
        fit(train=[])


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"patience": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"misses_per_page": -1}]
)
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FitSettings(**wrong)


def proposals(alone, *, n_train=96):
    """A policy that proposes one item of each parity, so that half its proposals are what the user likes."""
    parts = []
    for examples in (market(n_train, seed=1), market(40, seed=2)):
        rows = np.stack([np.roll(page.items, p % 3) for p, page in enumerate(examples)])
        rows[3::4] = NO_ITEM  # of some pages it was not asked
        parts.append(label_proposals(examples, rows, catalog=Rows))
    return Proposals(*parts, alone=alone)


class Rows:
    """A catalogue in which each item has its own SID, its row."""

    codes = np.arange(N_ITEMS)

    @staticmethod
    def rows_of(codes):
        return codes


@pytest.mark.parametrize("alone", [False, True])
def test_it_learns_from_a_policys_proposals(alone):
    model = fit_sim(
        market(96, seed=1),
        market(40, seed=2),
        catalog=CATALOG,
        sampler=SAMPLER,
        search_keys=sid_search_keys(CATALOG),
        config=CONFIG,
        settings=SETTINGS,
        seed=0,
        proposed=proposals(alone),
    )
    pages = market(40, seed=3)
    scores = model.score([page.context for page in pages], np.stack([page.items for page in pages]))
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.9
    assert scores.mean() == pytest.approx(0.5, abs=0.1)  # calibrated on proposals, half of which are liked


def test_pages_without_proposals_are_left_out_where_nothing_else_is_learnt():
    source = fit_module._Source(market(8, seed=1), SAMPLER, SETTINGS, proposals(True, n_train=8))
    assert source.pages().tolist() == [0, 1, 2, 4, 5, 6]
    both = dataclasses.replace(source, proposed=proposals(False, n_train=8))
    assert both.pages().tolist() == [*range(8)]


def ordered_market(n_pages, *, seed):
    """The same users, who order what they like of items below 6 and click on the rest."""
    pages = market(n_pages, seed=seed)
    for page in pages:
        if page.items[0] < 6:
            page.actions[0] = Action.ORDER
    return pages


def test_orders_are_learnt_apart_from_clicks():
    settings = dataclasses.replace(SETTINGS, order_weight=1.0)
    given = {"catalog": CATALOG, "sampler": SAMPLER, "search_keys": sid_search_keys(CATALOG), "config": CONFIG}
    model = fit_sim(ordered_market(96, seed=1), ordered_market(40, seed=2), **given, settings=settings, seed=0)
    pages = ordered_market(40, seed=3)
    liked = np.stack([page.items[:1] for page in pages])
    found = model.probabilities([page.context for page in pages], liked)
    is_ordered = liked[:, 0] < 6
    assert found["order"][is_ordered].mean() > 2 * found["order"][~is_ordered].mean()
    assert found["click"][~is_ordered].mean() > 2 * found["order"][~is_ordered].mean()


def test_orders_that_nobody_made_are_refused_before_training():
    settings = dataclasses.replace(SETTINGS, order_weight=1.0)
    given = {"catalog": CATALOG, "sampler": SAMPLER, "search_keys": sid_search_keys(CATALOG), "config": CONFIG}
    with pytest.raises(DataError, match=r"0 of \d+ tuning candidates are an order"):
        fit_sim(market(8, seed=1), market(8, seed=2), **given, settings=settings, seed=0)
