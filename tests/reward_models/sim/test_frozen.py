import dataclasses

import numpy as np
import pytest
import torch

from genrec_rl.types import Context
from reward_models.sim import frozen as frozen_module
from reward_models.sim.frozen import FrozenSIM, predict_all_logits, predict_logits
from reward_models.sim.model import Histories, ItemTables, SIMConfig, SIMNetwork

N_ITEMS = 40
CONFIG = SIMConfig(dim=8, n_heads=2, top_k=4, n_short=3, max_history=12, hidden=[16, 8], dropout=0.5)
MEBIBYTE = 1 << 20
SEARCHES = pytest.mark.parametrize("search", ["soft", "hard"])


def network(**changes):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, 5, (N_ITEMS, 2)))
    tables = ItemTables(codes, torch.randn(N_ITEMS, 5), search_keys=10**12 + 7 * codes[:, 0])
    made = SIMNetwork(tables, dataclasses.replace(CONFIG, **changes))
    for parameter in made.parameters():  # large enough that what matters shows
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def user(n, *, seed=0, time=10**6):
    """Someone with ``n`` behaviours with different items."""
    rng = np.random.default_rng([seed, n])
    return Context("u", time, rng.permutation(N_ITEMS)[:n], np.sort(rng.integers(0, 10**6, n)), np.arange(n))


USERS = [user(n) for n in (5, 0, 12, 1, 20, 3)]
ROWS = np.random.default_rng(1).integers(0, N_ITEMS, (len(USERS), 7))


@torch.inference_mode()
def by_network(model, contexts, rows):
    """Each user by the forward pass of training."""
    packed = [Histories.pack([c], max_history=12, device=torch.device("cpu")) for c in contexts]
    return torch.cat([model(h, torch.from_numpy(rows[p : p + 1])).esu_PG for p, h in enumerate(packed)])


@SEARCHES
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 1},
        {"top_k": 50},
        {"n_short": 1},
        {"n_short": 50},
        {"hidden": []},
        {"n_heads": 1},
        {"use_ids": False},
        {"use_codes": False, "use_content": False},
    ],
    ids=str,
)
def test_log_odds_are_the_networks(search, changes):
    model = network(search=search, **changes)
    found = FrozenSIM(model, cache_bytes=MEBIBYTE).logits(USERS, ROWS)
    torch.testing.assert_close(found, by_network(model, USERS, ROWS), atol=2e-5, rtol=1e-5)


@SEARCHES
def test_a_user_alone_scores_as_beside_others(search):
    model = FrozenSIM(network(search=search), cache_bytes=0)
    together = model.logits(USERS, ROWS)
    alone = torch.cat([model.logits([c], ROWS[p : p + 1]) for p, c in enumerate(USERS)])
    torch.testing.assert_close(alone, together, atol=2e-5, rtol=1e-5)


def test_repeated_items_leave_nothing_to_chance():
    # four behaviours with each of three items: which of them are kept must not depend on users or candidates beside
    times = np.array([0, 9 * 10**5, 5 * 10**5, 10**6 - 9] * 3)
    repeating = Context("u", 10**6, np.tile([3, 4, 5], 4), np.sort(times), np.arange(12))
    model = FrozenSIM(network(top_k=5), cache_bytes=0)
    alone = torch.cat([model.logits([repeating], ROWS[:1, [g]]) for g in range(7)], dim=1)
    beside = model.logits([*USERS[:3], repeating], ROWS[[1, 2, 3, 0]])[3:]
    torch.testing.assert_close(beside, alone, atol=2e-5, rtol=1e-5)


@SEARCHES
def test_small_batches_change_nothing(search, monkeypatch):
    model = network(search=search)
    whole = predict_logits(model, USERS, ROWS)
    monkeypatch.setattr(frozen_module, "_MAX_CELLS", 1)
    torch.testing.assert_close(predict_logits(model, USERS, ROWS), whole, atol=2e-5, rtol=1e-5)


@SEARCHES
def test_a_known_user_is_not_encoded_again(search, monkeypatch):
    model = FrozenSIM(network(search=search), cache_bytes=MEBIBYTE)
    first = model.logits(USERS, ROWS)
    monkeypatch.setattr(model, "_encode", None)
    torch.testing.assert_close(model.logits(USERS, ROWS), first, atol=0, rtol=0)
    torch.testing.assert_close(model.logits(USERS[::-1], ROWS[::-1].copy()), first.flip(0), atol=2e-5, rtol=1e-5)


def test_new_users_among_known_ones_get_their_own_scores():
    model, network_ = FrozenSIM(network(), cache_bytes=MEBIBYTE), network()
    model.logits(USERS[::2], ROWS[::2])
    torch.testing.assert_close(model.logits(USERS, ROWS), by_network(network_, USERS, ROWS), atol=2e-5, rtol=1e-5)


def test_a_user_who_moved_on_is_encoded_anew():
    model, fresh = (FrozenSIM(network(), cache_bytes=size) for size in (MEBIBYTE, 0))
    model.logits([user(5)], ROWS[:1])
    later = user(5, time=10**9)
    torch.testing.assert_close(model.logits([later], ROWS[:1]), fresh.logits([later], ROWS[:1]))
    assert (model.logits([later], ROWS[:1]) - model.logits([user(5)], ROWS[:1])).abs().max() > 1e-3


def test_the_cache_stays_within_its_limit():
    model = FrozenSIM(network(), cache_bytes=6_000)
    for seed in range(20):
        model.logits([user(6, seed=seed)], ROWS[:1])
    assert 0 < model.cache.nbytes <= 6_000
    assert 0 < len(model.cache) < 20


def test_nothing_is_kept_without_a_cache():
    model = FrozenSIM(network(), cache_bytes=0)
    model.logits(USERS, ROWS)
    assert len(model.cache) == 0


def test_predict_logits_follows_a_network_that_learns_and_ignores_its_dropout():
    model = network().train()
    before = predict_logits(model, USERS, ROWS)
    torch.testing.assert_close(predict_logits(model, USERS, ROWS), before, atol=0, rtol=0)
    with torch.no_grad():
        model.items.id_embedding.weight.mul_(2)
    after = predict_logits(model, USERS, ROWS)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, by_network(model.eval(), USERS, ROWS), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4), (6, 0)])
def test_nothing_to_score_is_an_empty_answer(shape):
    found = predict_logits(network(), USERS[: shape[0]], np.zeros(shape, dtype=np.int64))
    assert found.shape == shape


def test_an_unknown_row_is_an_error():
    with pytest.raises(IndexError):
        predict_logits(network(), USERS[:1], np.array([[N_ITEMS]]))


@SEARCHES
@pytest.mark.parametrize("hidden", [[16, 8], []], ids=str)
def test_the_second_output_is_the_networks(search, hidden):
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, 5, (N_ITEMS, 2)))
    config = dataclasses.replace(CONFIG, search=search, hidden=hidden)
    torch.manual_seed(0)
    made = SIMNetwork(ItemTables(codes, torch.randn(N_ITEMS, 5), codes[:, 0]), config, predicts_orders=True).eval()
    both = predict_all_logits(made, USERS, ROWS)
    with torch.inference_mode():
        packed = [Histories.pack([c], max_history=12, device=torch.device("cpu")) for c in USERS]
        orders = torch.cat([made(h, torch.from_numpy(ROWS[p : p + 1])).order_PG for p, h in enumerate(packed)])
    torch.testing.assert_close(both[..., 1], orders, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(both[..., 0], predict_logits(made, USERS, ROWS), atol=0, rtol=0)
