"""The neural baselines: causality, masks, losses and beams by hand, and a log whose next item is always known."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional

from benchmarks.baselines import BASELINES, SETTINGS
from benchmarks.baselines.bert4rec import Bert4Rec, draw_masks, with_mask
from benchmarks.baselines.hstu import Hstu, HstuLayer, time_buckets
from benchmarks.baselines.losses import sampled_bce_loss, softmax_loss
from benchmarks.baselines.sasrec import SasRec, draw_negatives
from benchmarks.baselines.sequences import Batch, Sequences, context_batch, shuffled_batches, training_sequences
from benchmarks.baselines.tiger import Tiger
from benchmarks.baselines.training import FitSettings, validate
from genrec_rl.data.events import SourceTables
from genrec_rl.data.store import load_dataset, write_dataset
from genrec_rl.errors import ConfigError, DataError
from tests.fixtures import CODES, make_catalog, make_context

SMALL = {"epochs": 2, "batch_size": 8, "max_history": 6, "bf16": False, "warmup_steps": 1}
SIZES = {name: {"dim": 16, "heads": 2, "layers": 1} for name in SETTINGS} | {
    "tiger": {"d_model": 16, "d_kv": 8, "d_ff": 32, "heads": 2, "layers": 1}
}
CAUSAL = {"sasrec_ce": SasRec, "sasrec_bce": SasRec, "hstu": Hstu}
SEQUENCES = Sequences(np.array([3, 5, 3, 7, 1, 2, 0, 9]), np.arange(8), np.array([0, 4, 7, 8]))


def small(name, **changes):
    return replace(SETTINGS[name], **{**SMALL, **SIZES[name], **changes})


def untrained(name, **changes):
    torch.manual_seed(0)
    if name == "bert4rec":
        model = Bert4Rec(SEQUENCES, CODES, small(name, **changes))
    elif name == "tiger":
        model = Tiger(SEQUENCES, make_catalog(), small(name, **changes))
    else:
        model = CAUSAL[name](SEQUENCES, CODES, small(name, **changes))
    with torch.no_grad():  # far enough from uniform that no two scores tie
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.3)
    return model.eval()


def batch_of(*rows, times=None):
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    items = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return Batch(items, torch.zeros_like(items) if times is None else torch.tensor(times), lengths)


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """12 items in a ring; each of 40 users walks along it from somewhere: i is followed by i + 1."""
    folder = tmp_path_factory.mktemp("ring")
    rows = [(f"u{u:02}", f"item{(u + t) % 12}", 100_000 * t, "click") for u in range(40) for t in range(3 + u % 5)]
    events = pl.LazyFrame(rows, schema=["user_id", "item_id", "timestamp", "action"], orient="row")
    items = pl.DataFrame({"item_id": [f"item{i}" for i in range(12)], "title": [f"Item {i}" for i in range(12)]})
    tables = SourceTables(name="ring", events=events, items=items, page_rule="gap:60s", note="A ring.")
    write_dataset(tables, folder, split="leave_one_out")
    return load_dataset(folder)


# --- sequences


def test_training_sequences_leave_out_validation_and_test_items(ring):
    sequences = training_sequences(ring)
    assert sequences.lengths.tolist() == [1 + u % 5 for u in range(40)]
    assert sequences.items[sequences.offsets[4] : sequences.offsets[5]].tolist() == [4, 5, 6, 7, 8]


def test_windows_share_one_item_and_predict_each_item_once():
    windows = Sequences(np.arange(8), np.arange(8), np.array([0, 7, 8])).windows(3)
    cut = [windows.items[a:b].tolist() for a, b in zip(windows.offsets[:-1], windows.offsets[1:], strict=True)]
    assert cut == [[4, 5, 6], [2, 3, 4], [0, 1, 2]]


def test_windows_of_a_sequence_that_does_not_divide_evenly():
    windows = Sequences(np.arange(4), np.arange(4), np.array([0, 4])).windows(3)
    cut = [windows.items[a:b].tolist() for a, b in zip(windows.offsets[:-1], windows.offsets[1:], strict=True)]
    assert cut == [[1, 2, 3], [0, 1]]


def test_next_items_are_the_items_one_place_later():
    batch = batch_of([3, 5, 4], [7, 1])
    assert batch.inputs.is_item_BT.tolist() == [[True, True], [True, False]]
    assert batch.next_items.tolist() == [5, 4, 1]


def test_context_batch_keeps_the_newest_items():
    batch = context_batch([make_context([1, 2, 3]), make_context([4])], max_history=2)
    assert batch.items_BT.tolist() == [[2, 3], [4, 0]]
    assert batch.times_BT[0].tolist() == [1, 2]
    assert batch.lengths_B.tolist() == [2, 1]


def test_user_without_history_is_named():
    with pytest.raises(DataError, match="user nobody has a history of 0 items"):
        context_batch([make_context([1]), make_context([], user="nobody")], max_history=2)


def test_batches_hold_every_sequence_once_and_similar_lengths():
    lengths = np.arange(100) % 10
    batches = list(shuffled_batches(lengths, batch_size=10, rng=np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(100))
    assert all(len(set(lengths[batch])) == 1 for batch in batches)


# --- losses


def test_softmax_loss_on_two_items():
    states, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    assert softmax_loss(states, weight, torch.tensor([0])).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert softmax_loss(states, weight, torch.tensor([1])).item() == pytest.approx(math.log(1 + math.exp(2)))


def test_softmax_loss_and_gradients_equal_cross_entropy_across_chunks():
    torch.manual_seed(0)
    states, weight = torch.randn(300, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    targets = torch.randint(40, (300,))
    expected = functional.cross_entropy(states @ weight.T, targets)
    found = softmax_loss(states, weight, targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, (states, weight)),
        torch.autograd.grad(3 * expected, (states, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_softmax_loss_is_finite_where_a_probability_underflows():
    loss = softmax_loss(torch.tensor([[1.0]]), torch.tensor([[200.0], [0.0]]), torch.tensor([1]))
    assert loss.item() == pytest.approx(200)


def test_bce_on_two_items():
    states, weight = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, -1.0]])
    loss = sampled_bce_loss(states, weight, torch.tensor([0]), torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)))


def test_negatives_are_the_items_outside_the_window():
    batch = batch_of([3, 1, 2], [2, 0])
    draws = [draw_negatives(batch, n_items=5, rng=np.random.default_rng(seed)) for seed in range(50)]
    first, second, third = torch.stack(draws).unbind(1)
    assert set(first.tolist()) == set(second.tolist()) == {0, 4}
    assert set(third.tolist()) == {1, 3, 4}


def test_window_that_may_hold_the_catalogue_is_refused():
    with pytest.raises(ConfigError, match="window of 3 may hold all 3 items"):
        draw_negatives(batch_of([0, 1, 2]), n_items=3, rng=np.random.default_rng(0))


# --- causal models


@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_item_does_not_change_earlier_states(name):
    model = untrained(name)
    one, other = model.states(batch_of([3, 5, 1, 7])), model.states(batch_of([3, 5, 2, 7]))
    torch.testing.assert_close(one[:, :2], other[:, :2])
    assert not torch.allclose(one[:, 2:], other[:, 2:])


@pytest.mark.parametrize("name", [*CAUSAL, "bert4rec"])
def test_padding_changes_no_score(name):
    model = untrained(name)
    alone, padded = model.scores(batch_of([3, 5])), model.scores(batch_of([3, 5], [1, 2, 7, 4, 6]))
    torch.testing.assert_close(alone[0], padded[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [*CAUSAL, "bert4rec", "tiger"])
def test_answers_keep_the_order_of_the_requests(name):
    model = untrained(name)
    contexts = [make_context(h) for h in ([1, 2, 3, 4], [5], [6, 7], [8, 9, 10])]
    together = model.recommend(contexts, k=4)
    for p, context in enumerate(contexts):
        alone = model.recommend([context], k=4)
        assert alone.rows_PG[0].tolist() == together.rows_PG[p].tolist()
        assert (together.log_probs_PG[p].diff() <= 0).all()
    assert (torch.from_numpy(CODES.astype(np.int64))[together.rows_PG] == together.sids_PGL).all()


def test_scores_are_log_probabilities_over_all_items():
    answer = untrained("sasrec_ce").recommend([make_context([3])], k=12)
    assert answer.log_probs_PG.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_more_candidates_than_items_names_both():
    with pytest.raises(ConfigError, match="13 candidates asked of 12"):
        untrained("sasrec_ce").recommend([make_context([3])], k=13)


def test_a_closed_gate_leaves_hstus_input_as_it_is():
    layer = HstuLayer(small("hstu")).eval()
    x, buckets = torch.randn(1, 4, 16), torch.zeros(1, 4, 4, dtype=torch.long)
    assert not torch.allclose(layer(x, buckets), x)
    with torch.no_grad():
        layer.f1.weight[:16] = 0  # U = silu(0) = 0
    torch.testing.assert_close(layer(x, buckets), x)


def test_hstu_attends_by_silu_of_score_and_bias_over_n():
    # One head of one dimension; unit weights, so q = k = v = u = silu(norm(x)); the norms are taken out.
    layer = HstuLayer(small("hstu", dim=1, heads=1)).eval()
    layer.norm_in = layer.norm_out = torch.nn.Identity()
    with torch.no_grad():
        layer.f1.weight.fill_(1)
        layer.f2.weight.fill_(1)
        layer.position_bias.copy_(torch.arange(6.0) / 10)
        layer.time_bias.zero_()
    x = torch.tensor([[[1.0], [2.0]]])
    a, b = 1 / (1 + math.exp(-1)), 2 / (1 + math.exp(-2))

    def silu(z):
        return z / (1 + math.exp(-z))

    mixed = (silu(b * a + 0.1) * a + silu(b * b) * b) / 6
    found = layer(x, torch.zeros(1, 2, 2, dtype=torch.long))
    assert found[0, 1, 0].item() == pytest.approx(2 + mixed * b, rel=1e-5)


def test_hstu_reads_the_time_between_items():
    model = untrained("hstu")
    near, far = batch_of([3, 5], times=[[0, 1]]), batch_of([3, 5], times=[[0, 86_400]])
    assert not torch.allclose(model.scores(near), model.scores(far))
    assert torch.equal(model.scores(far), model.scores(batch_of([3, 5], times=[[7, 86_407]])))


def test_time_buckets_are_logarithms_of_seconds():
    buckets = time_buckets(torch.tensor([[0, 1, 86_400]]))
    assert buckets[0].tolist() == [[0, 0, 0], [0, 0, 0], [37, 37, 0]]  # ln(86,400) / .301 = 37.8


# --- BERT4Rec


def test_mask_stands_behind_the_newest_item():
    asked = with_mask(batch_of([3, 5], [7], times=[[10, 20], [30, 30]]), 12)
    assert asked.items_BT.tolist() == [[3, 5, 12], [7, 12, 0]]
    assert asked.times_BT[:, :2].tolist() == [[10, 20], [30, 30]]
    assert asked.lengths_B.tolist() == [3, 2]


def test_every_sequence_has_a_mask_and_padding_none():
    batch = batch_of([3, 5, 1, 2], [7, 8])
    for seed in range(30):
        masks = draw_masks(batch, small("bert4rec", mask_share=0.5), np.random.default_rng(seed))
        assert masks.any(1).all()
        assert not masks[1, 2:].any()


def test_last_item_is_masked_alone_where_asked():
    masks = draw_masks(batch_of([3, 5, 1], [7, 8]), small("bert4rec", last_only=1.0), np.random.default_rng(0))
    assert masks.tolist() == [[False, False, True], [False, True, False]]


def test_hidden_items_do_not_reach_the_model(monkeypatch):
    model = untrained("bert4rec", last_only=1.0)
    seen = []
    states = model.states
    monkeypatch.setattr(model, "states", lambda batch: seen.append(batch.items_BT) or states(batch))
    list(model.losses(np.random.default_rng(0)))
    assert sorted(row[row != 0].tolist() for row in seen[0]) == [[1, 2, 12], [3, 5, 3, 12]]


# --- TIGER


def test_beams_are_all_items_scored_as_by_exhaustion():
    model, contexts = untrained("tiger"), [make_context([3, 5, 1]), make_context([7])]
    answer = model.recommend(contexts, k=12)
    for p, context in enumerate(contexts):
        batch = context_batch([context] * 12, max_history=6)
        with torch.inference_mode():
            expected = model.log_probs(batch, torch.from_numpy(CODES.astype(np.int64)))
        order = expected.argsort(descending=True)
        assert answer.rows_PG[p].tolist() == order.tolist()
        torch.testing.assert_close(answer.log_probs_PG[p], expected[order], atol=1e-4, rtol=1e-4)


def test_few_beams_are_items_with_their_own_scores():
    model, context = untrained("tiger"), make_context([3, 5, 1])
    answer = model.recommend([context], k=3)
    assert answer.is_valid_PG.all()
    with torch.inference_mode():
        expected = model.log_probs(context_batch([context] * 3, max_history=6), answer.sids_PGL[0])
    torch.testing.assert_close(answer.log_probs_PG[0], expected, atol=1e-4, rtol=1e-4)


def test_each_target_is_predicted_once_from_what_came_before(monkeypatch):
    model = untrained("tiger", max_history=2)
    seen = []
    read = model._read
    monkeypatch.setattr(model, "_read", lambda batch: seen.append(batch) or read(batch))
    list(model.losses(np.random.default_rng(0)))
    found = sorted(row[:n].tolist() for b in seen for row, n in zip(b.items_BT, b.lengths_B, strict=True))
    assert found == [[1], [1, 2], [3], [3, 5], [5, 3]]


def test_tiger_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="ask for constrained decoding"):
        untrained("tiger").recommend([make_context([3])], k=2, constrained=False)
    with pytest.raises(ConfigError, match="13 beams asked of 12 distinct SIDs"):
        untrained("tiger").recommend([make_context([3])], k=13)


# --- training


@pytest.mark.parametrize("name", BASELINES)
def test_fit_is_deterministic_under_a_seed(name, ring):
    def losses(seed):
        records = []
        BASELINES[name](ring, make_catalog(), settings=small(name), seed=seed, on_epoch=records.append)
        return [record.loss for record in records]

    assert losses(0) == losses(0) != losses(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_fit_learns_that_each_item_is_followed_by_the_next(name, ring):
    epochs = {"tiger": 30, "bert4rec": 100}.get(name, 60)
    sizes = {"epochs": epochs, "evaluate_every": epochs, "batch_size": 64, "dropout": 0.0}
    settings = small(name, **sizes, learning_rate=1e-2, schedule="cosine", warmup_steps=5)
    if name == "bert4rec":
        settings = replace(settings, last_only=1.0)
    fitted = BASELINES[name](ring, make_catalog(), settings=settings, seed=0)
    # Of two, since the paper's BCE never has the newest item itself as a negative: it may stay first.
    rows = fitted.recommend([make_context([i, i + 1]) for i in range(10)], k=2).rows_PG
    assert (rows == (torch.arange(10).unsqueeze(1) + 2) % 12).any(1).float().mean() >= 0.9


def test_best_weights_come_back_and_patience_ends_training(ring):
    records = []
    settings = small("sasrec_ce", epochs=30, patience=2, learning_rate=0.5)
    fitted = BASELINES["sasrec_ce"](ring, make_catalog(), settings=settings, seed=0, on_epoch=records.append)
    best = max(records, key=lambda record: record.ndcg)
    assert validate(fitted, ring.examples("valid"))[1] == pytest.approx(best.ndcg)
    assert best.is_best
    assert len(records) == 30 or [r.is_best for r in records[-2:]] == [False, False]


def test_epochs_between_validations_have_no_metrics(ring):
    records = []
    settings = small("sasrec_ce", epochs=3, evaluate_every=2)
    BASELINES["sasrec_ce"](ring, make_catalog(), settings=settings, seed=0, on_epoch=records.append)
    assert [record.ndcg is None for record in records] == [True, False, False]
    assert [record.is_best for record in records[:2]] == [False, True]


def test_a_loss_that_is_not_finite_ends_the_training(ring):
    settings = small("sasrec_ce", learning_rate=math.inf)
    with pytest.raises(RuntimeError, match="non-finite"):
        BASELINES["sasrec_ce"](ring, make_catalog(), settings=settings, seed=0)


def test_settings_of_zero_name_the_limit():
    with pytest.raises(ConfigError, match="patience 0 must be at least 1"):
        FitSettings(patience=0)
