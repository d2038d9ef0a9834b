"""Popularity and co-occurrence on counts that can be added up by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.baselines import Cooccurrence, Popularity, counted_system
from genrec_rl.types import NO_ITEM, Action, Context, Example

CODES = np.arange(10).reshape(5, 2)
COUNTS = np.array([1, 4, 4, 0, 2])


def context(*history):
    rows = np.array(history, dtype=np.int32)
    return Context("u", 0, rows, np.zeros(len(rows), int), np.zeros(len(rows), int))


def page(history, positives, exposed=()):
    items = np.array([*positives, *exposed])
    actions = [Action.CLICK] * len(positives) + [Action.EXPOSE] * len(exposed)
    return Example("r", context(*history), items, np.array(actions, dtype=np.int8))


def rows(recommender, *contexts, k=5):
    return recommender.recommend(contexts, k=k, constrained=True).rows_PG.tolist()


def test_popularity_ranks_by_count_then_row():
    assert rows(Popularity(COUNTS, codes=CODES), context(3), context()) == [[1, 2, 4, 0, 3]] * 2


def test_seen_items_are_left_out_and_the_next_move_up():
    unseen = Popularity(COUNTS, codes=CODES, exclude_seen=True)
    assert rows(unseen, context(1, 4), context(), k=3) == [[2, 0, 3], [1, 2, 4]]
    assert unseen.recommend([], k=3).rows_PG.shape == (0, 3)
    assert rows(unseen, replace(context(1), disliked=np.array([4])), k=3) == [[2, 0, 3]]


def test_what_followed_is_left_out_where_it_is_seen():
    pages = [page([0], [3]), page([0], [3]), page([0], [4])]
    fitted = Cooccurrence.fit(pages, COUNTS, codes=CODES, exclude_seen=True)
    assert rows(fitted, context(3, 0), k=1) == [[4]]
    assert rows(fitted, context(0), k=1) == [[3]]


def test_who_has_seen_nearly_everything_ends_with_no_item():
    answer = Popularity(COUNTS, codes=CODES, exclude_seen=True).recommend([context(0, 1, 2, 3)], k=3)
    assert answer.rows_PG.tolist() == [[4, NO_ITEM, NO_ITEM]]
    assert answer.log_probs_PG[0].isinf().tolist() == [False, True, True]
    assert (answer.sids_PGL[0, 1:] == -1).all()


def test_answers_carry_the_items_sids_best_first():
    answer = Popularity(COUNTS, codes=CODES).recommend([context()], k=3)
    assert answer.sids_PGL.tolist() == [[[2, 3], [4, 5], [8, 9]]]
    assert answer.log_probs_PG[0, 0].exp().item() == pytest.approx(4 / 11, rel=1e-4)
    assert (answer.log_probs_PG.diff() <= 0).all()
    assert answer.is_valid_PG.all()


def test_item_that_followed_outranks_a_popular_one():
    pages = [page([0], [3]), page([0], [3]), page([4], [1])]
    fitted = Cooccurrence.fit(pages, COUNTS, codes=CODES)
    assert rows(fitted, context(0))[0][0] == 3
    assert rows(fitted, context(4))[0][0] == 1


def test_counts_go_forward_only():
    fitted = Cooccurrence.fit([page([0], [3])], COUNTS, codes=CODES)
    assert rows(fitted, context(3)) == [[1, 2, 4, 0, 3]]  # nothing followed 3: popularity


def test_older_items_count_less_in_fitting_and_in_serving():
    # after 0: 3 counts 1, 1 counts .5 (from two steps back); after 4: 1 counts 1
    pages = [page([0, 4], [1]), page([0], [3])]
    fitted = Cooccurrence.fit(pages, COUNTS, codes=CODES, decay=0.5)
    assert rows(fitted, context(0), k=2) == [[3, 1]]
    assert rows(fitted, context(0, 4), k=2) == [[1, 3]]  # 1 * 1 + .5 * .5 against .5 * 1
    share = fitted.recommend([context(0, 4)], k=2).log_probs_PG[0, 0].item()
    assert share == pytest.approx(math.log(1.25 / 1.75), abs=1e-4)


def test_items_of_a_page_follow_one_another():
    fitted = Cooccurrence.fit([page([0], [3, 4])], COUNTS, codes=CODES, decay=0.5)
    assert rows(fitted, context(3), k=1) == [[4]]
    assert rows(fitted, context(0), k=2) == [[3, 4]]  # 3 one step on, 4 two
    assert rows(fitted, context(4), k=1) == [[1]]  # nothing follows 4


def test_pair_of_the_history_is_not_counted_again():
    # 4 followed 0 on an earlier page; this page tells of 1 only
    fitted = Cooccurrence.fit([page([0, 4], [1])], COUNTS, codes=CODES, decay=0.5)
    share = fitted.recommend([context(0)], k=1)
    assert share.rows_PG.tolist() == [[1]]
    assert share.log_probs_PG.exp().item() == pytest.approx(1, abs=1e-4)


def test_only_the_last_items_count():
    fitted = Cooccurrence.fit([page([0], [3])], COUNTS, codes=CODES, n_last=1)
    assert rows(fitted, context(0, 4), k=1) == [[1]]
    assert rows(fitted, context(4, 0), k=1) == [[3]]


def test_exposed_items_do_not_count():
    fitted = Cooccurrence.fit([page([0], [4], exposed=[3])], COUNTS, codes=CODES)
    assert rows(fitted, context(0), k=2) == [[4, 1]]


def test_new_user_gets_popularity():
    fitted = Cooccurrence.fit([page([0], [3]), page([], [4])], COUNTS, codes=CODES)
    assert rows(fitted, context()) == [[1, 2, 4, 0, 3]]


def test_symmetric_counts_go_back_too():
    fitted = Cooccurrence.fit([page([0], [3])], COUNTS, codes=CODES, symmetric=True)
    assert rows(fitted, context(3), k=1) == [[0]]
    assert rows(fitted, context(0), k=1) == [[3]]


def test_symmetric_counts_of_both_directions_add_up():
    # after 0 came 3 twice, before 0 came 4 once: together 3 counts 2 and 4 counts 1
    pages = [page([0], [3]), page([0], [3]), page([4], [0])]
    fitted = Cooccurrence.fit(pages, COUNTS, codes=CODES, symmetric=True)
    share = fitted.recommend([context(0)], k=2)
    assert share.rows_PG.tolist() == [[3, 4]]
    assert share.log_probs_PG.exp()[0].tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-4)


def test_counts_are_divided_by_the_followers_damped_popularity():
    # 1 (popularity 4) followed 0 three times, 4 (popularity 2) twice: 3 / 4 against 2 / 2
    pages = [page([0], [1])] * 3 + [page([0], [4])] * 2
    assert rows(Cooccurrence.fit(pages, COUNTS, codes=CODES), context(0), k=2) == [[1, 4]]
    damped = Cooccurrence.fit(pages, COUNTS, codes=CODES, damping=1.0).recommend([context(0)], k=2)
    assert damped.rows_PG.tolist() == [[4, 1]]
    assert damped.log_probs_PG.exp()[0].tolist() == pytest.approx([1 / 1.75, 0.75 / 1.75], abs=1e-4)


def test_damping_leaves_an_item_without_popularity_as_it_is():
    fitted = Cooccurrence.fit([page([0], [3])], COUNTS, codes=CODES, damping=1.0)
    assert rows(fitted, context(0), k=1) == [[3]]


def test_validation_items_count_only_where_asked():
    toy = SimpleNamespace(
        examples=lambda split: {"train": [page([0], [1])], "valid": [page([2], [3])]}[split],
        popularity=COUNTS,
        n_items=5,
    )
    catalog = SimpleNamespace(codes=CODES)
    without, with_valid = (
        counted_system(name, toy, catalog).load() for name in ("cooccurrence", "cooccurrence_with_valid")
    )
    assert rows(without, context(2), k=1) == [[1]]
    assert rows(with_valid, context(2), k=1) == [[3]]
    assert rows(with_valid, context(0), k=1) == [[1]]


def test_symmetric_system_counts_both_ways():
    toy = SimpleNamespace(examples=lambda split: [page([0], [3])], popularity=COUNTS, n_items=5)
    system = counted_system("cooccurrence_symmetric", toy, SimpleNamespace(codes=CODES))
    assert rows(system.load(), context(3), k=1) == [[0]]


@pytest.mark.parametrize("name", ["popularity", "cooccurrence", "cooccurrence_symmetric"])
def test_every_counted_system_can_leave_seen_items_out(name):
    toy = SimpleNamespace(examples=lambda split: [page([0], [3])], popularity=COUNTS, n_items=5)
    system = counted_system(name, toy, SimpleNamespace(codes=CODES), exclude_seen=True)
    assert not {0, 1} & set(rows(system.load(), context(0, 1), k=3)[0])


def test_unknown_counted_system_offers_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'cooccurrence'"):
        counted_system("cooccurence", None, None)


def test_more_candidates_than_items_names_both():
    with pytest.raises(ConfigError, match="6 candidates asked of 5"):
        Popularity(COUNTS, codes=CODES).recommend([context()], k=6)
