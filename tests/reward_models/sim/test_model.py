import dataclasses
import math

import numpy as np
import pytest
import torch

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.types import Context
from reward_models.sim.model import (
    Histories,
    ItemTables,
    Logits,
    SIMConfig,
    SIMNetwork,
    TargetAttention,
    sim_loss,
)

CPU = torch.device("cpu")
CONFIG = SIMConfig(dim=8, n_heads=2, top_k=2, n_short=2, max_history=6, hidden=[16], dropout=0.0)


def context(items, times=None, *, time=1_000):
    items = np.array(items, dtype=np.int64)
    times = np.arange(len(items)) if times is None else np.array(times)
    return Context("u", time, items, times, np.zeros(len(items), dtype=np.int64))


def tables(n_items=7):
    rng = np.random.default_rng(0)
    return ItemTables(
        codes=torch.arange(n_items)[:, None] % torch.tensor([2, 3]),
        vectors=torch.from_numpy(rng.normal(size=(n_items, 5)).astype(np.float32)),
        search_keys=torch.arange(n_items) % 2,
    )


def network(**changes):
    torch.manual_seed(0)
    made = SIMNetwork(tables(), dataclasses.replace(CONFIG, **changes))
    for parameter in made.parameters():  # large enough that what matters shows
        torch.nn.init.normal_(parameter, std=0.7)
    return made.eval()


def logits(model, contexts, candidates, max_history=6):
    histories = Histories.pack(contexts, max_history=max_history, device=CPU)
    return model(histories, torch.tensor(candidates))


def test_histories_are_padded_in_front_and_cut_to_the_latest():
    packed = Histories.pack([context([1, 2, 3, 4]), context([5])], max_history=3, device=CPU)
    assert packed.rows_PN.tolist() == [[2, 3, 4], [0, 0, 5]]
    assert packed.is_real_PN.tolist() == [[True] * 3, [False, False, True]]


def test_time_gaps_fall_into_buckets_by_powers_of_two():
    packed = Histories.pack([context([1, 2, 3, 4, 5], [0, 996, 997, 999, 1_000])], max_history=5, device=CPU)
    # gaps 1000, 4, 3, 1, 0 -> floor(log2(1 + gap))
    assert packed.gap_buckets_PN.tolist() == [[9, 2, 2, 1, 0]]


def test_an_age_of_centuries_stays_in_the_last_bucket():
    packed = Histories.pack([context([1], [0], time=10**12)], max_history=5, device=CPU)
    assert packed.gap_buckets_PN.tolist() == [[31]]


def test_a_behaviour_after_the_request_is_refused():
    with pytest.raises(DataError, match="user u: a history item is 5 s later than the request at 1000"):
        Histories.pack([context([1, 2], [3, 1_005])], max_history=5, device=CPU)


def test_users_without_history_pack_to_one_column_of_padding():
    packed = Histories.pack([context([])], max_history=5, device=CPU)
    assert packed.is_real_PN.tolist() == [[False]]


def test_attention_is_the_softmax_weighted_sum_of_kept_behaviours():
    attention = TargetAttention(dataclasses.replace(CONFIG, dim=1, n_heads=1), behaviour_dim=1)
    torch.nn.init.ones_(attention.key.weight)
    torch.nn.init.ones_(attention.query.weight)
    behaviours = torch.tensor([[[1.0], [2.0], [50.0]]])
    is_kept = torch.tensor([[[True, True, False], [False, False, False]]])
    found = attention(behaviours, torch.tensor([[[1.0], [1.0]]]), is_kept)
    weight = math.e / (math.e + math.e**2)
    torch.testing.assert_close(found, torch.tensor([[[weight * 1 + (1 - weight) * 2], [0.0]]]))


@pytest.mark.parametrize("search", ["soft", "hard"])
def test_candidates_do_not_change_each_others_scores(search):
    model, user = network(search=search), [context([1, 2, 3, 4])]
    together = logits(model, user, [[5, 6, 0]]).esu_PG
    alone = torch.cat([logits(model, user, [[row]]).esu_PG for row in (5, 6, 0)], dim=1)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(logits(model, user, [[0, 5, 6]]).esu_PG, together[:, [2, 0, 1]])


@pytest.mark.parametrize("search", ["soft", "hard"])
def test_a_longer_history_beside_it_does_not_change_a_score(search):
    model = network(search=search)
    alone = logits(model, [context([1, 2])], [[5, 6]])
    beside = logits(model, [context([1, 2]), context([6, 5, 4, 3, 2, 1])], [[5, 6], [5, 6]])
    torch.testing.assert_close(beside.esu_PG[:1], alone.esu_PG)
    if search == "soft":
        torch.testing.assert_close(beside.gsu_PG[:1], alone.gsu_PG)


@pytest.mark.parametrize("search", ["soft", "hard"])
def test_different_histories_give_different_scores(search):
    model = network(search=search)
    scores = logits(model, [context([1, 2]), context([3, 4])], [[5], [5]]).esu_PG
    assert (scores[0] - scores[1]).abs() > 1e-3


def test_time_since_a_behaviour_changes_the_score():
    model = network()
    scores = logits(model, [context([1], [999]), context([1], [0])], [[5], [5]]).esu_PG
    assert (scores[0] - scores[1]).abs() > 1e-3


@pytest.mark.parametrize("search", ["soft", "hard"])
def test_a_user_without_history_has_finite_scores(search):
    assert logits(network(search=search), [context([])], [[5, 6]]).esu_PG.isfinite().all()


@pytest.mark.parametrize(
    "parts",
    [{"use_ids": False}, {"use_codes": False}, {"use_content": False}, {"use_ids": False, "use_codes": False}],
)
def test_each_part_of_an_item_can_be_left_out(parts):
    assert logits(network(**parts), [context([1])], [[5]]).esu_PG.isfinite().all()


def test_search_learns_from_its_own_task_only_and_the_rest_from_both():
    model = network()
    found = logits(model, [context([1, 2, 3, 4, 5])], [[6, 0]])
    found.esu_PG.sum().backward()
    assert model.gsu_behaviour.weight.grad is None
    assert model.items.id_embedding.weight.grad is not None


def test_loss_is_alpha_gsu_plus_beta_esu_over_real_candidates():
    found = Logits(esu_PG=torch.tensor([[0.0, 9.0]]), gsu_PG=torch.tensor([[math.log(3.0), 9.0]]))
    labels, is_real = torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]])
    # sigmoid(0) = 1/2 and sigmoid(log 3) = 3/4
    expected = 0.5 * math.log(4 / 3) + 2.0 * math.log(2)
    assert sim_loss(found, labels, is_real, alpha=0.5, beta=2.0).item() == pytest.approx(expected)


def test_hard_search_has_no_loss_of_its_own():
    found = logits(network(search="hard"), [context([1])], [[5]])
    assert found.gsu_PG is None
    labels, is_real = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    one, ten = (sim_loss(found, labels, is_real, alpha=a, beta=1.0) for a in (1.0, 10.0))
    assert one == ten


@pytest.mark.parametrize(
    "wrong",
    [
        {"search": "fuzzy"},
        {"dim": 9},
        {"top_k": 0},
        {"use_ids": False, "use_codes": False, "use_content": False},
    ],
)
def test_impossible_shapes_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}"):
        dataclasses.replace(CONFIG, **wrong)


def test_with_orders_the_loss_adds_their_cross_entropy():
    found = Logits(torch.zeros(1, 2), None, order_PG=torch.tensor([[math.log(3.0), -math.log(3.0)]]))
    labels, is_real = torch.tensor([[1.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    ordered = torch.tensor([[True, False]])
    loss = sim_loss(found, labels, is_real, alpha=1.0, beta=2.0, is_ordered_PG=ordered)
    assert loss.item() == pytest.approx(2.0 * (math.log(2) + math.log(4 / 3)))


def test_a_second_output_is_of_its_own():
    torch.manual_seed(0)
    model = SIMNetwork(tables(), CONFIG, predicts_orders=True).eval()
    found = logits(model, [context([1, 2])], [[5, 6]])
    assert found.order_PG.shape == found.esu_PG.shape
    assert (found.order_PG - found.esu_PG).abs().min() > 0
    assert logits(network(), [context([1, 2])], [[5, 6]]).order_PG is None
