import numpy as np

from tests.fixtures import make_context


def test_seen_is_what_was_taken_liked_or_not():
    assert make_context([3, 1], disliked=[5, 0]).seen.tolist() == [3, 1, 5, 0]
    assert make_context([3, 1]).seen.tolist() == [3, 1]
    assert make_context([], disliked=[5]).seen.tolist() == [5]


def test_a_history_is_thinned_and_what_was_disliked_is_not():
    context = make_context([3, 1, 4], pages=[0, 0, 2], disliked=[5])
    for kept in (np.array([False, True, True]), slice(1, None)):
        thinned = context.only(kept)
        assert thinned.history.tolist() == [1, 4]
        assert thinned.history_times.tolist() == [1, 2]
        assert thinned.history_pages.tolist() == [0, 2]
        assert thinned.disliked.tolist() == [5]
