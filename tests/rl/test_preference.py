import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid
from trl import DPOTrainer

from genrec_rl.rl.preference import (
    dpo,
    keeps_reference,
    lambda_weights,
    lower_valued,
    mean_ranks,
    normalised_gains,
    pair_statistics,
    preference_metrics,
    rspo,
    s_dpo,
    softmax_preference,
)

OPEN = {"beta": 0.7, "delta": 5.0, "rank_by": "reward", "gain": "linear"}
LOSSES = ((rspo, OPEN | {"delta": math.inf, "beta": 1.0}), (dpo, {"beta": 1.0}), (s_dpo, {"beta": 1.0}))
values_of = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.9, 1.0]), min_size=2, max_size=9)


def doubles(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def drawn(n: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a policy and of its start."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(-6 + 2 * torch.randn(1, n, generator=generator, dtype=torch.float64) for _ in range(2))


def weights_by_hand(values, ranks) -> torch.Tensor:
    """M with loops; linear gains."""
    order = sorted(values, reverse=True)
    best = sum(value / math.log2(1 + place) for place, value in enumerate(order, 1))
    inverse = [None] + [1 / math.log2(1 + k) for k in range(1, 2 * len(values))]
    rows = []
    for i, vi in enumerate(values):
        gaps = [abs(ranks[i] - rank) for rank in ranks]
        pairs = zip(gaps, values, strict=True)
        rows.append([(inverse[gap] - inverse[gap + 1]) * (vi - vj) / best if vj < vi else 0.0 for gap, vj in pairs])
    return doubles(*rows)


def test_equal_scores_share_the_mean_of_their_ranks():
    assert mean_ranks(doubles([5.0, 9.0, 5.0, 1.0])).tolist() == [[2.5, 1.0, 2.5, 4.0]]


def test_equal_values_are_not_lower_and_padding_neither_wins_nor_loses():
    found = lower_valued(doubles([1.0, 1.0, 0.5]))
    assert found.tolist() == [[[False, False, True], [False, False, True], [False, False, False]]]
    found = lower_valued(doubles([1.0, 0.8, 0.5]), torch.tensor([[True, False, True]]))
    assert found.nonzero().tolist() == [[0, 0, 2]]


def test_gains_are_values_over_the_dcg_of_the_ideal_order():
    best = 1.0 + 0.5 / math.log2(3) + 0.25 / 2
    found = normalised_gains(doubles([0.25, 1.0, 0.5]), gain="linear")
    assert found[0].tolist() == pytest.approx([0.25 / best, 1 / best, 0.5 / best])
    best = math.log(4) + math.log(2) / math.log2(3)
    found = normalised_gains(doubles([1.0, 3.0]), gain="log1p")
    assert found[0].tolist() == pytest.approx([math.log(2) / best, math.log(4) / best])
    assert normalised_gains(doubles([0.0, 0.0]), gain="linear").tolist() == [[0, 0]]


def test_weights_of_three_candidates_by_hand():
    values = [0.2, 0.9, 0.5]
    found = lambda_weights(
        normalised_gains(doubles(values), gain="linear"),
        mean_ranks(doubles(values)),
        lower_valued(doubles(values)),
    )
    best = 0.9 + 0.5 / 1.5849625 + 0.2 / 2
    near, far = 1 - 1 / 1.5849625, 1 / 1.5849625 - 1 / 2
    expected = doubles([0, 0, 0], [far * 0.7 / best, 0, near * 0.4 / best], [near * 0.3 / best, 0, 0])
    assert torch.allclose(found[0], expected)
    assert torch.allclose(weights_by_hand(values, [3, 1, 2]), expected)


@settings(max_examples=40, deadline=None)
@given(values_of)
def test_in_reward_order_a_winners_weights_sum_to_less_than_one(values):
    values = doubles(values)
    lower = lower_valued(values)
    gains, ranks = normalised_gains(values, gain="linear"), mean_ranks(values)
    found = lambda_weights(gains, ranks, lower)
    assert (found.sum(-1) < 1).all()
    if len(set(values[0].tolist())) == values.shape[1]:
        assert torch.allclose(found[0], weights_by_hand(values[0].tolist(), ranks[0].int().tolist()))


def test_in_model_order_a_sum_above_one_becomes_one():
    values, ranks = doubles([0.0] * 7 + [1.0] + [0.0] * 8), torch.arange(1.0, 17.0, dtype=torch.float64)[None]
    by_hand = weights_by_hand(values[0].tolist(), list(range(1, 17)))[7]
    assert by_hand.sum().item() == pytest.approx(1.38, abs=0.005)
    found = lambda_weights(normalised_gains(values, gain="linear"), ranks, lower_valued(values))
    assert found[0, 7].tolist() == pytest.approx((by_hand / by_hand.sum()).tolist())


def test_candidates_that_tie_in_the_models_order_count_as_neighbours():
    values = doubles([0.9, 0.3])
    gains, lower = normalised_gains(values, gain="linear"), lower_valued(values)
    tied, apart = (lambda_weights(gains, doubles(ranks), lower) for ranks in ([1.5, 1.5], [1.0, 2.0]))
    assert torch.equal(tied, apart)


@settings(max_examples=40, deadline=None)
@given(values_of, st.integers(0, 99), st.sampled_from(["reward", "model"]))
def test_loss_bounds_the_weighed_pairs_by_jensen(values, seed, rank_by):
    log_probs, reference = drawn(len(values), seed=seed)
    found = rspo(log_probs, reference, doubles(values), **OPEN | {"rank_by": rank_by, "delta": math.inf})
    ratios = 0.7 * (log_probs - reference)[0]
    pairs = torch.log2(1 + (ratios[None] - ratios[:, None]).exp())
    assert ((found.weights_PGG[0] * pairs).sum(-1) <= found.loss_PG[0] + 1e-9).all()


def test_reference_is_left_out_where_a_list_has_gained_delta():
    log_ratios, values = doubles([4.0, 1.0, -1.0]), doubles([0.9, 0.5, 0.1])
    means = [(4 + 1 - 1) / 3, (1 - 1) / 2, -1.0]  # of each candidate and what is worth less
    for delta in (-2.0, -0.5, 0.5, 2.0):
        found = keeps_reference(log_ratios, lower_valued(values), delta=delta)
        assert found[0].tolist() == [mean < delta for mean in means]
    for delta, kept in ((math.inf, True), (-math.inf, False)):
        assert (keeps_reference(log_ratios, lower_valued(values), delta=delta) == kept).all()
    assert not keeps_reference(doubles([2.0, 2.0]), lower_valued(doubles([1.0, 0.0])), delta=2.0).any()


def test_it_is_minus_log_sigmoid_of_minus_log_z():
    log_probs, reference = drawn(4)
    weights = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keeps = torch.tensor([[True, False, True, False]])
    found = softmax_preference(log_probs, reference, weights, keeps, beta=0.7)
    for i in range(4):
        g = 0.7 * (log_probs[0] - (reference[0] if keeps[0, i] else 0))
        z = (weights[0, i] * (g - g[i]).exp()).sum()
        assert found[0, i].item() == pytest.approx(-logsigmoid(-z.log()).item())
        assert found[0, i].item() == pytest.approx(math.log(1 + z.item()))


def test_rspo_of_three_candidates_by_hand_in_bits():
    log_probs, reference = doubles([-5.0, -4.0, -6.0]), doubles([-5.5, -4.0, -5.0])
    values = [0.2, 0.9, 0.5]
    weights = weights_by_hand(values, [3, 1, 2])
    found = rspo(log_probs, reference, doubles(values), **OPEN | {"delta": 0.0})
    # mean log-ratios: of (0.5, 0, -1) -1/6, which is below 0; of (0.5, -1) -0.25
    assert found.keeps_reference_PG.tolist() == [[False, True, True]]
    g = [0.7 * 0.5, 0.0, -0.7]
    second = math.log2(1 + weights[1, 0] * math.exp(g[0] - g[1]) + weights[1, 2] * math.exp(g[2] - g[1]))
    third = math.log2(1 + weights[2, 0] * math.exp(g[0] - g[2]))
    assert found.loss_PG[0].tolist() == pytest.approx([0, second, third])
    assert found.mean().item() == pytest.approx((second + third) / 2)
    free = rspo(log_probs, reference, doubles(values), **OPEN | {"delta": -0.2})
    assert free.keeps_reference_PG.tolist() == [[False, False, True]]
    g = [-5 * 0.7, -4 * 0.7, -6 * 0.7]
    second = math.log2(1 + weights[1, 0] * math.exp(g[0] - g[1]) + weights[1, 2] * math.exp(g[2] - g[1]))
    assert free.loss_PG[0, 1].item() == pytest.approx(second)


def test_weights_by_model_follow_the_policy_not_the_start():
    log_probs, reference, values = doubles([-5.0, -4.0, -6.0]), doubles([-1.0, -9.0, -2.0]), [0.2, 0.9, 0.5]
    found = rspo(log_probs, reference, doubles(values), **OPEN | {"rank_by": "model"})
    assert torch.allclose(found.weights_PGG[0], weights_by_hand(values, [2, 1, 3]))


def test_with_weights_one_and_the_reference_it_is_s_dpo():
    log_probs, reference = drawn(5)
    values = doubles([0.1, 0.8, 0.3, 0.2, 0.5])
    others = [0, 2, 3, 4]
    ratios = 0.7 * (log_probs - reference)[0]
    expected = -logsigmoid(-(ratios[others] - ratios[1]).exp().sum().log())  # S-DPO's own loss
    found = s_dpo(log_probs, reference, values, beta=0.7)
    assert found.loss_PG[0].tolist() == pytest.approx([0, expected.item(), 0, 0, 0])
    assert found.mean().item() == pytest.approx(expected.item())
    ones, keeps = torch.ones(1, 5, 5).double() - torch.eye(5), torch.ones(1, 5, dtype=torch.bool)
    assert softmax_preference(log_probs, reference, ones, keeps, beta=0.7)[0, 1].item() == pytest.approx(
        expected.item()
    )


def test_s_dpo_and_dpo_of_two_candidates_are_the_dpo_formula():
    log_probs, reference = drawn(2)
    ratios = (log_probs - reference)[0]
    expected = -logsigmoid(0.7 * (ratios[1] - ratios[0])).item()
    for loss in (dpo, s_dpo):
        assert loss(log_probs, reference, doubles([0.3, 0.6]), beta=0.7).mean().item() == pytest.approx(expected)


def test_dpo_sets_the_best_against_the_worst_alone():
    log_probs, reference = drawn(4)
    found = dpo(log_probs, reference, doubles([0.4, 0.1, 0.9, 0.3]), beta=0.7)
    assert found.weights_PGG.nonzero().tolist() == [[0, 2, 1]]
    ratios = (log_probs - reference)[0]
    assert found.mean().item() == pytest.approx(-logsigmoid(0.7 * (ratios[2] - ratios[1])).item())


def test_of_equal_best_and_worst_the_most_probable_are_paired():
    log_probs, values = doubles([-3.0, -2.0, -9.0, -8.0, -1.0]), doubles([1.0, 1.0, 0.0, 0.0, 0.5])
    assert dpo(log_probs, log_probs, values, beta=1.0).weights_PGG.nonzero().tolist() == [[0, 1, 3]]
    found = s_dpo(log_probs, log_probs, values, beta=1.0).weights_PGG.nonzero()
    assert found.tolist() == [[0, 1, 2], [0, 1, 3], [0, 1, 4]]


def test_dpo_is_the_loss_of_trl():
    """TRL has no function of it: its trainer's public method reads log-probabilities that a stub hands out."""
    log_probs, reference = (torch.cat([drawn(2, seed=seed)[n] for seed in range(3)]) for n in range(2))
    found = dpo(log_probs, reference, doubles(*[[1.0, 0.0]] * 3), beta=0.7).mean()
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.model, trainer.beta, trainer.precompute_ref_logps = torch.nn.Identity(), 0.7, True
    trainer.accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer.loss_types, trainer.loss_weights, trainer.f_divergence_type = ["sigmoid"], [1.0], "reverse_kl"
    trainer.ld_alpha, trainer.aux_loss_enabled, trainer.use_weighting = None, False, False
    trainer._total_train_tokens, trainer._tp_size, trainer._metrics = 0, 1, {"train": defaultdict(list)}
    tokens = torch.ones(6, 3, dtype=torch.long)  # rows: three chosen answers, three rejected ones
    per_token = torch.stack([torch.zeros(6), log_probs.T.flatten()], dim=1)
    outputs = dict.fromkeys(("log_probs", "entropy", "mean_logits"), per_token) | {"is_top1": torch.ones(6, 2).bool()}
    inputs = {"input_ids": tokens, "attention_mask": tokens, "completion_mask": tokens}
    inputs |= {"ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1]}
    assert trainer.compute_loss(lambda **_: SimpleNamespace(**outputs), inputs).item() == pytest.approx(found.item())


@settings(max_examples=40, deadline=None)
@given(values_of, st.integers(0, 99), st.sampled_from(["reward", "model"]), st.randoms(use_true_random=False))
def test_permuting_a_group_permutes_its_losses(values, seed, rank_by, random):
    log_probs, reference = drawn(len(values), seed=seed)
    order = list(range(len(values)))
    random.shuffle(order)
    for loss, options in (*LOSSES[1:], (rspo, OPEN | {"rank_by": rank_by, "delta": 0.1})):
        found = loss(log_probs, reference, doubles(values), **options)
        moved = loss(log_probs[:, order], reference[:, order], doubles(values)[:, order], **options)
        assert moved.loss_PG[0].tolist() == pytest.approx(found.loss_PG[0, order].tolist())
        assert torch.equal(moved.keeps_reference_PG, found.keeps_reference_PG[:, order])


def test_groups_do_not_see_each_other():
    log_probs, reference = (torch.cat(part) for part in zip(drawn(4), drawn(4, seed=1), strict=True))
    values = doubles([0.1, 0.5, 0.3, 0.9], [0.7, 0.2, 0.2, 0.4])
    both = rspo(log_probs, reference, values, **OPEN).loss_PG
    for p in range(2):
        alone = rspo(log_probs[p : p + 1], reference[p : p + 1], values[p : p + 1], **OPEN).loss_PG
        assert torch.equal(both[p : p + 1], alone)


@pytest.mark.parametrize("rank_by", ["reward", "model"])
def test_no_gradient_flows_through_the_weights_or_the_gate(rank_by):
    log_probs, reference = drawn(4)
    log_probs.requires_grad_()
    values = doubles([0.1, 0.5, 0.3, 0.9])
    found = rspo(log_probs, reference, values, **OPEN | {"rank_by": rank_by, "delta": 0.1})
    (gradient,) = torch.autograd.grad(found.loss_PG.sum(), log_probs)
    assert not found.weights_PGG.requires_grad
    fixed = softmax_preference(log_probs, reference, found.weights_PGG, found.keeps_reference_PG, beta=0.7)
    (expected,) = torch.autograd.grad(fixed.sum() / math.log(2), log_probs)
    assert torch.allclose(gradient, expected)


def test_gradient_lifts_the_best_and_lowers_the_worst():
    log_probs, reference = drawn(3)
    log_probs.requires_grad_()
    (gradient,) = torch.autograd.grad(rspo(log_probs, reference, doubles([0.5, 0.9, 0.1]), **OPEN).mean(), log_probs)
    assert gradient[0, 1] < 0 < gradient[0, 2]
    assert gradient.sum().item() == pytest.approx(0)


def test_a_group_of_equal_values_costs_nothing_and_counts_as_zero():
    log_probs, reference = (torch.cat([part, part]).requires_grad_() for part in drawn(3))
    values = doubles([0.4, 0.4, 0.4], [0.4, 0.6, 0.4])
    for loss, options in LOSSES:
        found = loss(log_probs, reference, values, **options)
        assert found.loss_PG[0].tolist() == [0, 0, 0]
        assert found.mean().item() == pytest.approx(found.loss_PG[1, 1].item() / 2)
        (gradient,) = torch.autograd.grad(found.mean(), log_probs)
        assert gradient[0].tolist() == [0, 0, 0]
        assert torch.isfinite(gradient).all()
        assert (gradient[1] != 0).any()


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_log_ratios_of_a_thousand_nats_stay_finite_and_exact(size):
    log_probs = torch.tensor([[size, 0.0, -size]]).requires_grad_()
    reference, values = torch.zeros(1, 3), torch.tensor([[0.2, 0.5, 0.9]])
    for loss, options in LOSSES:
        found = loss(log_probs, reference, values, **options)
        (gradient,) = torch.autograd.grad(found.mean(), log_probs)
        assert torch.isfinite(gradient).all()
        expected = max(2 * size, 0.0) / (math.log(2) if loss is rspo else 1)
        assert found.loss_PG[0, 2].item() == pytest.approx(expected, rel=0.01, abs=1e-6)


def test_scale_weighs_winners_and_the_divisor_stays_their_number():
    log_probs, reference = drawn(3)
    found = rspo(log_probs, reference, doubles([0.5, 0.9, 0.1]), **OPEN)
    scaled = found.mean(doubles([2.0, 0.5, 7.0])).item()
    assert scaled == pytest.approx((2 * found.loss_PG[0, 0] + 0.5 * found.loss_PG[0, 1]).item() / 2)


def test_padding_a_list_changes_nothing():
    log_probs, reference = drawn(4)
    values = doubles([0.5, 0.9, 0.0, 0.3])
    for rank_by in ("reward", "model"):
        options = OPEN | {"rank_by": rank_by}
        short = rspo(log_probs, reference, values, **options).loss_PG
        longer = [torch.cat([part, doubles([fill, fill])], dim=1) for part, fill in
                  zip((log_probs, reference, values), (log_probs.mean(), -9.0, 0.0), strict=True)]  # fmt: skip
        is_candidate = torch.tensor([[True] * 4 + [False] * 2])
        found = rspo(*longer, **options, is_candidate_PG=is_candidate)
        assert found.loss_PG[0].tolist() == pytest.approx([*short[0].tolist(), 0, 0])
        assert found.mean().item() == pytest.approx(rspo(log_probs, reference, values, **options).mean().item())


def test_metrics_count_tied_groups_ordered_pairs_and_kept_references():
    log_probs = doubles([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0])
    values = doubles([0.9, 0.1, 0.5], [0.2, 0.2, 0.2])
    found = rspo(log_probs, log_probs + doubles([0.0, 0.0, -1.0]), values, **OPEN | {"delta": 0.4})
    metrics = preference_metrics(pair_statistics(found, log_probs))
    assert metrics == {
        "preference/tied_group_share": 0.5,
        "preference/ordered_pair_share": pytest.approx(2 / 3),
        "preference/reference_share": 0.5,  # (mean log-ratios 1/3 and 1/2)
    }
