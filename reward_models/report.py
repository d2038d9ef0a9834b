"""What a trained reward model is worth: ranking by kind of negative, calibration, and how to show them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table

from genrec_rl.rewards.gates import GateReport
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.types import Action, Context, Example, Interval
from reward_models.candidates import LabelledCandidates, NegativeSampler, label_candidates
from reward_models.quality import Calibration, Ranking, calibration_quality, equal_mass_bins, rank_quality

_DRAWN_PER_POSITIVE = 5
_REQUESTS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Slice:
    """Positives against one kind of negatives: the model, and an item's popularity as the bar to clear."""

    model: Ranking
    popularity: Ranking


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of equally many candidates: mean prediction, observed rate, size."""

    predicted: list[float]
    observed: list[float]
    sizes: list[int]


@dataclass(frozen=True, slots=True)
class RewardReport:
    """Quality on held-out users: ``slices`` by kind of negative, and calibration on the mixture trained on."""

    slices: dict[str, Slice]
    calibration: Calibration
    reliability: Reliability
    n_users: int
    n_pages: int

    def flat(self) -> dict[str, float]:
        """Name each number for a log."""
        values = {f"reward/{key}": value for key, value in asdict(self.calibration).items()}
        for name, part in self.slices.items():
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
) -> RewardReport:
    """Measure a reward model on pages that chose nothing about it.

    Slices: ``exposed`` (shown and left; only where the log has such), ``uniform`` and ``popular`` (drawn evenly, and
    by popularity), ``proposed`` (by a policy: GAUC inside its groups). Calibration is over what the model was trained
    on: the proposals where there are any, else the mixture of exposed and drawn negatives.

    Args:
        model: the reward model.
        examples: held-out pages.
        sampler: the sampler of training, for the mixture.
        popularity: counts of positives in training pages.
        negatives_per_positive: of training, for the mixture.
        seed: of drawn negatives and bootstrap.
        proposed: what a policy proposed for held-out pages.
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
    slices = {
        name: Slice(
            _rank(candidates, score_pages(model, candidates.contexts, candidates.rows_PG), seed=seed),
            _rank(candidates, popularity[candidates.rows_PG].astype(np.float64), seed=seed),
        )
        for name, candidates in kinds.items()
    }
    mixture = proposed or label_candidates(
        examples, sampler=sampler, rng=rng, negatives_per_positive=negatives_per_positive
    )
    scores = score_pages(model, mixture.contexts, mixture.rows_PG)[mixture.is_real_PG]
    labels = mixture.labels_PG[mixture.is_real_PG]
    predicted, observed, sizes = equal_mass_bins(scores, labels, n_bins=15)
    return RewardReport(
        slices=slices,
        calibration=calibration_quality(scores, labels),
        reliability=Reliability(predicted.tolist(), observed.tolist(), sizes.tolist()),
        n_users=len({example.context.user_id for example in examples}),
        n_pages=len(examples),
    )


def score_pages(
    model: RewardModel, contexts: Sequence[Context], rows_PG: Int[np.ndarray, "P G"]
) -> Float[np.ndarray, "P G"]:
    """Score many requests, some at a time."""
    starts = range(0, len(contexts), _REQUESTS_AT_ONCE)
    parts = [(contexts[i : i + _REQUESTS_AT_ONCE], rows_PG[i : i + _REQUESTS_AT_ONCE]) for i in starts]
    return np.concatenate([model.score(some, rows) for some, rows in parts])


def _rank(candidates: LabelledCandidates, scores_PG: Float[np.ndarray, "P G"], *, seed: int) -> Ranking:
    users = [context.user_id for context in candidates.contexts]
    return rank_quality(scores_PG, candidates.labels_PG, candidates.is_real_PG, users, seed=seed)


def write_report(
    console: Console,
    model: RewardModel,
    report: RewardReport,
    gates: Mapping[str, GateReport],
    output_dir: Path,
    *,
    seconds: float,
) -> None:
    """Print the tables, draw the reliability diagram, and write ``reward.json``."""
    print_report(console, report, gates, seconds=seconds)
    plot_reliability(report, output_dir / "reliability.png", name=type(model).__name__)
    written = {"fingerprint": model.fingerprint, "report": asdict(report), "seconds": round(seconds, 1)}
    written["gates"] = {name: asdict(gate) for name, gate in gates.items()}
    (output_dir / "reward.json").write_text(json.dumps(written, indent=2) + "\n")


def print_report(console: Console, report: RewardReport, gates: Mapping[str, GateReport], *, seconds: float) -> None:
    """Print ranking, calibration and gates as tables."""
    title = f"Reward model: {report.n_pages:,} pages of {report.n_users:,} held-out users"
    ranking = Table(title=title)
    for heading in ("positives against", "scored by", "AUC", "GAUC"):
        ranking.add_column(heading, justify="right" if heading.endswith("AUC") else "left")
    for name, part in report.slices.items():
        ranking.add_row(name, "model", _cell(part.model.auc), _cell(part.model.gauc))
        popularity = part.popularity
        ranking.add_row("", "popularity", _cell(popularity.auc), _cell(popularity.gauc), end_section=True)
    console.print(ranking)

    c = report.calibration
    calibration = Table(title="Calibration (on the kinds of candidates that it learnt from)")
    for heading in ("log loss", "base rate's", "ECE", "ECE equal mass", "slope", "intercept", "COPC"):
        calibration.add_column(heading, justify="right")
    numbers = (c.log_loss, c.base_log_loss, c.ece, c.ece_equal_mass, c.slope, c.intercept, c.copc)
    calibration.add_row(*(f"{number:.3f}" for number in numbers))
    console.print(calibration)

    table = Table(title="Gates (reference: history)")
    for heading in ("gate", "tau", "positives pass", "random items pass"):
        table.add_column(heading, justify="left" if heading == "gate" else "right")
    for name, gate in gates.items():
        table.add_row(name, f"{gate.tau:.3f}", f"{gate.positives_pass:.1%}", f"{gate.random_pass:.1%}")
    console.print(table)
    console.print(f"trained in {seconds:.0f} s")


def plot_reliability(report: RewardReport, path: Path, *, name: str) -> None:
    """Draw observed against predicted rate, with 95 % binomial intervals."""
    from matplotlib.figure import Figure

    bins = report.reliability
    predicted, observed, sizes = (np.array(v) for v in (bins.predicted, bins.observed, bins.sizes))
    margin = 1.96 * np.sqrt(np.maximum(observed * (1 - observed), 1e-9) / sizes)
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="perfect")
    axes.errorbar(predicted, observed, yerr=margin, fmt="o-", markersize=4, linewidth=1, label=name)
    axes.set(xlabel="predicted reward", ylabel="share clicked or ordered", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(f"Reliability, 15 bins of equal mass (ECE {report.calibration.ece_equal_mass:.3f})", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _cell(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
