from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.sids.collisions import (
    POLICIES,
    Quantised,
    _whole_prefixes,
    append_code,
    keep_buckets,
    pack,
    rank_in_runs,
    reassign,
    unpack,
    wins_leaf,
)
from genrec_rl.sids.rq_kmeans import encode

LINE = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
FAR = 100.0


def quantised(codes, residuals, *, between=FAR, popularity=None, taken=()) -> Quantised:
    """Items of two prefixes that lie ``between`` apart, above four leaves in steps of one."""
    codes = np.asarray(codes, np.int32)
    prefixes = np.array([[0.0], [between]], np.float32)
    return Quantised(
        codes=codes,
        vectors=prefixes[codes[:, 0]] + np.asarray(residuals, np.float32)[:, None],
        centroids=[prefixes, LINE],
        popularity=np.asarray(popularity if popularity is not None else np.zeros(len(codes)), np.int64),
        taken=np.asarray(taken, np.int32).reshape(-1, 2),
    )


def test_nearest_item_keeps_the_leaf_and_the_other_takes_its_next_nearest():
    items = quantised([[0, 1], [0, 1]], [1.4, 1.1])
    assert reassign(items).tolist() == [[0, 2], [0, 1]]


def test_mover_passes_over_an_occupied_leaf():
    items = quantised([[0, 1], [0, 1], [0, 2]], [1.4, 1.1, 2.0])
    assert reassign(items).tolist() == [[0, 0], [0, 1], [0, 2]]


def test_two_movers_wanting_one_leaf_leave_it_to_the_nearer():
    items = quantised([[0, 1], [0, 1], [0, 1]], [1.0, 1.3, 1.4])
    assert reassign(items).tolist() == [[0, 1], [0, 0], [0, 2]]


def test_equally_near_items_leave_the_leaf_to_the_lower_row():
    items = quantised([[0, 1], [0, 1]], [1.2, 1.2])
    assert reassign(items).tolist() == [[0, 1], [0, 2]]


def test_leaf_of_another_prefix_is_no_obstacle():
    items = quantised([[0, 1], [0, 1], [1, 2]], [1.0, 1.4, 2.0])
    assert reassign(items).tolist() == [[0, 1], [0, 2], [1, 2]]


def test_mover_takes_the_leaf_of_another_prefix_where_that_is_nearer():
    # Leaves 0 1 2 3 and .5 1.5 2.5 3.5: from 1.45 the free ones lie at .45 (leaf 1 is taken by 1.2), .05, .55.
    items = quantised([[0, 1], [0, 1]], [1.45, 1.2], between=0.5)
    assert reassign(items).tolist() == [[1, 1], [0, 1]]


def test_mover_stays_below_its_prefix_where_the_others_leaves_are_taken():
    items = quantised([[0, 1], [0, 1]], [1.45, 1.2], between=0.5, taken=[[1, 1], [1, 0]])
    assert reassign(items).tolist() == [[0, 2], [0, 1]]


def test_items_of_one_level_move_along_it():
    items = Quantised(
        codes=np.array([[1], [1]], np.int32),
        vectors=np.array([[1.4], [1.1]], np.float32),
        centroids=[LINE],
        popularity=np.zeros(2, np.int64),
        taken=np.empty((0, 1), np.int32),
    )
    assert reassign(items).tolist() == [[2], [1]]


def test_surplus_of_full_prefixes_stays_where_it_was():
    taken = [[1, 0], [1, 1], [1, 2], [1, 3]]
    items = quantised([[0, 0]] * 5, [0.0, 0.1, 0.2, 0.3, 0.4], taken=taken)
    codes = reassign(items)
    assert sorted(codes[:, 1].tolist()) == [0, 0, 1, 2, 3]
    assert codes[0, 1] == 0


def test_new_item_finds_taken_leaves_occupied():
    items = quantised([[0, 1]], [1.4], taken=[[0, 1], [0, 2]])
    assert reassign(items).tolist() == [[0, 0]]


def test_new_item_without_a_free_leaf_shares_its_nearest():
    items = quantised([[0, 1]], [1.4], taken=[[prefix, code] for prefix in range(2) for code in range(4)])
    assert reassign(items).tolist() == [[0, 1]]


def test_bucket_changes_nothing():
    items = quantised([[0, 1], [0, 1]], [1.4, 1.1])
    assert keep_buckets(items).tolist() == [[0, 1], [0, 1]]


def test_extra_code_numbers_a_bucket_from_the_most_popular():
    items = quantised([[0, 1], [1, 1], [0, 1], [0, 1]], [1.0] * 4, popularity=[2, 0, 9, 2])
    assert append_code(items).tolist() == [[0, 1, 1], [1, 1, 0], [0, 1, 0], [0, 1, 2]]


def test_extra_code_goes_on_counting_behind_earlier_items():
    items = quantised([[0, 1], [0, 1], [1, 1]], [1.0] * 3)
    extended = replace(items, taken=np.array([[0, 1, 0], [0, 1, 1]], np.int32))
    assert append_code(extended).tolist() == [[0, 1, 2], [0, 1, 3], [1, 1, 0]]


def test_pack_is_mixed_radix():
    assert pack(np.array([[2, 1, 3], [0, 0, 4]]), (3, 4, 5)).tolist() == [2 * 20 + 1 * 5 + 3, 4]


def test_unpack_undoes_pack():
    codes = np.array([[2, 1, 3], [0, 0, 4]])
    assert unpack(pack(codes, (3, 4, 5)), (3, 4, 5)).tolist() == codes.tolist()


def test_rank_in_runs():
    assert rank_in_runs(np.array([4, 4, 7, 9, 9, 9])).tolist() == [0, 1, 0, 0, 1, 2]
    assert rank_in_runs(np.array([], np.int64)).tolist() == []


def test_wins_leaf_keeps_one_item_a_leaf():
    is_winner = wins_leaf(np.array([5, 5, 8, 5]), np.array([0.3, 0.1, 9.0, 0.1], np.float32))
    assert is_winner.tolist() == [False, True, True, False]


@given(prefixes=st.lists(st.integers(0, 4), max_size=30), limit=st.integers(1, 8))
def test_chunks_hold_every_row_once_and_never_split_a_prefix(prefixes, limit):
    prefixes = np.array(prefixes, np.int64)
    chunks = list(_whole_prefixes(np.arange(len(prefixes)), prefixes, limit))
    assert sorted(np.concatenate([[], *chunks])) == list(range(len(prefixes)))
    owners = [set(prefixes[chunk]) for chunk in chunks]
    assert sum(map(len, owners)) == len(set().union(*owners))


@pytest.mark.parametrize("at_once", [1, 1 << 24])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_reassign_keeps_all_but_two_codes_and_is_unique_wherever_the_near_prefixes_fit(at_once, data):
    n, last = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    books = [rng.normal(size=(size, 2)).astype(np.float32) for size in (3, 2, last)]
    vectors = rng.integers(-2, 3, size=(n, 2)).astype(np.float32)
    codes = encode(vectors, books)
    items = Quantised(codes, vectors, books, np.zeros(n, np.int64), np.empty((0, 3), np.int32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genrec_rl.sids.collisions.DISTANCES_AT_ONCE", at_once)
        moved = reassign(items)
    assert (moved[:, 0] == codes[:, 0]).all()
    for first in np.unique(codes[:, 0]):
        leaves = moved[codes[:, 0] == first]
        assert len(np.unique(leaves, axis=0)) == min(len(leaves), 2 * last)


def test_policies_are_the_documented_three():
    assert set(POLICIES) == {"reassign", "bucket", "extra_code"}
