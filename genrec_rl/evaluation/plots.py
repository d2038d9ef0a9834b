"""Three pictures: accuracy with intervals, what free decoding costs, and how a training run went."""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.types import EvalReport, Interval

# Okabe and Ito's palette: told apart by readers with any common colour blindness.
_COLOURS = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
_DASHES = ("-", "--", ":", "-.")
_DPI = 150
REWARD_STAGES = {
    "raw": "train/reward/raw",
    "gated": "train/reward/gated",
    "anchored": "train/reward/anchored",
}
HALLUCINATION = "train/rollout/hallucination_rate"


def plot_all(report: EvalReport, policies: Mapping[str, Path], folder: Path) -> None:
    """Write every picture that the report and the policies' training logs allow into a folder."""
    plot_accuracy(report, folder / "accuracy.png")
    if any("unconstrained" in by for by in report.systems.values()):
        plot_validity(report, folder / "validity.png")
    runs = {name: path for name, path in policies.items() if _has_rewards(path)}
    if runs:
        plot_training(runs, folder / "training.png")


def plot_accuracy(report: EvalReport, path: str | Path) -> None:
    """Draw HR@K and NDCG@K of every system under constrained decoding, with 95 % intervals."""
    rows = {name: by["constrained"] for name, by in report.systems.items() if "constrained" in by}
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, family in zip(figure.subplots(1, 2), ("HR", "NDCG"), strict=True):
        ks = _ranks(rows, family)
        _bars(axes, [f"{family}@{k}" for k in ks], rows)
        axes.set_ylabel("share of requests with a hit" if family == "HR" else "NDCG")
        axes.set_title("Hit rate" if family == "HR" else "NDCG", loc="left")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(rows), frameon=False
    )
    figure.suptitle(f"Accuracy, constrained decoding, {_requests(report)}", x=0.01, ha="left", fontweight="bold")
    figure.savefig(path, dpi=_DPI)


def plot_validity(report: EvalReport, path: str | Path) -> None:
    """Draw each policy's hallucination rate, and its hit rate decoded freely and under the trie.

    Raises:
        ConfigError: when no system was decoded freely.
    """
    rows = {name: by for name, by in report.systems.items() if {"constrained", "unconstrained"} <= by.keys()}
    if not rows:
        raise ConfigError("no system was decoded without constraint; there is no hallucination rate to draw")
    free = {name: by["unconstrained"] for name, by in rows.items()}
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, [f"HaR@{k}" for k in _ranks(free, "HaR")], free, first_colour=len(report.systems) - len(rows))
    left.set(ylabel="share of generated SIDs that are no item")
    left.set_title("Hallucination rate, unconstrained", loc="left")
    left.yaxis.set_major_formatter(PercentFormatter(1))
    left.legend(frameon=False)
    metric = "HR@10" if all("HR@10" in row for row in free.values()) else f"HR@{_ranks(free, 'HR')[-1]}"
    for offset, decoding, marker in ((-0.08, "unconstrained", "o"), (0.08, "constrained", "s")):
        values = [by[decoding][metric] for by in rows.values()]
        places = np.arange(len(rows)) + offset
        colour = "#D55E00" if decoding == "unconstrained" else "#0072B2"
        centers = [value.mean for value in values]
        right.errorbar(places, centers, _error(values), fmt=marker, color=colour, capsize=3, label=decoding)
    right.set_xticks(range(len(rows)), list(rows))
    right.set_xlim(-0.5, len(rows) - 0.5)
    right.set_ylabel(f"{metric}, 95 % interval")
    right.set_title("What the trie adds to the hit rate", loc="left")
    right.legend(frameon=False)
    for axes in (left, right):
        _tidy(axes)
    figure.suptitle(f"Validity of free generation, {_requests(report)}", x=0.01, ha="left", fontweight="bold")
    figure.savefig(path, dpi=_DPI)


def plot_training(runs: Mapping[str, str | Path], path: str | Path) -> None:
    """Draw the reward at every stage and the hallucination rate over the steps of some runs.

    Args:
        runs: name and folder of each run; the folder holds ``metrics.jsonl``.
        path: picture to write.

    Raises:
        DataError: when a run logged none of these curves.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (name, folder) in zip(cycle(_COLOURS[3:]), runs.items(), strict=False):
        rows = _read_rows(folder)
        drawn = 0
        for dash, (stage, key) in zip(_DASHES, REWARD_STAGES.items(), strict=False):
            drawn += _curve(left, rows, key, color=colour, linestyle=dash, label=f"{name}, {stage}")
        drawn += _curve(right, rows, HALLUCINATION, color=colour, linestyle="-", label=name)
        if not drawn:
            keys = ", ".join([*REWARD_STAGES.values(), HALLUCINATION])
            raise DataError(f"{Path(folder) / 'metrics.jsonl'} holds none of {keys}; name the folder of a GRPO run")
    left.set(xlabel="step", ylabel="mean reward of a rollout")
    left.set_title("Reward at each stage", loc="left")
    right.set(xlabel="step", ylabel="share of rollouts that are no item")
    right.set_title("Hallucination rate of rollouts", loc="left")
    right.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (left, right):
        _tidy(axes, from_zero=axes is right)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend(frameon=False, fontsize="small", ncols=max(1, len(axes.lines) // 3))
    figure.suptitle("Training", x=0.01, ha="left", fontweight="bold")
    figure.savefig(path, dpi=_DPI)


def _bars(
    axes: Axes, metrics: Sequence[str], rows: Mapping[str, Mapping[str, Interval]], *, first_colour: int = 0
) -> None:
    width = 0.8 / len(rows)
    for i, (name, row) in enumerate(rows.items()):
        places = np.arange(len(metrics)) + (i - (len(rows) - 1) / 2) * width
        values = [row[metric] for metric in metrics]
        axes.bar(
            places,
            [value.mean for value in values],
            width * 0.92,
            yerr=_error(values),
            label=name,
            color=_COLOURS[(first_colour + i) % len(_COLOURS)],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
        )
    axes.set_xticks(range(len(metrics)), list(metrics))
    _tidy(axes)


def _curve(axes: Axes, rows: Sequence[Mapping[str, float]], key: str, **style: str) -> bool:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None and "step" in row]
    if points:
        axes.plot(*zip(*points, strict=True), **style)  # type: ignore[arg-type]
    return bool(points)


def _has_rewards(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file() and any(REWARD_STAGES["raw"] in row for row in _read_rows(folder))


def _read_rows(folder: str | Path) -> list[dict[str, float]]:
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"{path} is missing; name the folder of a training run")
    return [json.loads(line) for line in path.read_text().splitlines()]


def _error(values: Sequence[Interval]) -> np.ndarray:
    return np.array([[v.mean - v.low for v in values], [v.high - v.mean for v in values]]).clip(min=0)


def _ranks(rows: Mapping[str, Mapping[str, Interval]], family: str) -> list[int]:
    first = next(iter(rows.values()))
    return sorted(int(name.split("@")[1]) for name in first if name.startswith(f"{family}@"))


def _requests(report: EvalReport) -> str:
    requests = report.protocol["requests"]
    return f"{requests:,} requests; intervals: 95 % over users" if isinstance(requests, int) else str(requests)


def _tidy(axes: Axes, *, from_zero: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    if from_zero:
        axes.set_ylim(bottom=0)
