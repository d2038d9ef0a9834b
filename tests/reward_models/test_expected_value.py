import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from genrec_rl.errors import ConfigError, DataError
from reward_models.expected_value import ExpectedValue, relative_worth
from reward_models.scripted import Constant, Popularity
from tests.fixtures import make_catalog, make_context

ROWS = np.array([[0, 1, 2]])
CONTEXTS = [make_context([1])]
WORTH = np.array([0.0, 0.5, 1.0], np.float32)


def priced(member=None) -> ExpectedValue:
    return ExpectedValue(member or Constant(0.5), WORTH)


def test_score_is_the_members_probability_times_the_items_worth():
    np.testing.assert_allclose(priced().score(CONTEXTS, ROWS), [[0, 0.25, 0.5]])
    np.testing.assert_allclose(priced(Popularity([0, 1, 3])).score(CONTEXTS, ROWS), [[0, 0.25, 1]], atol=1e-6)


def test_worth_is_the_mean_value_of_a_taken_item_as_a_share_of_the_dearest():
    # each brings 12 / 2 = 6, 3 / 1 = 3; the third was never taken: an average one, 15 / 3 = 5
    worth = relative_worth(np.array([12.0, 3, 0]), np.array([2, 1, 0]), percentile=100, prior=1e-9)
    np.testing.assert_allclose(worth, [1, 0.5, 5 / 6], rtol=1e-6)


def test_rare_items_are_drawn_to_the_catalogues_mean():
    # the mean is 5: (12 + 5) / 3, (3 + 5) / 2, (0 + 5) / 1
    worth = relative_worth(np.array([12.0, 3, 0]), np.array([2, 1, 0]), percentile=100, prior=1)
    np.testing.assert_allclose(worth, np.array([17 / 3, 4, 5]) / (17 / 3), rtol=1e-6)


@given(
    arrays(np.float64, 6, elements=st.floats(0, 1e6)),
    arrays(np.int64, 6, elements=st.integers(0, 50)),
    st.floats(1, 100),
)
def test_worth_is_a_share_whatever_was_paid(values, counts, percentile):
    worth = relative_worth(values * (counts > 0), counts, percentile=percentile, prior=5)
    assert ((worth >= 0) & (worth <= 1)).all()


@pytest.mark.parametrize(("prior", "percentile"), [(0, 95), (-1, 95), (float("nan"), 95), (5, 150), (5, -1)])
def test_priors_and_percentiles_that_make_no_worth_are_refused(prior, percentile):
    with pytest.raises(ConfigError, match=f"value_prior {prior} must be above 0, and value_percentile {percentile}"):
        relative_worth(np.ones(2), np.array([1, 0]), percentile=percentile, prior=prior)


@pytest.mark.parametrize("worth", [[0.5, 1.5], [0.5, -0.1], [0.5, float("nan")]])
def test_worths_that_are_no_shares_are_refused(worth):
    with pytest.raises(ConfigError, match=r"worth must lie in \[0, 1\]"):
        ExpectedValue(Constant(0.5), np.array(worth))


def test_a_catalogue_in_which_nothing_is_worth_anything_is_refused():
    with pytest.raises(ConfigError, match="no item is worth anything"):
        ExpectedValue(Constant(0.5), np.zeros(3))


def test_a_moved_folder_loads_with_its_member(tmp_path):
    priced().save_pretrained(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    loaded = ExpectedValue.from_pretrained(tmp_path / "there")
    assert loaded.fingerprint == priced().fingerprint
    np.testing.assert_array_equal(loaded.score(CONTEXTS, ROWS), priced().score(CONTEXTS, ROWS))


def test_other_worths_are_another_model():
    assert ExpectedValue(Constant(0.5), WORTH[::-1].copy()).fingerprint != priced().fingerprint


def test_another_catalogue_is_refused(tmp_path):
    priced().save_pretrained(tmp_path)
    catalog = make_catalog()
    with pytest.raises(DataError, match=f"3 items, the catalogue has {catalog.n_items}"):
        ExpectedValue.from_pretrained(tmp_path, catalog=catalog)


def test_another_kind_of_model_is_refused(tmp_path):
    Constant(0.5).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="expected ExpectedValue format 1"):
        ExpectedValue.from_pretrained(tmp_path)
