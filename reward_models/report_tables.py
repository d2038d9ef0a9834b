"""Show what ``report.judge`` measured: tables, the reliability diagram, and ``reward.json``."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from genrec_rl.rewards.gates import GateReport
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.types import Interval
from reward_models.quality import Calibration
from reward_models.report import RewardReport


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
    """Print ranking, calibration, popularity bands and gates as tables."""
    title = f"Reward model: {report.n_pages:,} pages of {report.n_users:,} held-out users"
    ranking = _table(title, "positives against", "scored by", "AUC", "GAUC", "ties")
    for name, part in report.slices.items():
        ranking.add_row(name, "model", _cell(part.model.auc), _cell(part.model.gauc), f"{part.tie_share:.1%}")
        popularity = part.popularity
        ranking.add_row("", "popularity", _cell(popularity.auc), _cell(popularity.gauc), "", end_section=True)
    console.print(ranking)

    headings = ("on", "log loss", "base rate's", "ECE", "by chance", "slope", "intercept", "COPC")
    calibration = _table("Calibration, 15 bins of equal mass", *headings)
    calibration.add_row("what it learnt from", *_calibration_cells(report.calibration))
    if report.order_calibration is not None:
        calibration.add_row("the same, orders", *_calibration_cells(report.order_calibration))
    for name, part in report.slices.items():
        calibration.add_row(f"positives and {name}", *_calibration_cells(part.calibration))
    console.print(calibration)

    bands = _table("By popularity", "clicks and orders of the item", "candidates", "share positive", "AUC", "COPC")
    for band in report.popularity_bands:
        auc, copc = ("" if number is None else f"{number:.3f}" for number in (band.auc, band.copc))
        bands.add_row(f"{band.least} to {band.most}", f"{band.n_candidates:,}", f"{band.base_rate:.1%}", auc, copc)
    console.print(bands)

    table = _table(
        "Gates (reference: history)", "gate", "tau", "positives pass", "random items pass", "invalid SIDs pass"
    )
    for name, gate in gates.items():
        passed = (gate.positives_pass, gate.random_pass, gate.invalid_pass)
        table.add_row(name, f"{gate.tau:.3f}", *(f"{share:.1%}" for share in passed))
    console.print(table)
    console.print(f"done in {seconds:.0f} s")


def plot_reliability(report: RewardReport, path: Path, *, name: str) -> None:
    """Draw observed against predicted rate, with 95 % binomial intervals, and without them by kind of negative."""
    from matplotlib.figure import Figure

    bins = report.reliability
    predicted, observed, sizes = (np.array(v) for v in (bins.predicted, bins.observed, bins.sizes))
    margin = 1.96 * np.sqrt(np.maximum(observed * (1 - observed), 1e-9) / sizes)
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="perfect")
    axes.errorbar(predicted, observed, yerr=margin, fmt="o-", markersize=4, linewidth=1, label=name)
    for kind, part in report.slices.items():
        line = part.reliability
        axes.plot(line.predicted, line.observed, ".--", markersize=3, linewidth=0.7, label=f"positives and {kind}")
    axes.set(xlabel="predicted reward", ylabel="share clicked or ordered", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    found, chance = report.calibration.ece_equal_mass, report.calibration.ece_by_chance
    axes.set_title(f"15 bins of equal mass: ECE {found:.3f} (a perfect model's {chance:.3f})", fontsize=10)
    axes.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=120)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 or heading == "scored by" else "right")
    return table


def _calibration_cells(c: Calibration) -> list[str]:
    ece = (c.ece_equal_mass, c.ece_by_chance)
    numbers = (c.log_loss, c.base_log_loss, *ece, c.slope, c.intercept, c.copc)
    return [f"{number:.3f}" for number in numbers]


def _cell(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
