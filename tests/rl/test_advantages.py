import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.rl.advantages import (
    Shaping,
    centred,
    draw_rollouts,
    format_advantages,
    level_credit,
    policy_shares,
    reward_scale,
)

REWARDS = torch.tensor([[0.0, 0.2, 0.4], [0.5, 0.5, 0.5]])
ALL = torch.ones(2, 3, dtype=torch.bool)
groups = st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=3).map(torch.tensor)


def advantages(rewards, *, is_valid=None, tokens=None, log_probs=None, seeds=None, **choices):
    shaping = Shaping(**choices)
    is_valid = torch.ones_like(rewards, dtype=torch.bool) if is_valid is None else is_valid
    if tokens is None:
        tokens = torch.arange(rewards.shape[1]).expand(len(rewards), -1)[..., None]
    return shaping.advantages(
        rewards, is_valid, divisor_P1=shaping.divisor(rewards, is_valid),
        log_probs_PG=torch.zeros_like(rewards) if log_probs is None else log_probs, tokens_PGC=tokens,
        seeds=seeds or [[p] for p in range(len(rewards))],
    )  # fmt: skip


def test_hand_worked_group():
    assert advantages(REWARDS).tolist() == [
        pytest.approx([-0.2 / 0.2001, 0.0, 0.2 / 0.2001], abs=1e-6),
        pytest.approx([0.0, 0.0, 0.0]),
    ]


def test_deviation_of_the_batch_and_none():
    std = REWARDS.flatten().std().item()
    assert reward_scale(REWARDS, ALL, scale="batch").tolist() == [[pytest.approx(std + 1e-4)]] * 2
    assert reward_scale(REWARDS, ALL, scale="none").tolist() == [[1.0], [1.0]]
    assert reward_scale(REWARDS, ALL, scale="batch", min_std=0.5).tolist() == [[pytest.approx(0.5001)]] * 2


def test_floor_keeps_small_differences_small():
    found = advantages(REWARDS / 100, min_std=0.1)
    assert found[0].tolist() == pytest.approx([-0.002 / 0.1001, 0.0, 0.002 / 0.1001])


def test_floor_below_the_deviation_changes_nothing():
    assert advantages(REWARDS[:1], min_std=0.1).equal(advantages(REWARDS[:1]))


def test_dropped_rollouts_leave_the_baseline_and_earn_nothing():
    is_valid = torch.tensor([[False, True, True], [False, False, True]])
    found = advantages(REWARDS, is_valid=is_valid, invalid_rollouts="drop", scale_rewards="none")
    assert found[0].tolist() == pytest.approx([0.0, -0.1, 0.1])
    assert found[1].tolist() == [0, 0, 0]
    kept = advantages(REWARDS, is_valid=is_valid, scale_rewards="none")
    assert kept[0].tolist() == pytest.approx([-0.2, 0.0, 0.2])


def test_weights_of_the_policy_are_the_gradient_of_the_expected_reward():
    log_probs = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    (log_probs.softmax(1) * REWARDS[:1]).sum().backward()
    found = advantages(REWARDS[:1], log_probs=log_probs.detach(), rollout_weights="policy", scale_rewards="none")
    assert torch.allclose(found / 3, log_probs.grad, atol=1e-6)


def test_equal_log_probs_weigh_as_uniform():
    assert torch.allclose(advantages(REWARDS, rollout_weights="policy"), advantages(REWARDS), atol=1e-6)


def test_dropped_rollouts_have_no_share():
    is_valid = torch.tensor([[False, True, True], [False, False, False]])
    shares = policy_shares(torch.zeros(2, 3), is_valid)
    assert shares.tolist() == [[0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]


TREE = torch.tensor([[[0, 0], [0, 1], [1, 0]]])


def test_level_credit_of_a_hand_worked_tree():
    found = level_credit(torch.tensor([[0.0, 0.6, 0.9]]), torch.ones(1, 3, dtype=torch.bool), TREE)
    # V() = .5, V(0) = .3, V(1) = .9; a last token that nobody else could have chosen otherwise earns nothing
    assert found[0].tolist() == [pytest.approx(x, abs=1e-6) for x in ([-0.4, -0.6], [-0.4, 0.6], [0.8, 0.0])]


@settings(max_examples=30, deadline=None)
@given(groups, st.data())
def test_level_credits_mean_over_tokens_is_the_sequences_advantage(rewards, data):
    codes = data.draw(st.lists(st.integers(0, 1), min_size=12, max_size=12))
    tokens = torch.tensor(codes).view(1, 4, 3).expand(len(rewards), -1, -1)
    is_counted = torch.ones_like(rewards, dtype=torch.bool)
    found = level_credit(rewards, is_counted, tokens)
    # rollouts that are the same share the mean of their rewards
    same = (tokens[:, :, None] == tokens[:, None]).all(-1).float()
    values = (same * rewards[:, None]).sum(2) / same.sum(2)
    assert torch.allclose(found.mean(-1), values - rewards.mean(1, keepdim=True), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(groups, st.permutations(range(4)), st.sampled_from(["uniform", "policy"]))
def test_advantages_sum_to_zero_and_follow_a_permutation(rewards, order, weights):
    log_probs = torch.linspace(-3, -1, 4).expand_as(rewards)
    found = advantages(rewards, log_probs=log_probs, rollout_weights=weights, scale_rewards="none")
    assert torch.allclose(found.sum(1), torch.zeros(len(rewards)), atol=1e-5)
    moved = advantages(
        rewards[:, order], log_probs=log_probs[:, order], rollout_weights=weights, scale_rewards="none"
    )
    assert torch.allclose(moved, found[:, order], atol=1e-6)


@pytest.mark.parametrize("choices", [{}, {"rollout_weights": "policy"}, {"credit": "level"}, {"min_std": 0.1}])
def test_uniform_rewards_have_no_advantage(choices):
    assert advantages(torch.full((2, 3), 0.3), **choices).abs().max() < 1e-3


def test_centred_with_shares_is_g_times_q_times_what_is_above_the_expectation():
    shares = torch.tensor([[0.5, 0.25, 0.25]])
    found = centred(REWARDS[:1], ALL[:1], shares_PG=shares)
    assert found[0].tolist() == pytest.approx([3 * 0.5 * -0.15, 3 * 0.25 * 0.05, 3 * 0.25 * 0.25])


def test_format_reward_is_one_for_valid_among_the_drawn_and_its_mean_is_over_these():
    is_valid = torch.tensor([[True, False, True, True]])
    is_drawn = torch.tensor([[True, True, False, False]])
    found = format_advantages(is_valid, is_drawn)
    assert found.tolist() == [[2.0, 0.0, 0.0, 0.0]]


def test_format_reward_joins_the_advantages_of_k_random_rollouts():
    is_valid = torch.ones(2, 3, dtype=torch.bool)
    with_format = advantages(REWARDS, is_valid=is_valid, format_coef=0.5, format_rollouts=1)
    added = with_format - advantages(REWARDS)
    assert sorted(added[0].tolist()) == pytest.approx([0.0, 0.0, 1.5])


def test_draws_are_the_pages_own():
    drawn = draw_rollouts(8, k=3, seeds=[[1], [2], [1]])
    assert drawn.sum(1).tolist() == [3, 3, 3]
    assert drawn[0].equal(drawn[2])
    assert any(not draw_rollouts(8, k=3, seeds=[[s]]).equal(drawn[:1]) for s in range(2, 9))


def test_defaults_are_said_to_be_trls():
    assert Shaping().is_trls
    assert Shaping(scale_rewards="none", format_rollouts=2).is_trls
    assert not Shaping(min_std=0.1).is_trls
