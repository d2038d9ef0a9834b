"""How good a reward model is on pages it has not seen: ranking (AUC, GAUC) and probability (ECE, slope, COPC).

AUC says how well positives are told from negatives over all users, GAUC inside one page, which is what a rollout
group needs. Intervals resample users, because a user's pages are not independent.

    P   pages        G   candidates of the longest page        U   users        n   labelled candidates
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from torchmetrics.functional.classification import binary_calibration_error

from genrec_rl.errors import DataError
from genrec_rl.types import Interval

_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Ranking:
    """Positives against one kind of negatives, with 95 % intervals over users."""

    auc: Interval
    gauc: Interval
    n_candidates: int
    n_pages: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Predicted against observed. A perfect model has ECE 0, slope 1, intercept 0 and COPC 1."""

    log_loss: float
    base_log_loss: float
    """Log loss of always predicting the share of positives."""
    ece: float
    ece_equal_mass: float
    ece_by_chance: float
    """Equal-mass ECE that a perfect model shows on so few candidates: one near it is not told from perfect."""
    slope: float
    intercept: float
    copc: float
    """Observed positives over the sum of predictions: above 1 the model promises too little."""
    base_rate: float
    n_candidates: int


def rank_quality(
    scores_PG: Float[np.ndarray, "P G"],
    labels_PG: Float[np.ndarray, "P G"],
    is_real_PG: Bool[np.ndarray, "P G"],
    user_ids: Sequence[str],
    *,
    seed: int,
    n_draws: int = 500,
) -> Ranking:
    """Measure AUC and GAUC.

    GAUC weighs each page by its number of candidates; a page of one label has none and is left out.

    Raises:
        DataError: when no page holds both labels.
    """
    users = np.unique(np.asarray(user_ids), return_inverse=True)[1]
    auc_P = page_auc(scores_PG, labels_PG, is_real_PG)
    has_both = np.isfinite(auc_P)
    if not has_both.any():
        raise DataError(f"none of {len(auc_P)} pages has both a positive and a negative; AUC needs both")
    draws_BU = _draw_users(users.max() + 1, n_draws=n_draws, seed=seed)

    size_P = is_real_PG.sum(axis=1) * has_both
    total_U = np.bincount(users, weights=size_P * np.nan_to_num(auc_P))
    size_U = np.bincount(users, weights=size_P)
    of_draw_B, size_B = draws_BU @ total_U, draws_BU @ size_U
    gauc_B = np.divide(of_draw_B, size_B, out=np.full(n_draws, np.nan), where=size_B > 0)

    user_n = np.broadcast_to(users[:, None], scores_PG.shape)[is_real_PG]
    scores_n, labels_n = scores_PG[is_real_PG], labels_PG[is_real_PG]
    auc_B = weighted_auc(scores_n, labels_n, [draw[user_n] for draw in draws_BU])
    everyone = weighted_auc(scores_n, labels_n, [np.ones(len(scores_n))])[0]
    return Ranking(
        auc=_interval(everyone, auc_B),
        gauc=_interval(total_U.sum() / size_U.sum(), gauc_B),
        n_candidates=len(scores_n),
        n_pages=int(has_both.sum()),
    )


def page_auc(
    scores_PG: Float[np.ndarray, "P G"], labels_PG: Float[np.ndarray, "P G"], is_real_PG: Bool[np.ndarray, "P G"]
) -> Float[np.ndarray, " P"]:
    """Return each page's share of (positive, negative) pairs in the right order, a tie counting half.

    NaN where a page lacks a positive or a negative.
    """
    is_positive_PG, is_negative_PG = (labels_PG > 0) & is_real_PG, (labels_PG <= 0) & is_real_PG
    n_pairs_P = is_positive_PG.sum(axis=1) * is_negative_PG.sum(axis=1)
    won_P = np.zeros(len(scores_PG))
    for g in range(scores_PG.shape[1]):  # one column of positives at a time keeps memory at P x G
        margin_PG = scores_PG[:, g, None] - scores_PG
        wins_P = (((margin_PG > 0) + 0.5 * (margin_PG == 0)) * is_negative_PG).sum(axis=1)
        won_P += wins_P * is_positive_PG[:, g]
    return np.where(n_pairs_P > 0, won_P / np.maximum(n_pairs_P, 1), np.nan)


def tie_share(scores_PG: Float[np.ndarray, "P G"], is_real_PG: Bool[np.ndarray, "P G"]) -> float:
    """Return the share of pairs of a page's candidates with equal scores: in a rollout group they carry no advantage.

    0 where no page has two candidates.
    """
    n_pairs = n_ties = 0
    for scores, is_real in zip(scores_PG, is_real_PG, strict=True):
        sizes = np.unique(scores[is_real], return_counts=True)[1]
        n_ties += int((sizes * (sizes - 1)).sum())
        n_pairs += int(sizes.sum() * (sizes.sum() - 1))
    return n_ties / n_pairs if n_pairs else 0.0


@dataclass(frozen=True, slots=True)
class PopularityBand:
    """Candidates of similar popularity: how well positives are told from negatives, and promised against taken."""

    least: int
    most: int
    """Popularity of the band's items."""
    auc: float | None
    """None where the band lacks a positive or a negative."""
    copc: float | None
    """None where nothing is promised."""
    base_rate: float
    n_candidates: int


def by_popularity(
    scores: Float[np.ndarray, " n"],
    labels: Float[np.ndarray, " n"],
    popularity: Int[np.ndarray, " n"],
    *,
    n_bands: int = 10,
) -> list[PopularityBand]:
    """Divide candidates by their item's popularity into bands of about equal size, and measure each.

    Equal popularity is never divided, so there may be fewer bands than asked for.
    """
    edges = np.unique(np.quantile(popularity, np.linspace(0, 1, n_bands + 1)[1:-1]))
    band_n = np.searchsorted(edges, popularity, side="right")
    bands = []
    for band in np.unique(band_n):
        is_in = band_n == band
        some, observed, known = scores[is_in].astype(np.float64), labels[is_in], popularity[is_in]
        auc = weighted_auc(some, observed, [np.ones(len(some))])[0]
        promised = float(some.sum())
        bands.append(
            PopularityBand(
                least=int(known.min()),
                most=int(known.max()),
                auc=float(auc) if np.isfinite(auc) else None,
                copc=float(observed.sum() / promised) if promised else None,
                base_rate=float(observed.mean()),
                n_candidates=len(some),
            )
        )
    return bands


def weighted_auc(
    scores: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"], weights: Sequence[Float[np.ndarray, " n"]]
) -> Float[np.ndarray, " B"]:
    """Return the AUC under each of B weightings of the candidates, sorting them once."""
    group = np.unique(scores, return_inverse=True)[1]
    aucs = []
    for weight in weights:
        positive = np.bincount(group, weights=weight * labels)
        negative = np.bincount(group, weights=weight * (1 - labels))
        below = np.cumsum(negative) - negative
        pairs = positive.sum() * negative.sum()
        aucs.append((positive * (below + negative / 2)).sum() / pairs if pairs else np.nan)
    return np.array(aucs)


def calibration_quality(probabilities: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> Calibration:
    """Compare predictions with what was observed.

    Slope and intercept recalibrate the log-odds of the predictions, cut at 1e-6 from 0 and 1.

    Raises:
        DataError: when all labels are equal.
    """
    probabilities = np.clip(probabilities.astype(np.float64), _EPSILON, 1 - _EPSILON)
    base_rate = float(labels.mean())
    slope, intercept = _recalibrate(np.log(probabilities / (1 - probabilities)), labels)
    observed = torch.from_numpy(labels.astype(np.int64))
    ece = binary_calibration_error(torch.from_numpy(probabilities), observed, n_bins=15, norm="l1")
    return Calibration(
        log_loss=_log_loss(probabilities, labels),
        base_log_loss=_log_loss(np.full(len(labels), base_rate), labels),
        ece=float(ece),
        ece_equal_mass=equal_mass_ece(probabilities, labels, n_bins=15),
        ece_by_chance=ece_by_chance(probabilities, n_bins=15),
        slope=slope,
        intercept=intercept,
        copc=float(labels.sum() / probabilities.sum()),
        base_rate=base_rate,
        n_candidates=len(labels),
    )


def equal_mass_ece(probabilities: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"], *, n_bins: int) -> float:
    """Return the mean distance of predicted and observed rate over bins of equally many candidates."""
    predicted, observed, size = equal_mass_bins(probabilities, labels, n_bins=n_bins)
    return float((np.abs(predicted - observed) * size).sum() / size.sum())


def ece_by_chance(probabilities: Float[np.ndarray, " n"], *, n_bins: int) -> float:
    """Return the equal-mass ECE to expect where every prediction is the truth (Bröcker and Smith, 2007).

    Labels are then drawn with the predicted probabilities, so a bin's observed rate lies about sqrt(2 / pi) standard
    deviations from the predicted one. A guide, not a test: labels of one page lean on each other, and the rate of few
    positives is not normal.
    """
    predicted = np.array_split(np.sort(probabilities), n_bins)
    deviations = [np.sqrt((p * (1 - p)).sum()) for p in predicted]
    return float(np.sqrt(2 / np.pi) * sum(deviations) / len(probabilities))


def equal_mass_bins(
    probabilities: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"], *, n_bins: int
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """Return each bin's mean prediction, observed rate and size, bins of equal mass in order of prediction."""
    order = np.argsort(probabilities, kind="stable")
    bins = [b for b in np.array_split(order, n_bins) if len(b)]
    predicted = np.array([probabilities[b].mean() for b in bins])
    observed = np.array([labels[b].mean() for b in bins])
    return predicted, observed, np.array([len(b) for b in bins])


def fit_platt(logits: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return slope a and intercept b so that sigmoid(a logit + b) fits the labels best (Platt 1999).

    Two parameters keep the order of scores and make no ties, unlike isotonic regression: a tie inside a rollout
    group carries no advantage.

    Raises:
        DataError: when all labels are equal, or when the logits rank the labels the wrong way round (a <= 0).
    """
    slope, intercept = _recalibrate(logits, labels)
    if slope <= 0:
        raise DataError(
            f"calibration slope {slope:.3f} is not above 0: higher scores go with fewer positives on "
            f"{len(labels)} held-out candidates; train longer or on more pages"
        )
    return slope, intercept


def _log_loss(probabilities: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> float:
    return float(-(labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities)).mean())


def _recalibrate(logits: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> tuple[float, float]:
    if len(np.unique(labels)) < 2:
        raise DataError(f"calibration needs both labels, and all {len(labels)} are {labels[:1]}; use more pages")
    regression = LogisticRegression(C=np.inf, max_iter=1000).fit(logits.astype(np.float64)[:, None], labels)
    return float(regression.coef_[0, 0]), float(regression.intercept_[0])


def _draw_users(n_users: int, *, n_draws: int, seed: int) -> Float[np.ndarray, "B U"]:
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_users, np.full(n_users, 1 / n_users), size=n_draws).astype(np.float64)


def _interval(value: float, draws: Float[np.ndarray, " B"]) -> Interval:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))
