"""The promises of a reward model. A third party's class passes them too:

    pytest tests/contracts --reward my_package.MyReward --reward_dir runs/my_reward

``--reward`` names a class; with ``--reward_dir`` it is loaded by ``from_pretrained``, without it is called with no
arguments. Rows 0 to 6 must be items that it knows.
"""

import numpy as np
import pytest

from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.rewards.scoring import score_candidates
from genrec_rl.types import NO_ITEM, Context


def context(user, items):
    items = np.array(items, dtype=np.int64)
    return Context(user, 1_000_000, items, 1_000 * np.arange(len(items)), np.arange(len(items)))


CONTEXTS = [context("new", []), context("short", [3]), context("long", [0, 1, 2, 3, 4, 5, 6, 0, 1, 2])]
ROWS = np.array([[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [2, 2, 2, 5, 0, 6, 1]])


def test_it_implements_the_protocol(reward_model):
    assert isinstance(reward_model, RewardModel)


def test_scores_are_finite_floats_in_the_unit_range_of_the_candidates_shape(reward_model):
    scores = reward_model.score(CONTEXTS, ROWS)
    assert isinstance(scores, np.ndarray)
    assert scores.shape == ROWS.shape
    assert np.issubdtype(scores.dtype, np.floating)
    assert np.isfinite(scores).all()
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_scoring_twice_gives_the_same(reward_model):
    first, second = (reward_model.score(CONTEXTS, ROWS) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_order_of_candidates_does_not_change_their_scores(reward_model):
    scores = reward_model.score(CONTEXTS, ROWS)
    np.testing.assert_allclose(reward_model.score(CONTEXTS, ROWS[:, ::-1])[:, ::-1], scores, atol=1e-5)


def test_other_candidates_do_not_change_a_score(reward_model):
    scores = reward_model.score(CONTEXTS, ROWS)
    for g in range(ROWS.shape[1]):
        np.testing.assert_allclose(reward_model.score(CONTEXTS, ROWS[:, [g]]), scores[:, [g]], atol=1e-5)


def test_other_users_do_not_change_a_score(reward_model):
    scores = reward_model.score(CONTEXTS, ROWS)
    for p in range(len(CONTEXTS)):
        np.testing.assert_allclose(reward_model.score([CONTEXTS[p]], ROWS[[p]]), scores[[p]], atol=1e-5)


def test_equal_candidates_score_equally(reward_model):
    repeated = reward_model.score(CONTEXTS[2:], ROWS[2:])[0, :3]
    np.testing.assert_allclose(repeated, repeated[0], atol=1e-6)


def test_candidates_are_left_as_they_were(reward_model):
    rows = ROWS.copy()
    reward_model.score(CONTEXTS, rows)
    np.testing.assert_array_equal(rows, ROWS)


def test_invalid_sids_earn_zero_and_leave_the_others_alone(reward_model):
    rows = ROWS.copy()
    rows[1, 2:4] = NO_ITEM
    scores = score_candidates(reward_model, CONTEXTS, rows)
    assert (scores[rows == NO_ITEM] == 0).all()
    expected = reward_model.score(CONTEXTS, ROWS)
    np.testing.assert_allclose(scores[rows != NO_ITEM], expected[rows != NO_ITEM], atol=1e-5)


def test_saved_and_loaded_it_scores_bit_equal_under_the_same_fingerprint(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    loaded = type(reward_model).from_pretrained(tmp_path)
    assert loaded.fingerprint == reward_model.fingerprint
    np.testing.assert_array_equal(loaded.score(CONTEXTS, ROWS), reward_model.score(CONTEXTS, ROWS))


def test_nothing_saved_is_a_pickle(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    for path in written:
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")
        assert path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def test_a_changed_byte_in_any_file_is_refused_or_changes_nothing(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=path.stem):
            type(reward_model).from_pretrained(tmp_path)
        path.write_bytes(content)
