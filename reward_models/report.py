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
    answers = {name: _Answers.of(model, candidates) for name, candidates in kinds.items()}
    if proposed is not None and learnt_proposals:
        mixture = answers["proposed"]
    else:
        drawn = label_candidates(examples, sampler=sampler, rng=rng, negatives_per_positive=negatives_per_positive)
        mixture = _Answers.of(model, drawn)
    is_real_PG = mixture.asked.is_real_PG
    clicks, labels = mixture.probabilities["click"], mixture.labels
    orders, ordered = mixture.probabilities.get("order"), mixture.asked.is_ordered_PG[is_real_PG].astype(np.float32)
    return RewardReport(
        slices={name: _slice(of_kind, popularity, seed=seed) for name, of_kind in answers.items()},
        calibration=calibration_quality(clicks, labels),
        order_calibration=None if orders is None or not ordered.any() else calibration_quality(orders, ordered),
        reliability=_reliability(clicks, labels),
        popularity_bands=by_popularity(clicks, labels, popularity[mixture.asked.rows_PG[is_real_PG]]),
        n_users=len({example.context.user_id for example in examples}),
        n_pages=len(examples),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """What a model says of labelled candidates: its scores, and by label what it promises of the n real ones."""

    asked: LabelledCandidates
    scores_PG: Float[np.ndarray, "P G"]
    probabilities: dict[str, Float[np.ndarray, " n"]]

    @classmethod
    def of(cls, model: RewardModel, asked: LabelledCandidates) -> "_Answers":
        """Ask a model; one of a single number promises a click or order."""
        scores_PG = score_pages(model, asked.contexts, asked.rows_PG)
        promised = {"click": scores_PG}
        if isinstance(model, PredictsProbabilities):
            promised = _in_parts(model.probabilities, asked.contexts, asked.rows_PG)
        return cls(asked, scores_PG, {name: found_PG[asked.is_real_PG] for name, found_PG in promised.items()})

    @property
    def labels(self) -> Float[np.ndarray, " n"]:
        return self.asked.labels_PG[self.asked.is_real_PG]


def _slice(answers: _Answers, popularity: Int[np.ndarray, " n"], *, seed: int) -> Slice:
    candidates, clicks = answers.asked, answers.probabilities["click"]
    return Slice(
        model=_rank(candidates, answers.scores_PG, seed=seed),
        popularity=_rank(candidates, popularity[candidates.rows_PG].astype(np.float64), seed=seed),
        calibration=calibration_quality(clicks, answers.labels),
        reliability=_reliability(clicks, answers.labels),
        tie_share=tie_share(answers.scores_PG, candidates.is_real_PG),
    )


def _reliability(probabilities: Float[np.ndarray, " n"], labels: Float[np.ndarray, " n"]) -> Reliability:
    predicted, observed, sizes = equal_mass_bins(probabilities, labels, n_bins=15)
    return Reliability(predicted.tolist(), observed.tolist(), sizes.tolist())


def score_pages(
    model: RewardModel, contexts: Sequence[Context], rows_PG: Int[np.ndarray, "P G"]
) -> Float[np.ndarray, "P G"]:
    """Score many requests, some at a time."""
    return _in_parts(lambda some, rows: {"": model.score(some, rows)}, contexts, rows_PG)[""]


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
