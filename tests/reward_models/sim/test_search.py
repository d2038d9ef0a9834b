import torch

from reward_models.sim.search import (
    hard_search,
    keep_top_k,
    latest_of_key,
    most_relevant,
    soft_search,
    top_k_indices,
)

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


def found(places, is_kept):
    return [row[kept].tolist() for row, kept in zip(places.flatten(0, -2), is_kept.flatten(0, -2), strict=True)]


def test_latest_of_key_follows_the_pointer_to_the_latest_k_of_a_group():
    # places 0 1 | 2 3 4 hold behaviours of key 2 | key 7
    keys, sizes = torch.tensor([[2, 7]]), torch.tensor([[2, 3]])
    assert found(*latest_of_key(torch.tensor([[7, 2]]), keys, sizes, top_k=2)) == [[4, 3], [1, 0]]


def test_latest_of_key_finds_fewer_where_a_group_is_smaller_and_none_without_a_group():
    keys, sizes = torch.tensor([[2, 7]]), torch.tensor([[2, 3]])
    places, is_kept = latest_of_key(torch.tensor([[2, 1, 5, 9]]), keys, sizes, top_k=4)
    assert found(places, is_kept) == [[1, 0], [], [], []]
    assert (places[~is_kept] == 0).all()


def test_latest_of_key_never_finds_padding():
    keys, sizes = torch.tensor([[2, 7], [4, 10]]), torch.tensor([[2, 3], [1, 0]])
    assert found(*latest_of_key(torch.tensor([[7], [9]]), keys, sizes, top_k=1)) == [[4], []]


def test_most_relevant_of_distinct_items_are_the_top_k():
    relevance = torch.tensor([[[1.0, 3, 2, -1], [0.0, -1, -2, 5]]])
    places, is_kept = most_relevant(relevance, torch.ones(1, 4, dtype=torch.long), top_k=2)
    assert [sorted(row) for row in found(places, is_kept)] == [[1, 2], [0, 3]]


def test_most_relevant_takes_the_latest_of_a_repeated_item():
    # items of 2, 1 and 3 behaviours, at places 0 1 | 2 | 3 4 5
    relevance, sizes = torch.tensor([[[0.1, 0.9, 0.5]]]), torch.tensor([[2, 1, 3]])
    assert found(*most_relevant(relevance, sizes, top_k=3)) == [[2, 5, 4]]
    assert found(*most_relevant(relevance, sizes, top_k=6)) == [[2, 5, 4, 3, 1, 0]]


def test_most_relevant_keeps_no_padding():
    relevance = torch.tensor([[[-5.0, -torch.inf, -torch.inf]], [[-1.0, -2, -3]]])
    one_each, repeated = torch.tensor([[1, 0, 0], [1, 1, 1]]), torch.tensor([[2, 0, 0], [1, 1, 1]])
    assert [sorted(row) for row in found(*most_relevant(relevance, one_each, top_k=3))] == [[0], [0, 1, 2]]
    assert found(*most_relevant(relevance, repeated, top_k=3)) == [[1, 0], [0, 1, 2]]


def test_top_k_of_a_long_row_is_found_wherever_it_lies():
    # 2,003 numbers are 250 chunks and a rest of 3: two members of one chunk, the ends, two in the rest
    highest = [0, 10, 260, 1_999, 2_000, 2_002]
    scores = torch.zeros(2, 2_003)
    scores[0, highest] = torch.arange(1.0, 7)
    scores[1] = -torch.arange(2_003.0)
    found = top_k_indices(scores, top_k=6).sort().values.tolist()
    assert found == [highest, [0, 1, 2, 3, 4, 5]]
