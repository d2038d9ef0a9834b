import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrec_rl.errors import RewardError
from genrec_rl.rewards.calibration import anchor_positives, calibrate_rewards, gate_rewards, log_odds


def calibrated(raw, relevant=None, positive=None, **settings) -> list[list[float]]:
    raw = torch.tensor(raw)
    relevant = torch.ones(raw.shape, dtype=torch.bool) if relevant is None else torch.tensor(relevant)
    positive = torch.zeros(raw.shape, dtype=torch.bool) if positive is None else torch.tensor(positive)
    return calibrate_rewards(raw, relevant, positive, **settings).calibrated_PG


def approx(rewards):
    return pytest.approx(torch.tensor(rewards).flatten().tolist())


def check(found, expected):
    assert found.flatten().tolist() == approx(expected)


def test_positive_gets_the_group_maximum_not_one():
    check(calibrated([[0.2, 0.7, 0.1]], positive=[[True, False, False]]), [[0.7, 0.7, 0.1]])


def test_irrelevant_rollout_earns_nothing():
    check(calibrated([[0.2, 0.7]], relevant=[[True, False]]), [[0.2, 0.0]])


def test_maximum_is_taken_after_the_gate():
    check(
        calibrated([[0.2, 0.9, 0.5]], relevant=[[True, False, True]], positive=[[True, False, False]]),
        [[0.5, 0.0, 0.5]],
    )


def test_gated_positive_still_gets_the_maximum():
    check(calibrated([[0.9, 0.4]], relevant=[[False, True]], positive=[[True, False]]), [[0.4, 0.4]])


def test_hit_in_an_all_gated_group_earns_zero():
    check(calibrated([[0.9, 0.4]], relevant=[[False, False]], positive=[[True, False]]), [[0.0, 0.0]])


def test_other_groups_do_not_leak_into_the_maximum():
    check(
        calibrated([[0.1, 0.2], [0.8, 0.9]], positive=[[True, False], [False, False]]),
        [[0.2, 0.2], [0.8, 0.9]],
    )


def test_best_rollout_that_hits_keeps_its_own_reward():
    check(calibrated([[0.6, 0.3]], positive=[[True, False]]), [[0.6, 0.3]])


def test_several_hits_share_the_maximum():
    check(calibrated([[0.1, 0.3, 0.5]], positive=[[True, True, False]]), [[0.5, 0.5, 0.5]])


def test_without_anchoring_hits_keep_their_gated_reward():
    check(calibrated([[0.2, 0.7]], positive=[[True, False]], anchor=False), [[0.2, 0.7]])


def test_group_of_one_is_its_own_maximum():
    check(calibrated([[0.3]], positive=[[True]]), [[0.3]])


def test_every_stage_is_kept():
    raw, relevant, hit = torch.tensor([[0.9, 0.4]]), torch.tensor([[False, True]]), torch.tensor([[True, False]])
    stages = calibrate_rewards(raw, relevant, hit)
    assert stages.raw_PG.equal(raw)
    check(stages.gated_PG, [[0.0, 0.4]])
    check(stages.calibrated_PG, [[0.4, 0.4]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1])
def test_preference_that_is_no_reward_names_its_position(value):
    with pytest.raises(RewardError, match="rollout 1 in group 1"):
        calibrated([[0.1, 0.2], [0.3, value]])


unit = st.floats(0, 1, width=32)


@st.composite
def groups(draw):
    n_groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 6))

    def table(element):
        row = st.lists(element, min_size=size, max_size=size)
        return torch.tensor(draw(st.lists(row, min_size=n_groups, max_size=n_groups)))

    return table(unit), table(st.booleans()), table(st.booleans())


@given(groups())
def test_hits_equal_the_group_maximum_and_others_are_untouched(batch):
    raw, relevant, hit = batch
    gated = gate_rewards(raw, relevant)
    anchored = anchor_positives(gated, hit)
    best = gated.amax(1, keepdim=True).expand_as(gated)
    assert anchored[hit].equal(best[hit])
    assert anchored[~hit].equal(gated[~hit])


@given(groups())
def test_anchoring_never_raises_the_maximum(batch):
    raw, relevant, hit = batch
    gated = gate_rewards(raw, relevant)
    assert anchor_positives(gated, hit).amax(1).equal(gated.amax(1))


@given(groups())
def test_anchoring_never_lowers_a_reward(batch):
    raw, relevant, hit = batch
    gated = gate_rewards(raw, relevant)
    assert (anchor_positives(gated, hit) >= gated).all()


@given(groups())
def test_anchoring_twice_changes_nothing(batch):
    raw, relevant, hit = batch
    once = anchor_positives(gate_rewards(raw, relevant), hit)
    assert anchor_positives(once, hit).equal(once)


@given(groups(), st.randoms(use_true_random=False))
def test_permuting_a_group_permutes_its_rewards(batch, random):
    order = list(range(batch[0].shape[1]))
    random.shuffle(order)
    moved = calibrate_rewards(*(x[:, order] for x in batch)).calibrated_PG
    assert moved.equal(calibrate_rewards(*batch).calibrated_PG[:, order])


@given(groups())
def test_batch_equals_a_loop_over_groups(batch):
    whole = calibrate_rewards(*batch).calibrated_PG
    parts = [calibrate_rewards(*(x[i : i + 1] for x in batch)).calibrated_PG for i in range(len(whole))]
    assert whole.equal(torch.cat(parts))


@given(groups())
def test_rewards_stay_in_the_unit_interval(batch):
    rewards = calibrate_rewards(*batch).calibrated_PG
    assert ((rewards >= 0) & (rewards <= 1)).all()


@given(groups())
def test_without_hits_calibration_is_the_gate_alone(batch):
    raw, relevant, _ = batch
    no_hit = torch.zeros_like(relevant)
    assert calibrate_rewards(raw, relevant, no_hit).calibrated_PG.equal(gate_rewards(raw, relevant))


@given(groups())
def test_all_gated_groups_are_all_zero(batch):
    raw, _, hit = batch
    assert calibrate_rewards(raw, torch.zeros_like(hit), hit).calibrated_PG.eq(0).all()


@given(groups())
def test_duplicate_rollouts_earn_the_same(batch):
    raw, relevant, hit = (torch.cat([x, x], dim=1) for x in batch)
    rewards = calibrate_rewards(raw, relevant, hit).calibrated_PG
    assert rewards[:, : rewards.shape[1] // 2].equal(rewards[:, rewards.shape[1] // 2 :])


@given(groups())
def test_rollouts_that_miss_and_fail_the_gate_never_earn(batch):
    raw, relevant, hit = batch
    rewards = calibrate_rewards(raw, relevant, hit).calibrated_PG
    assert rewards[~relevant & ~hit].eq(0).all()


def test_log_odds_are_finite_at_0_and_1():
    assert log_odds(torch.tensor([[0.5, 0.9]])).tolist() == [approx([0, math.log(9)])]
    assert log_odds(torch.tensor([[0.0, 1.0]])).tolist() == [approx([-13.8155, 13.8155])]
    assert log_odds(torch.tensor([[0.5]])).dtype == torch.float32
