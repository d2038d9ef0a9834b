import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.decoding.exclusion import SeenItems
from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.errors import RolloutError
from genrec_rl.types import NO_ITEM
from tests.fixtures import CODES, make_catalog, make_context, make_policy

CATALOG = make_catalog()
POLICIES = {softmax: make_policy(CATALOG, softmax=softmax) for softmax in ("vocabulary", "children")}


def closed_codes(histories, level, catalog=CATALOG):
    policy = POLICIES["vocabulary"]
    found = SeenItems(catalog, policy.vocab).of([make_context(history) for history in histories]).closed[level]
    starts = torch.tensor(policy.vocab.level_starts[: level + 1])
    return [[(row - starts).tolist() for row in rows if row[-1] >= 0] for rows in found]


def test_a_prefix_is_closed_when_all_its_sids_are_seen():
    # items 0 and 1 are all of [0, 0]; item 4 is all of [1, 0]; 7 and 8 are all of [2]
    assert closed_codes([[0, 1, 4], [0], [7, 8]], level=1) == [[[0, 0], [1, 0]], [], [[2, 0], [2, 3]]]
    assert closed_codes([[0, 1, 4], [0], [7, 8]], level=0) == [[], [], [[2]]]
    assert closed_codes([[1, 1], []], level=2) == [[[0, 0, 1]], []]


def test_what_was_disliked_is_closed_as_the_history_is():
    seen = SeenItems(CATALOG, POLICIES["vocabulary"].vocab)
    both, history = seen.of([make_context([0], disliked=[1])]), seen.of([make_context([0, 1])])
    for closed, as_history in zip(both.closed, history.closed, strict=True):
        assert closed.tolist() == as_history.tolist()
    assert seen.n_left([make_context([0], disliked=[1, 0])]).tolist() == [10]


def test_items_that_share_a_sid_are_excluded_together():
    shared = make_catalog(np.concatenate([CODES, CODES[:1]]))
    assert closed_codes([[12]], level=2, catalog=shared) == [[[0, 0, 0]]]


def test_sids_that_histories_leave_are_counted():
    seen = SeenItems(CATALOG, POLICIES["vocabulary"].vocab)
    assert seen.n_left([make_context([0, 1, 1]), make_context([])]).tolist() == [10, 12]


def test_a_history_that_leaves_too_few_is_refused_with_both_numbers():
    seen = SeenItems(CATALOG, POLICIES["vocabulary"].vocab)
    contexts = [make_context([0]), make_context([3, 4, 5], user="v")]
    seen.check(contexts, at_least=9)
    seen.check([], at_least=9)
    with pytest.raises(RolloutError, match="a request of user 'v' 9 SIDs of the catalogue, and 10 are asked for"):
        seen.check(contexts, at_least=10)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 11), max_size=8), st.integers(1, 4), st.sampled_from(sorted(POLICIES)))
def test_answers_are_the_best_of_what_is_not_seen(seen, k, softmax):
    """With full beams the search is exact, so that leaving out afterwards is the same."""
    context, policy = make_context(sorted(seen)), POLICIES[softmax]
    recommender = BeamRecommender(policy, catalog=CATALOG, beam_widths=[12, 12, k], exclude_seen=True)
    found = recommender.recommend([context], k=k, constrained=True)
    everything = BeamRecommender(policy, catalog=CATALOG).recommend([context], k=12, constrained=True)
    is_new = torch.tensor([row not in seen for row in everything.rows_PG[0].tolist()])
    assert found.rows_PG[0].tolist() == everything.rows_PG[0][is_new][:k].tolist()
    torch.testing.assert_close(found.log_probs_PG[0], everything.log_probs_PG[0][is_new][:k])


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("softmax", sorted(POLICIES))
def test_beams_never_end_in_nothing(softmax, batch_size):
    """As many beams as answers at every level: each kept prefix still leads somewhere."""
    contexts = [make_context([9, 10, 3]), make_context([]), make_context([0, 1, 2, 4, 5, 6, 7]), make_context([8])]
    recommender = BeamRecommender(POLICIES[softmax], catalog=CATALOG, exclude_seen=True, batch_size=batch_size)
    rows_PK = recommender.recommend(contexts, k=5, constrained=True).rows_PG
    assert (rows_PK != NO_ITEM).all()
    for context, rows in zip(contexts, rows_PK, strict=True):
        assert len(rows.unique()) == 5
        assert not set(rows.tolist()) & set(context.history.tolist())


def test_a_request_with_fewer_left_ends_with_no_item():
    contexts = [make_context(list(range(10))), make_context([0])]
    recommender = BeamRecommender(POLICIES["vocabulary"], catalog=CATALOG, exclude_seen=True)
    found = recommender.recommend(contexts, k=12, constrained=True)
    assert sorted(found.rows_PG[0].tolist())[-2:] == [10, 11]
    assert (found.rows_PG[0, 2:] == NO_ITEM).all()
    assert (found.log_probs_PG[0, 2:] == -torch.inf).all()
    assert (found.rows_PG[1, :11] != NO_ITEM).all()


def test_calls_with_other_histories_have_one_width():
    recommender = BeamRecommender(POLICIES["children"], catalog=CATALOG, exclude_seen=True)
    widths = [
        recommender.recommend([make_context(seen)], k=5, constrained=True).rows_PG.shape[1]
        for seen in ([], list(range(10)), list(range(12)))
    ]
    assert widths == [5, 5, 5]


def test_narrow_beams_are_refused_for_whom_they_fail_whatever_others_have_seen():
    narrow = BeamRecommender(POLICIES["children"], catalog=CATALOG, exclude_seen=True, beam_widths=[1, 1, 5])
    for histories in ([[]], [[], list(range(11))]):
        with pytest.raises(RolloutError, match=r"with \d of 5 answers \(exclude_seen\)"):
            narrow.recommend([make_context(seen) for seen in histories], k=5, constrained=True)


def test_free_beams_leave_seen_sids_out_and_keep_invalid_ones():
    policy = POLICIES["vocabulary"]
    recommender = BeamRecommender(policy, catalog=CATALOG, exclude_seen=True, normalisation="level")
    found = recommender.recommend([make_context([0, 1, 2, 3, 11])], k=50, constrained=False)
    assert set(found.rows_PG[0].tolist()) == {NO_ITEM, *range(4, 11)}
    # all items behind [0] and behind [3, 3] are seen: 64 SIDs without 16 and without 4
    assert (found.log_probs_PG > -torch.inf).sum() == 44
    assert (found.sids_PGL[0, :44, 0] > 0).all()


def test_draws_without_repeats_leave_seen_items_out():
    context = make_context([0, 3, 5, 9])
    sampler = BeamRecommender(POLICIES["children"], catalog=CATALOG, exclude_seen=True, sample_seed=0)
    drawn = sampler.recommend([context] * 50, k=8, constrained=True).rows_PG
    assert all(set(row.tolist()) == set(range(12)) - {0, 3, 5, 9} for row in drawn)
