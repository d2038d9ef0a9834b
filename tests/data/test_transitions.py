import numpy as np

from genrec_rl.data.transitions import list_transitions
from tests.fixtures import make_example


def listed(examples, **settings):
    found = list_transitions(examples, **({"n_last": 2, "decay": 0.5} | settings))
    columns = (found.before, found.after, found.weights, found.pages)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_an_item_follows_its_pages_earlier_ones_and_the_history_within_n_last_steps():
    # 1 2 | 3 4: three steps lie between 1 and 4, and 1 before 2 is no pair of this page
    assert listed([make_example([1, 2], [3, 4])]) == [(1, 3, 0.5, 0), (2, 3, 1, 0), (2, 4, 0.5, 0), (3, 4, 1, 0)]


def test_exposed_items_follow_nothing():
    assert listed([make_example([1], [2], exposed=[3])]) == [(1, 2, 1, 0)]


def test_each_pair_names_the_place_of_its_page():
    assert listed([make_example([1], [2]), make_example([], [5]), make_example([1], [2])]) == [
        (1, 2, 1, 0),
        (1, 2, 1, 2),
    ]


def test_no_pages_have_no_pairs():
    found = list_transitions([], n_last=5, decay=0.5)
    assert found.before.dtype == np.int64
    assert len(found.before) == len(found.weights) == 0
