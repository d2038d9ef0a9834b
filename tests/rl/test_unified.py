import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.rl.unified import (
    CandidateList,
    candidate_list,
    imitation_weights,
    preference_weights,
    rank_disagreement,
    unified_weights,
)

ROLLOUTS = torch.tensor([[[0, 2], [0, 3], [1, 2]]])
VALUES = torch.tensor([[0.5, 0.8, 0.2]])
POSITIVES = torch.tensor([[[0, 3], [1, 3], [1, 3], [0, 2]]])
"""A hit, one that no rollout found, the same once more (two items of one SID), and padding."""
IS_POSITIVE = torch.tensor([[True, True, True, False]])


def plain(values) -> CandidateList:
    values = torch.tensor([values])
    return CandidateList(values, torch.ones_like(values, dtype=torch.bool), torch.arange(values.shape[1])[None])


def test_list_holds_each_sid_once_and_values_new_positives_at_the_groups_best():
    found = candidate_list(ROLLOUTS, VALUES, POSITIVES, IS_POSITIVE)
    assert found.is_candidate_PN.tolist() == [[True, True, True, False, True, False, False]]
    assert found.values_PN[0].tolist() == pytest.approx([0.5, 0.8, 0.2, 0, 0.8, 0, 0])
    assert found.first_PN.tolist() == [[0, 1, 2, 1, 4, 4, 0]]


def test_disagreement_is_the_distance_of_ranks_over_the_others():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    found = rank_disagreement(log_probs, plain([0.1, 0.9, 0.5, 0.7]))  # places 1 2 3 4 by model, 4 1 3 2 by value
    assert found[0].tolist() == pytest.approx([1, 1 / 3, 0, 2 / 3])


def test_equal_values_share_a_place_and_padding_has_none():
    listed = CandidateList(
        torch.tensor([[0.4, 0.4, 0.9, 0.0]]), torch.tensor([[True, True, True, False]]), torch.arange(4)[None]
    )
    found = rank_disagreement(torch.tensor([[-1.0, -2.0, -3.0, 0.0]]), listed)
    assert found[0, :3].tolist() == pytest.approx([1.5 / 2, 0.5 / 2, 1])


def test_a_list_of_one_agrees():
    assert rank_disagreement(torch.tensor([[-3.0]]), plain([0.3])).tolist() == [[0]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.2, 0.7, 1.0]), min_size=1, max_size=8), st.integers(0, 99))
def test_disagreement_lies_between_0_and_1(values, seed):
    log_probs = torch.randn(1, len(values), generator=torch.Generator().manual_seed(seed))
    found = rank_disagreement(log_probs, plain(values))
    assert ((found >= 0) & (found <= 1)).all()


def test_disagreement_has_no_gradient():
    log_probs = torch.tensor([[-1.0, -2.0]]).requires_grad_()
    assert not rank_disagreement(log_probs, plain([0.1, 0.9])).requires_grad


def test_weights_are_the_equations():
    values, disagreement = torch.tensor([[0.5, 0.5, 3.0]]), torch.tensor([[0.0, 1.0, 0.5]])
    assert imitation_weights(values, disagreement)[0].tolist() == pytest.approx([1, 1.5, 2])
    assert preference_weights(disagreement, z_max=3.0)[0].tolist() == pytest.approx([3, 0, 1.5])


def test_a_positive_that_a_rollout_found_has_that_rollouts_weight():
    listed = candidate_list(ROLLOUTS, VALUES, POSITIVES, IS_POSITIVE)
    log_probs = torch.tensor([[-1.0, -2.0, -3.0, -2.0, -9.0, -9.0, -1.0]])
    preference, imitation = unified_weights(log_probs, listed, z_max=2.0)
    # by model 1 2 3 4, by value 3 1.5 4 1.5 (the unseen positive last): over the 3 others
    assert preference[0, [0, 1, 2, 4]].tolist() == pytest.approx([2 / 3, 5 / 3, 4 / 3, 1 / 3])
    expected = [1.8 ** (0.5 / 3), 1.8 ** (2.5 / 3), 1.8 ** (2.5 / 3)]
    assert imitation[0, 3:6].tolist() == pytest.approx(expected)
    assert math.isclose(imitation[0, 1], imitation[0, 3])
