import torch

from reward_models.sim.search import hard_search, keep_top_k, soft_search

ALL_REAL = torch.ones(1, 5, dtype=torch.bool)


def kept(mask):
    return [torch.nonzero(row).flatten().tolist() for row in mask.flatten(0, -2)]


def test_hard_search_keeps_the_most_recent_k_of_the_candidates_category():
    keys = torch.tensor([[7, 7, 2, 7, 2]])
    found = hard_search(keys, torch.tensor([[7, 2, 9]]), ALL_REAL, top_k=2)
    assert kept(found) == [[1, 3], [2, 4], []]


def test_hard_search_ignores_padding_of_the_same_category():
    is_real = torch.tensor([[False, False, True, True, True]])
    found = hard_search(torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long), is_real, top_k=4)
    assert kept(found) == [[2, 3, 4]]


def test_soft_search_never_prefers_padding_to_a_negative_score():
    # FuxiCTR 2.3 multiplies by the mask and picks the padding, whose score of 0 beats every real one
    relevance = torch.tensor([[[-2.0, -1, -3, 0.5, -4]]])
    is_real = torch.tensor([[False, False, False, True, True]])
    assert kept(soft_search(relevance, is_real, top_k=3)) == [[3, 4]]
    assert kept(soft_search(-relevance.abs(), is_real, top_k=1)) == [[3]]


def test_soft_search_keeps_the_highest_scores_for_each_candidate():
    relevance = torch.tensor([[[1.0, 3, 2, -1, 0], [0.0, -1, -2, 5, -3]]])
    assert kept(soft_search(relevance, ALL_REAL, top_k=2)) == [[1, 2], [0, 3]]


def test_a_user_without_behaviours_keeps_none():
    assert not soft_search(torch.ones(1, 2, 5), ~ALL_REAL, top_k=3).any()


def test_top_k_beyond_the_history_keeps_what_is_eligible():
    is_eligible = torch.tensor([[True, False, True]])
    assert kept(keep_top_k(torch.zeros(1, 3), is_eligible, top_k=9)) == [[0, 2]]
