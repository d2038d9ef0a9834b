import numpy as np
import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.types import NO_ITEM, Action, Context, Example
from reward_models.candidates import Kind, NegativeSampler, add_misses, label_candidates, label_proposals, pad_rows
from tests.fixtures import CODES, make_catalog, make_example

NOTHING = np.empty(0, dtype=np.int64)
CONTEXT = Context("u", 100, NOTHING, NOTHING, NOTHING)


def page(items, actions):
    return Example("r", CONTEXT, np.array(items), np.array(actions, dtype=np.int8))


PAGES = [
    page([4, 1, 2], [Action.ORDER, Action.CLICK, Action.EXPOSE]),
    page([3], [Action.CLICK]),
]


def label(popular_share=0.5, **settings):
    sampler = NegativeSampler(np.array([5, 0, 3, 1, 1]), popular_share=popular_share)
    return label_candidates(PAGES, sampler=sampler, rng=np.random.default_rng(0), **settings)


def test_ordered_and_clicked_are_positive_and_exposed_is_not():
    candidates = label(negatives_per_positive=0)
    np.testing.assert_array_equal(candidates.rows_PG, [[4, 1, 2], [3, 0, 0]])
    np.testing.assert_array_equal(candidates.labels_PG, [[1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(candidates.is_real_PG, [[True] * 3, [True, False, False]])


def test_each_positive_brings_its_number_of_drawn_negatives():
    candidates = label(negatives_per_positive=2)
    is_drawn = (candidates.kinds_PG == Kind.DRAWN) & candidates.is_real_PG
    np.testing.assert_array_equal(is_drawn.sum(axis=1), [4, 2])


def test_exposed_items_can_be_left_out():
    assert not (label(negatives_per_positive=1, with_exposed=False).kinds_PG == Kind.EXPOSED).any()


@pytest.mark.parametrize("popular_share", [0.0, 0.5, 1.0])
def test_a_positive_of_the_page_is_never_drawn(popular_share):
    sampler = NegativeSampler(np.array([5, 0, 3, 1, 1]), popular_share=popular_share)
    drawn = sampler.draw([np.array([0, 2]), np.array([4])], 500, rng=np.random.default_rng(0))
    assert not np.isin(drawn[0], [0, 2]).any()
    assert not (drawn[1] == 4).any()
    assert drawn.min() >= 0
    assert drawn.max() <= 4


def test_draws_mix_popularity_with_uniform():
    sampler = NegativeSampler(np.array([8, 0, 2, 0]), popular_share=0.5)
    drawn = sampler.draw([NOTHING], 20_000, rng=np.random.default_rng(0))
    shares = np.bincount(drawn[0], minlength=4) / 20_000
    np.testing.assert_allclose(shares, [0.4 + 0.125, 0.125, 0.1 + 0.125, 0.125], atol=0.015)


def test_the_same_seed_draws_the_same():
    np.testing.assert_array_equal(label(negatives_per_positive=3).rows_PG, label(negatives_per_positive=3).rows_PG)


def test_a_page_of_all_items_has_no_negatives_to_draw():
    sampler = NegativeSampler(np.ones(2, dtype=int), popular_share=0.0)
    with pytest.raises(ConfigError, match="all 2 items"):
        sampler.draw([np.array([0, 1])], 1, rng=np.random.default_rng(0))


@pytest.mark.parametrize(("popularity", "share"), [([1, 1], 1.5), ([1, 1], -0.1), ([0, 0], 0.5)])
def test_impossible_shares_are_refused(popularity, share):
    with pytest.raises(ConfigError, match=f"popular_share {share}"):
        NegativeSampler(np.array(popularity), popular_share=share)


def test_no_rows_pad_to_nothing():
    assert pad_rows([], fill=0).shape == (0, 0)


def test_proposals_are_labelled_and_no_positive_is_added():
    examples = [make_example([0], [1, 2]), make_example([3], [4])]
    found = label_proposals(examples, np.array([[2, 5, NO_ITEM], [6, 7, 8]]), catalog=make_catalog())
    assert found.labels_PG.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert found.is_real_PG.tolist() == [[True, True, False], [True, True, True]]
    assert found.kinds_PG[0, 1] == Kind.PROPOSED


def test_a_proposed_sid_is_a_hit_whichever_of_its_items_was_meant():
    codes = CODES.copy()
    codes[5] = codes[4]
    catalog = make_catalog(codes)
    (meant,) = {int(catalog.rows_of(codes[[row]])[0]) for row in (4, 5)}
    for positive in (4, 5):
        found = label_proposals([make_example([0], [positive])], np.array([[meant, 7]]), catalog=catalog)
        assert found.labels_PG.tolist() == [[1, 0]]


def test_ordered_items_are_marked_among_positives():
    logged = label(negatives_per_positive=1)
    assert logged.is_ordered_PG.tolist() == [[True, False, False, False, False], [False] * 5]
    examples = [make_example([0], [1], clicks=[2])]
    proposed = label_proposals(examples, np.array([[2, 1, NO_ITEM, 5]]), catalog=make_catalog())
    assert proposed.is_ordered_PG.tolist() == [[False, True, False, False]]


def test_misses_are_added_and_hits_are_not():
    examples = [make_example([0], [1]), make_example([3], [4])]
    proposals = label_proposals(examples, np.array([[1, 5, 6], [7, NO_ITEM, NO_ITEM]]), catalog=make_catalog())
    sampler = NegativeSampler(np.ones(12, dtype=int), popular_share=0.0)
    rng = np.random.default_rng(0)
    logged = label_candidates(examples, sampler=sampler, rng=rng, negatives_per_positive=0)
    found = add_misses(logged, proposals, per_page=3, rng=rng)
    assert [sorted(row[real]) for row, real in zip(found.rows_PG, found.is_real_PG, strict=True)] == [
        [1, 5, 6],
        [4, 7],
    ]
    assert found.labels_PG.sum() == 2
    assert (found.kinds_PG[:, 1:] == Kind.PROPOSED).all()
    assert found.is_ordered_PG.sum() == 2


def test_misses_are_drawn_anew_and_without_repeats():
    examples = [make_example([0], [1])] * 40
    proposals = label_proposals(examples, np.tile([5, 6, 7], (40, 1)), catalog=make_catalog())
    sampler = NegativeSampler(np.ones(12, dtype=int), popular_share=0.0)
    rng = np.random.default_rng(0)
    logged = label_candidates(examples, sampler=sampler, rng=rng, negatives_per_positive=0)
    drawn = add_misses(logged, proposals, per_page=2, rng=rng).rows_PG[:, 1:]
    assert {tuple(sorted(row)) for row in drawn.tolist()} == {(5, 6), (5, 7), (6, 7)}


def test_some_pages_keep_their_candidates():
    logged = label(negatives_per_positive=1)
    some = logged.of_pages(np.array([1]))
    assert len(some.contexts) == 1
    np.testing.assert_array_equal(some.rows_PG, logged.rows_PG[1:])
    np.testing.assert_array_equal(some.is_real_PG, logged.is_real_PG[1:])
