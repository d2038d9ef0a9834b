import numpy as np
import pytest

from genrec_rl.errors import RewardError
from genrec_rl.rewards.scoring import GatedReward, pass_gate, score_candidates
from genrec_rl.types import NO_ITEM, Context
from tests.fixtures import make_context

NOBODY = np.empty(0, dtype=np.int64)
CONTEXTS = [Context(f"u{p}", 100, NOBODY, NOBODY, NOBODY) for p in range(2)]
ROWS = np.array([[3, NO_ITEM, 1], [NO_ITEM, 2, 2]])


class Answers:
    """A reward model and gate that returns what it is told, and remembers what it was asked."""

    def __init__(self, answer, tau=0.5):
        self.answer, self.tau, self.asked = answer, tau, None

    def score(self, contexts, candidates):
        self.asked = candidates
        return self.answer

    def similarity(self, contexts, candidates, positives):
        self.asked = candidates
        return self.answer


def answer_with(value, dtype=np.float32):
    answer = np.full(ROWS.shape, 0.25, dtype=dtype)
    answer[1, 2] = value
    return answer


def test_invalid_sid_earns_exactly_zero_and_others_keep_their_score():
    scores = score_candidates(Answers(answer_with(0.75)), CONTEXTS, ROWS)
    np.testing.assert_array_equal(scores, np.float32([[0.25, 0, 0.25], [0, 0.25, 0.75]]))


def test_invalid_sid_never_reaches_the_model():
    model = Answers(answer_with(0.75))
    score_candidates(model, CONTEXTS, ROWS)
    assert (model.asked >= 0).all()
    np.testing.assert_array_equal(model.asked[ROWS != NO_ITEM], ROWS[ROWS != NO_ITEM])


def test_candidates_of_the_caller_are_left_alone():
    rows = ROWS.copy()
    score_candidates(Answers(answer_with(0.75)), CONTEXTS, rows)
    np.testing.assert_array_equal(rows, ROWS)


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_both_ends_of_the_range_are_rewards(edge):
    assert score_candidates(Answers(answer_with(edge)), CONTEXTS, ROWS)[1, 2] == edge


@pytest.mark.parametrize("value", [1.2, -0.1, np.nan, np.inf, -np.inf])
def test_a_number_that_is_no_reward_names_model_position_and_value(value):
    with pytest.raises(RewardError) as refusal:
        score_candidates(Answers(answer_with(value)), CONTEXTS, ROWS)
    for part in ("Answers.score", "request 1, candidate 2", "catalogue row 2", str(np.float32(value))):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (None, "NoneType"),
        ([[0.1] * 3] * 2, "list"),
        (np.full((2, 2), 0.5), r"shape \(2, 2\)"),
        (np.full(6, 0.5), r"shape \(6,\)"),
        (np.ones((2, 3), dtype=np.int64), "int64"),
        (np.ones((2, 3), dtype=bool), "bool"),
        (np.full((2, 3), None), "object"),
    ],
)
def test_what_is_not_an_array_of_floats_of_that_shape_is_refused(answer, named):
    with pytest.raises(RewardError, match=named):
        score_candidates(Answers(answer), CONTEXTS, ROWS)
    with pytest.raises(RewardError, match=named):
        pass_gate(Answers(answer), CONTEXTS, ROWS, None)


def test_as_many_contexts_as_rows_are_demanded():
    with pytest.raises(RewardError, match="1 contexts"):
        score_candidates(Answers(answer_with(0.75)), CONTEXTS[:1], ROWS)


def test_gate_is_strict_at_tau():
    similarity = np.array([[0.5, 0.9, 0.51], [0.9, 0.49, 0.5]], dtype=np.float32)
    passed = pass_gate(Answers(similarity, tau=0.5), CONTEXTS, ROWS, None)
    np.testing.assert_array_equal(passed, [[False, False, True], [False, False, False]])


def test_invalid_sid_never_passes():
    passed = pass_gate(Answers(answer_with(0.75), tau=-1.0), CONTEXTS, ROWS, None)
    np.testing.assert_array_equal(passed, ROWS != NO_ITEM)


def test_without_a_gate_every_valid_item_passes():
    np.testing.assert_array_equal(pass_gate(None, CONTEXTS, ROWS, None), ROWS != NO_ITEM)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_similarity_that_is_not_finite_names_the_gate_and_its_position(value):
    with pytest.raises(RewardError, match=rf"Answers.similarity returned {value} at request 1, candidate 2"):
        pass_gate(Answers(answer_with(value)), CONTEXTS, ROWS, None)


def test_similarity_beyond_one_is_allowed():
    assert pass_gate(Answers(answer_with(7.0)), CONTEXTS, ROWS, None)[1, 2]


def test_a_model_that_raises_is_named():
    class Raising:
        def score(self, contexts, candidates):
            raise IndexError("row 40")

    with pytest.raises(RewardError, match=r"Raising\.score raised IndexError: row 40"):
        score_candidates(Raising(), [make_context([0])], np.array([[1]]))


def test_gated_reward_is_the_reward_where_the_gate_is_open_without_the_page():
    rewards, rows = answer_with(0.75), np.where(ROWS == NO_ITEM, 0, ROWS)

    class HistoryAlone(Answers):
        def similarity(self, contexts, candidates, positives):
            assert positives is None
            return super().similarity(contexts, candidates, positives)

    similar = np.float64([[0.4, 0.5, 0.6], [0.9, 0.1, 0.9]])
    found = GatedReward(Answers(rewards), HistoryAlone(similar)).score(CONTEXTS, rows)
    np.testing.assert_array_equal(found, np.float32([[0, 0, 0.25], [0.25, 0, 0.75]]))
    np.testing.assert_array_equal(GatedReward(Answers(rewards), None).score(CONTEXTS, rows), rewards)
