"""What a trained reward model is worth, by kind of negative and by popularity; ``report_tables`` shows it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.types import Action, Context, Example
from reward_models.candidates import LabelledCandidates, NegativeSampler, label_candidates
from reward_models.quality import (
    Calibration,
    PopularityBand,
    Ranking,
    by_popularity,
    calibration_quality,
    equal_mass_bins,
    rank_quality,
    tie_share,
)

_DRAWN_PER_POSITIVE = 5
_REQUESTS_AT_ONCE = 256


@runtime_checkable
class PredictsProbabilities(Protocol):
    """A reward model made of probabilities, each held against its own label: ``click`` (or order), ``order``."""

    def probabilities(
        self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]
    ) -> dict[str, Float[np.ndarray, "P G"]]:
        """Return probabilities by label; the reward is made of them."""
        ...


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of equally many candidates: mean prediction, observed rate, size."""

    predicted: list[float]
    observed: list[float]
    sizes: list[int]


@dataclass(frozen=True, slots=True)
class Slice:
    """Positives against one kind of negatives: the model, and an item's popularity as the bar to clear."""

    model: Ranking
    popularity: Ranking
    calibration: Calibration
    reliability: Reliability
    tie_share: float
    """Share of pairs of a page's candidates that the model scores equally."""


@dataclass(frozen=True, slots=True)
class RewardReport:
    """Quality on held-out users: ``slices`` by kind of negative; the rest is on the mixture trained on.

    Probabilities are those of a click or order; ``order_calibration`` is that of an order, where it is predicted and
    something was ordered.
    """

    slices: dict[str, Slice]
    calibration: Calibration
    order_calibration: Calibration | None
    reliability: Reliability
    popularity_bands: list[PopularityBand]
    n_users: int
    n_pages: int

    def flat(self) -> dict[str, float]:
        """Name each number for a log."""
        values = {f"reward/{key}": value for key, value in asdict(self.calibration).items()}
        if self.order_calibration is not None:
            values |= {f"reward/order/{key}": value for key, value in asdict(self.order_calibration).items()}
        for name, part in self.slices.items():
            for key in ("ece_equal_mass", "slope", "copc"):
                values[f"reward/{name}/{key}"] = getattr(part.calibration, key)
            values[f"reward/{name}/tie_share"] = part.tie_share
            for system in ("model", "popularity"):
                ranking: Ranking = getattr(part, system)
                values[f"reward/{name}/{system}/auc"] = ranking.auc.mean
                values[f"reward/{name}/{system}/gauc"] = ranking.gauc.mean
        return values


def judge(
    model: RewardModel,
    examples: Sequence[Example],
    *,
    sampler: NegativeSampler,
    popularity: Int[np.ndarray, " n"],
    negatives_per_positive: int,
    seed: int,
    proposed: LabelledCandidates | None = None,
    learnt_proposals: bool = True,
) -> RewardReport:
    """Measure a reward model on pages that chose nothing about it.

    Slices: ``exposed`` (shown and left; only where the log has such), ``uniform`` and ``popular`` (drawn evenly, and
    by popularity), ``proposed`` (by a policy: GAUC inside its groups). Calibration and popularity bands are over what
    the model was calibrated on: proposals if it learnt from them, else the mixture of exposed and drawn negatives.

    Args:
        model: the reward model.
        examples: held-out pages.
        sampler: the sampler of training, for the mixture.
        popularity: counts of positives in training pages.
        negatives_per_positive: of training, for the mixture.
        seed: of drawn negatives and bootstrap.
        proposed: what a policy proposed for held-out pages.
        learnt_proposals: whether the model learnt from such.

    Raises:
        DataError: when a kind of candidates holds no page with both a positive and a negative.
    """
    rng = np.random.default_rng(seed)
    kinds = {
        name: label_candidates(
            examples,
            sampler=NegativeSampler(popularity, popular_share=share),
            rng=rng,
            negatives_per_positive=_DRAWN_PER_POSITIVE,
            with_exposed=False,
        )
        for name, share in (("uniform", 0.0), ("popular", 1.0))
    }
    if any((example.actions == Action.EXPOSE).any() for example in examples):
        exposed = label_candidates(examples, sampler=sampler, rng=rng, negatives_per_positive=0)
        kinds = {"exposed": exposed} | kinds
    if proposed is not None:
        kinds["proposed"] = proposed
    slices = {name: _measure(model, candidates, popularity, seed=seed) for name, candidates in kinds.items()}
    mixture = proposed if proposed is not None and learnt_proposals else None
    if mixture is None:
        mixture = label_candidates(examples, sampler=sampler, rng=rng, negatives_per_positive=negatives_per_positive)
    is_real_PG = mixture.is_real_PG
    probabilities = {name: found_PG[is_real_PG] for name, found_PG in _probabilities(model, mixture).items()}
    clicks, labels = probabilities["click"], mixture.labels_PG[is_real_PG]
    orders, ordered = probabilities.get("order"), mixture.is_ordered_PG[is_real_PG].astype(np.float32)
    return RewardReport(
        slices=slices,
        calibration=calibration_quality(clicks, labels),
        order_calibration=None if orders is None or not ordered.any() else calibration_quality(orders, ordered),
        reliability=_reliability(clicks, labels),
        popularity_bands=by_popularity(clicks, labels, popularity[mixture.rows_PG[is_real_PG]]),
        n_users=len({example.context.user_id for example in examples}),
        n_pages=len(examples),
    )


def _measure(
    model: RewardModel, candidates: LabelledCandidates, popularity: Int[np.ndarray, " n"], *, seed: int
) -> Slice:
    is_real_PG = candidates.is_real_PG
    scores_PG = score_pages(model, candidates.contexts, candidates.rows_PG)
    clicks, labels = _probabilities(model, candidates)["click"][is_real_PG], candidates.labels_PG[is_real_PG]
    return Slice(
        model=_rank(candidates, scores_PG, seed=seed),
        popularity=_rank(candidates, popularity[candidates.rows_PG].astype(np.float64), seed=seed),
        calibration=calibration_quality(clicks, labels),
        reliability=_reliability(clicks, labels),
        tie_share=tie_share(scores_PG, is_real_PG),
    )


def _reliability(probabilities: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> Reliability:
    predicted, observed, sizes = equal_mass_bins(probabilities, labels, n_bins=15)
    return Reliability(predicted.tolist(), observed.tolist(), sizes.tolist())


def score_pages(
    model: RewardModel, contexts: Sequence[Context], rows_PG: Int[np.ndarray, "P G"]
) -> Float[np.ndarray, "P G"]:
    """Score many requests, some at a time."""
    return _in_parts(lambda some, rows: {"": model.score(some, rows)}, contexts, rows_PG)[""]


def _probabilities(model: RewardModel, candidates: LabelledCandidates) -> dict[str, Float[np.ndarray, "P G"]]:
    """Return what a model promises of each label; a model of one number promises a click or order."""
    if isinstance(model, PredictsProbabilities):
        return _in_parts(model.probabilities, candidates.contexts, candidates.rows_PG)
    return {"click": score_pages(model, candidates.contexts, candidates.rows_PG)}


def _in_parts(
    ask: Callable[[Sequence[Context], Int[np.ndarray, "P G"]], dict[str, Float[np.ndarray, "P G"]]],
    contexts: Sequence[Context],
    rows_PG: Int[np.ndarray, "P G"],
) -> dict[str, Float[np.ndarray, "P G"]]:
    starts = range(0, len(contexts), _REQUESTS_AT_ONCE)
    parts = [ask(contexts[i : i + _REQUESTS_AT_ONCE], rows_PG[i : i + _REQUESTS_AT_ONCE]) for i in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rank(candidates: LabelledCandidates, scores_PG: Float[np.ndarray, "P G"], *, seed: int) -> Ranking:
    users = [context.user_id for context in candidates.contexts]
    return rank_quality(scores_PG, candidates.labels_PG, candidates.is_real_PG, users, seed=seed)
