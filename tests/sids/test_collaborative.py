import math

import numpy as np
import pytest
import torch

from genrec_rl.data.pages import PageTable
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids.collaborative import (
    CoClicks,
    CollaborativeSettings,
    ResidualProjection,
    co_clicks,
    fine_tune,
    symmetric_info_nce,
)
from genrec_rl.types import Action

E, C, O = Action.EXPOSE, Action.CLICK, Action.ORDER  # noqa: E741


def page_table(pages: list[tuple[str, list[tuple[int, Action]]]]) -> PageTable:
    """Lay out pages of (user, [(row, action), ...]); histories are not needed here."""
    flat = [pair for _, page in pages for pair in page]
    n = len(pages)
    return PageTable(
        request_ids=np.array([str(p) for p in range(n)]),
        user_ids=np.array([user for user, _ in pages]),
        times=np.arange(n),
        item_offsets=np.cumsum([0] + [len(page) for _, page in pages]),
        items=np.array([row for row, _ in flat], np.int32),
        actions=np.array([action for _, action in flat], np.int8),
        history_items=np.empty(0, np.int32),
        history_times=np.empty(0, np.int64),
        history_pages=np.empty(0, np.int32),
        history_start=np.zeros(n, np.int64),
        history_end=np.zeros(n, np.int64),
    )


PAGES = page_table(
    [
        ("u", [(0, O), (1, C), (9, E)]),
        ("u", [(8, E)]),
        ("u", [(2, C)]),
        ("u", [(3, C)]),
        ("v", [(4, O), (5, C)]),
    ]
)


def partners(clicks: CoClicks) -> dict[int, set[int]]:
    return {
        int(clicks.items[i]): {int(clicks.items[j]) for j in range(clicks.low[i], clicks.high[i]) if j != i}
        for i in range(len(clicks.items))
    }


def test_partners_stand_on_the_same_or_neighbouring_pages_of_one_user():
    clicks = co_clicks(PAGES, np.arange(5))
    assert partners(clicks) == {0: {1, 2}, 1: {0, 2}, 2: {0, 1, 3}, 3: {2}, 4: {5}, 5: {4}}


def test_exposed_items_and_pages_without_a_positive_do_not_count():
    clicks = co_clicks(PAGES, np.arange(5))
    assert 9 not in clicks.items
    assert 8 not in clicks.items


def test_pages_outside_training_are_never_seen():
    clicks = co_clicks(PAGES, np.array([4, 0]))
    assert partners(clicks) == {0: {1}, 1: {0}, 4: {5}, 5: {4}}


def test_no_pairs_at_all_is_refused_with_the_remedy():
    with pytest.raises(DataError, match="collaborative: false"):
        co_clicks(PAGES, np.array([3]))


def test_sampled_pairs_are_partners_and_reach_all_of_them():
    clicks = co_clicks(PAGES, np.arange(5))
    pairs = clicks.sample(2000, np.random.default_rng(0))
    assert {tuple(pair) for pair in pairs.tolist()} == {(a, b) for a, bs in partners(clicks).items() for b in bs}


def test_relation_is_symmetric_and_holds_the_item_itself_and_its_partners():
    clicks = co_clicks(PAGES, np.arange(5))
    relation = clicks.relation(10).toarray()
    expected = np.eye(10, dtype=bool)
    for item, others in partners(clicks).items():
        expected[item, list(others)] = True
    assert (relation == expected).all()
    assert (relation == relation.T).all()


def test_loss_of_a_hand_worked_pair_of_pairs():
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    partners_BD = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    loss = symmetric_info_nce(
        anchors, partners_BD, is_related_BB=torch.zeros(2, 2, dtype=torch.bool), temperature=0.5
    )
    logits = [[2.0, 1.2], [0.0, 1.6]]
    rows = [math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(logits)]
    columns = [math.log(sum(map(math.exp, column))) - column[i] for i, column in enumerate(zip(*logits, strict=True))]
    assert loss.item() == pytest.approx((sum(rows) + sum(columns)) / 4)


def test_related_pair_is_no_negative():
    vectors = torch.eye(3)
    close = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])
    related = torch.zeros(3, 3, dtype=torch.bool)
    related[0, 1] = True
    moved = close.clone()
    moved[1, 0] = 0.8
    losses = [
        symmetric_info_nce(vectors, partners_BD, is_related_BB=mask, temperature=0.1).item()
        for mask in (related, torch.zeros_like(related))
        for partners_BD in (close, moved)
    ]
    assert losses[0] == pytest.approx(losses[1])
    assert losses[3] > losses[2]


def test_related_diagonal_stays_the_target():
    vectors = torch.eye(2)
    related = torch.ones(2, 2, dtype=torch.bool)
    assert symmetric_info_nce(vectors, vectors, is_related_BB=related, temperature=0.1).item() == 0.0


def test_loss_is_symmetric_in_its_two_sides():
    generator = torch.Generator().manual_seed(0)
    anchors, partners_BD = torch.randn(2, 6, 4, generator=generator)
    related = torch.rand(6, 6, generator=generator) < 0.2
    one = symmetric_info_nce(anchors, partners_BD, is_related_BB=related, temperature=0.2)
    other = symmetric_info_nce(partners_BD, anchors, is_related_BB=related.T, temperature=0.2)
    assert one.item() == pytest.approx(other.item())


def unit(n: int, dim: int = 6) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_untrained_projection_leaves_vectors_as_they_are():
    np.testing.assert_allclose(ResidualProjection(6, 8, seed=0).apply_to(unit(5)), unit(5), atol=1e-6)


SMALL = CollaborativeSettings(epochs=20, batch_size=16, hidden=16, learning_rate=1e-2)


def test_fine_tuning_draws_partners_together_and_keeps_unit_norm():
    clicks = co_clicks(PAGES, np.arange(5))
    projection, losses = fine_tune(unit(10), clicks, settings=SMALL, seed=0)
    before, after = unit(10), projection.apply_to(unit(10))
    assert after[4] @ after[5] > before[4] @ before[5] + 0.2
    assert after[0] @ after[1] - after[0] @ after[4] > before[0] @ before[1] - before[0] @ before[4]
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-5)
    assert losses[-1] < losses[0]
    assert len(losses) == 20


def test_equal_seeds_give_equal_projections():
    clicks = co_clicks(PAGES, np.arange(5))
    first, again, other = (
        fine_tune(unit(10), clicks, settings=SMALL, seed=seed)[0].apply_to(unit(10)) for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_saved_projection_is_bit_equal(tmp_path):
    projection, _ = fine_tune(unit(10), co_clicks(PAGES, np.arange(5)), settings=SMALL, seed=0)
    projection.save(tmp_path / "projection.safetensors")
    loaded = ResidualProjection.load(tmp_path / "projection.safetensors")
    assert (loaded.apply_to(unit(10)) == projection.apply_to(unit(10))).all()


@pytest.mark.parametrize("content", [None, b"\x10\x00"])
def test_missing_or_damaged_projection_is_refused_by_name(tmp_path, content):
    path = tmp_path / "projection.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"projection\.safetensors"):
        ResidualProjection.load(path)


def test_diverging_loss_is_refused():
    settings = CollaborativeSettings(epochs=20, batch_size=16, hidden=16, learning_rate=1e30)
    with pytest.raises(DataError, match="lower learning_rate"):
        fine_tune(unit(10), co_clicks(PAGES, np.arange(5)), settings=settings, seed=0)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "temperature"])
def test_settings_must_be_positive(name):
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        CollaborativeSettings(**{name: 0})
