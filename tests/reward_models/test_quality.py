import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from genrec_rl.errors import DataError
from reward_models.quality import (
    by_popularity,
    calibration_quality,
    ece_by_chance,
    equal_mass_ece,
    fit_platt,
    page_auc,
    rank_quality,
    tie_share,
    weighted_auc,
)

SCORES = np.array([[0.9, 0.5, 0.5, 0.1], [0.2, 0.8, 0.0, 0.0], [0.3, 0.6, 0.0, 0.0]])
LABELS = np.array([[1.0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
IS_REAL = np.array([[True] * 4, [True, True, False, False], [True, True, False, False]])


def test_page_auc_counts_pairs_in_order_and_ties_half():
    # page 0: pairs (.9,.5) (.9,.1) (.5,.1) won, (.5,.5) tied: 3.5 of 4; page 1: 0 of 1; page 2 has no negative
    np.testing.assert_allclose(page_auc(SCORES, LABELS, IS_REAL), [0.875, 0.0, np.nan])


def test_padding_does_not_count_in_a_page():
    without = page_auc(SCORES[1:2, :2], LABELS[1:2, :2], IS_REAL[1:2, :2])
    np.testing.assert_array_equal(page_auc(SCORES, LABELS, IS_REAL)[1:2], without)


def test_gauc_weighs_pages_by_their_candidates_and_leaves_one_sided_pages_out():
    quality = rank_quality(SCORES, LABELS, IS_REAL, ["a", "b", "c"], seed=0)
    assert quality.gauc.mean == pytest.approx((4 * 0.875 + 2 * 0.0) / 6)
    assert quality.n_pages == 2
    assert quality.n_candidates == 8


def test_auc_is_over_all_pages():
    quality = rank_quality(SCORES, LABELS, IS_REAL, ["a", "b", "c"], seed=0)
    assert quality.auc.mean == pytest.approx(roc_auc_score(LABELS[IS_REAL], SCORES[IS_REAL]))


def test_interval_holds_the_value_and_repeats_with_its_seed():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 6)) < 0.4).astype(float)
    scores = rng.normal(size=labels.shape) + labels
    users = [f"u{p // 2}" for p in range(200)]
    first, second = (rank_quality(scores, labels, np.ones_like(labels, bool), users, seed=3) for _ in range(2))
    assert first == second
    for interval in (first.auc, first.gauc):
        assert interval.low < interval.mean < interval.high
        assert interval.high - interval.low < 0.15


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_weighted_auc_agrees_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 6, 40).astype(float), np.r_[0.0, 1.0, rng.integers(0, 2, 38)]
    weights = rng.integers(0, 3, 40) + np.r_[1, 1, np.zeros(38)]
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert weighted_auc(scores, labels, [weights])[0] == pytest.approx(expected)


def test_draws_without_a_page_of_both_labels_do_not_count_in_gaucs_interval():
    scores, labels = np.array([[0.9, 0.1]] * 12), np.array([[1.0, 0.0]] + [[1.0, 1.0]] * 11)
    gauc = rank_quality(scores, labels, np.ones_like(labels, bool), [f"u{p}" for p in range(12)], seed=0).gauc
    assert (gauc.mean, gauc.low, gauc.high) == (1, 1, 1)


def test_calibration_of_one_label_is_refused_by_name():
    with pytest.raises(DataError, match="calibration needs both labels, and all 3 are"):
        calibration_quality(np.array([0.1, 0.2, 0.3]), np.zeros(3))


def test_pages_of_one_label_have_no_auc():
    with pytest.raises(DataError, match="none of 1 pages"):
        rank_quality(SCORES[2:], LABELS[2:], IS_REAL[2:], ["c"], seed=0)


def test_equal_mass_ece_by_hand():
    # two bins of two: predicted .2 observed .5, predicted .7 observed 1
    assert equal_mass_ece(np.array([0.8, 0.1, 0.6, 0.3]), np.array([1.0, 0, 1, 1]), n_bins=2) == pytest.approx(
        (0.3 + 0.3) / 2
    )


def test_ece_by_chance_by_hand():
    # two bins of two: deviations sqrt(.09 + .16) and sqrt(.25 + .25), over four candidates
    expected = np.sqrt(2 / np.pi) * (np.sqrt(0.25) + np.sqrt(0.5)) / 4
    assert ece_by_chance(np.array([0.5, 0.1, 0.5, 0.2]), n_bins=2) == pytest.approx(expected)


def test_ece_by_chance_is_what_true_probabilities_show():
    rng = np.random.default_rng(0)
    truth = rng.random(600)
    found = [equal_mass_ece(truth, (rng.random(600) < truth).astype(float), n_bins=15) for _ in range(200)]
    assert ece_by_chance(truth, n_bins=15) == pytest.approx(np.mean(found), rel=0.05)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def draw(n, *, slope=1.0, intercept=0.0):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=n)
    is_positive = rng.random(n) < sigmoid(slope * logits + intercept)
    return logits, is_positive.astype(float)


def test_platt_finds_the_slope_and_intercept_that_made_the_labels():
    slope, intercept = fit_platt(*draw(100_000, slope=2.0, intercept=-1.0))
    assert slope == pytest.approx(2.0, abs=0.05)
    assert intercept == pytest.approx(-1.0, abs=0.05)


def test_true_probabilities_are_calibrated():
    logits, labels = draw(100_000)
    quality = calibration_quality(sigmoid(logits), labels)
    assert quality.ece < 0.01
    assert quality.ece_equal_mass < 0.01
    assert quality.slope == pytest.approx(1, abs=0.03)
    assert quality.copc == pytest.approx(1, abs=0.01)


def test_overconfident_probabilities_show_in_slope_and_ece():
    logits, labels = draw(100_000)
    quality = calibration_quality(sigmoid(3 * logits), labels)
    assert quality.slope == pytest.approx(1 / 3, abs=0.02)
    assert quality.ece > 0.1


def test_promising_twice_too_much_has_copc_one_half():
    quality = calibration_quality(np.full(8, 0.5), np.array([1.0, 1, 0, 0, 0, 0, 0, 0]))
    assert quality.copc == 0.5
    assert quality.base_rate == 0.25


def test_certain_and_wrong_predictions_have_a_finite_log_loss():
    assert np.isfinite(calibration_quality(np.array([0.0, 1, 1]), np.array([1.0, 1, 0])).log_loss)


def test_log_losses_agree_with_scikit_learn():
    logits, labels = draw(500)
    quality = calibration_quality(sigmoid(logits), labels)
    assert quality.log_loss == pytest.approx(log_loss(labels, sigmoid(logits)))
    assert quality.base_log_loss == pytest.approx(log_loss(labels, np.full(500, labels.mean())))


def test_a_model_that_ranks_the_wrong_way_round_is_not_calibrated_into_a_reward():
    logits, labels = draw(1_000)
    with pytest.raises(DataError, match="slope -"):
        fit_platt(-logits, labels)


def test_calibration_needs_both_labels():
    with pytest.raises(DataError, match="both labels"):
        fit_platt(np.zeros(3), np.ones(3))


def test_ties_are_shares_of_pairs_inside_pages():
    # page 0: .5 = .5, one of six pairs; page 1: none of one; page 2: none of one
    assert tie_share(SCORES, IS_REAL) == pytest.approx(1 / 8)
    assert tie_share(np.ones((2, 3)), np.ones((2, 3), bool)) == 1
    assert tie_share(np.ones((2, 1)), np.ones((2, 1), bool)) == 0


def test_popularity_bands_by_hand():
    popularity = np.array([0, 0, 0, 5, 9, 9])
    scores, labels = np.array([0.1, 0.4, 0.5, 0.5, 0.2, 0.3]), np.array([0.0, 1, 0, 1, 0, 1])
    low, high = by_popularity(scores, labels, popularity, n_bands=2)
    assert (low.least, low.most, high.least, high.most) == (0, 0, 5, 9)
    assert (low.auc, high.auc) == (0.5, 1.0)
    assert low.copc == pytest.approx(1 / 1.0)
    assert high.copc == pytest.approx(2 / 1.0)
    assert (low.n_candidates, high.base_rate) == (3, pytest.approx(2 / 3))


def test_equal_popularity_is_one_band_and_one_label_has_no_auc():
    (band,) = by_popularity(np.zeros(5), np.zeros(5), np.full(5, 3))
    assert (band.auc, band.copc, band.n_candidates) == (None, None, 5)
