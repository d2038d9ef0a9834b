import numpy as np
import pytest
import torch

from genrec_rl.rewards.matching import match_positives
from genrec_rl.types import NO_ITEM


def test_a_rollout_hits_its_own_page_only():
    hits = match_positives(torch.tensor([[1, 2], [1, 2]]), [np.array([1]), np.array([2, 5])])
    assert hits.tolist() == [[True, False], [False, True]]


def test_an_invalid_sid_never_hits():
    assert not match_positives(torch.tensor([[NO_ITEM]]), [np.array([NO_ITEM])]).any()


def test_a_page_without_positives_has_no_hits():
    assert not match_positives(torch.tensor([[0, 1]]), [np.array([], int)]).any()


def test_equal_histories_with_other_targets_are_told_apart():
    rollouts = torch.tensor([[3, 4], [3, 4]])
    assert match_positives(rollouts, [np.array([3]), np.array([4])]).tolist() == [[True, False], [False, True]]


def test_pages_and_groups_must_pair():
    with pytest.raises(ValueError, match="2 rollout groups for 1 pages"):
        match_positives(torch.zeros(2, 1, dtype=torch.long), [np.array([0])])
