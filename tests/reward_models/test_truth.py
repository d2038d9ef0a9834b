import numpy as np
import pytest

from genrec_rl.data.sources.synthetic import Market, make_synthetic
from genrec_rl.errors import DataError
from genrec_rl.types import Context
from reward_models.truth import TruePreference


@pytest.fixture
def market():
    return Market(**make_synthetic(n_users=5, n_items=12, n_requests=20, seed=0).truth)


def context(user: str, time: int) -> Context:
    empty = np.zeros(0, np.int64)
    return Context(user, time, empty, empty, empty)


def test_score_is_the_markets_preference_of_user_item_and_second(market):
    users, times = market.user_ids[[3, 1]], [1_700_100_000, 1_701_000_000]
    found = TruePreference(market).score([context(*pair) for pair in zip(users, times, strict=True)],
                                         np.array([[0, 11], [4, 4]]))  # fmt: skip
    for p, rows in enumerate([[0, 11], [4, 4]]):
        wanted = [market.true_preference(users[p], np.array(row), times[p]) for row in rows]
        assert found[p] == pytest.approx(wanted)
    assert found.dtype == np.float32


def test_it_is_read_back_from_a_folder_and_a_folder_without_truth_is_refused(market, tmp_path):
    truth = TruePreference(market)
    truth.save_pretrained(tmp_path)
    assert TruePreference.from_pretrained(tmp_path).fingerprint == truth.fingerprint
    with pytest.raises(DataError, match="no synthetic market's truth"):
        TruePreference.from_pretrained(tmp_path / "nowhere")


def test_a_stranger_is_refused(market):
    with pytest.raises(DataError, match="user 'nobody' is not in the market"):
        TruePreference(market).score([context("nobody", 0)], np.array([[0]]))
