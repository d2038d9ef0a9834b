"""Pictures of the comparison: what each arm gained on test, and what happened on the way there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from genrec_rl.evaluation.evaluate import PAIR

mpl.use("Agg")
START = "sft"
GAINED = MappingProxyType(
    {
        "NDCG@10": "NDCG@10",
        "R@1": "reward of the first item",
        "gold@10": "gold, best of ten",
        "true_mean@10": "true preference, mean of ten",
        "HaR@10": "invalid SIDs of ten, free",
    }
)
"""Test metrics, as differences to SFT on the same users."""
CURVES = MappingProxyType(
    {
        "eval/ndcg@10": "validation NDCG@10",
        "eval/har@10": "validation HaR@10",
        "train/reward/raw": "reward of the rollouts",
        "eval/R_mean@10": "reward, mean of ten",
        "eval/gold_mean@10": "gold, mean of ten",
        "eval/true_mean@10": "true preference, mean of ten",
        "eval/kl_to_start": "KL to the start, nats",
    }
)
Logged = tuple[Sequence[int], Sequence[float]]
"""Steps, and the metric's values there."""
FAMILIES = (
    ("listwise_kl", "tab:blue"),
    ("grpo_sr", "tab:green"),
    ("grpo", "tab:orange"),
    ("best_of_n", "tab:purple"),
    ("", "tab:gray"),
)
LINES = (
    ("no_gate", "--"),
    ("no_anchor", ":"),
    ("weighed", "-."),
    ("per_mass", "--"),
)
MIN_POINTS = 3
"""A line between a start and an end says nothing of the way."""
SMOOTHED = 20
"""Curves of this many points and more are drawn as running means, over an eighth of them."""


def draw(result: Mapping[str, Any], curves: Mapping[str, Mapping[str, Logged]], file: Path, *, title: str) -> None:
    """Draw one row of differences to SFT on test, and one of curves over the steps.

    Args:
        result: what the table is written from.
        curves: by metric and arm; those with fewer points than ``MIN_POINTS`` are left out.
        file: where to.
        title: of data and protocol.
    """
    gained = {metric: of for metric in GAINED if (of := gains(result, metric))}
    drawn = {metric: lines for metric, of in curves.items() if (lines := told(of))}
    if not gained:
        file.unlink(missing_ok=True)
        return
    arms = [name for name in result["systems"] if any(name in of for of in gained.values())]
    n_rows, n_columns = 1 + bool(drawn), max(len(gained), len(drawn))
    heights = [1.0 + 0.24 * len(arms), 2.6][:n_rows]
    figure = plt.figure(figsize=(3.0 * n_columns + 1.5, sum(heights)), layout="constrained")
    rows = np.atleast_1d(figure.subfigures(n_rows, 1, height_ratios=heights))
    rows[0].suptitle(f"{title}: test, minus SFT, 95 % over users (hollow: holds 0; in brackets: seeds)", fontsize=10)
    seeds = {name: len(result["systems"][name]["NDCG@10"]) for name in arms}
    for axes, (metric, of) in zip(places(rows[0], len(gained), n_columns)[0], gained.items(), strict=True):
        draw_gains(axes, seeds, of, title=GAINED[metric])
    if drawn:
        below, empty = places(rows[1], len(drawn), n_columns)
        for axes, (metric, lines) in zip(below, drawn.items(), strict=True):
            draw_curves(axes, lines, title=CURVES[metric])
        handles = {name: line for axes in below for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        where = (empty[0], "center left") if empty else (rows[1], "outside right")
        where[0].legend(handles.values(), handles, frameon=False, fontsize=7, loc=where[1])
    figure.savefig(file, dpi=130)
    plt.close(figure)


def places(row: Any, n: int, n_columns: int) -> tuple[list[Axes], list[Axes]]:
    """Return the first n of a row's places, and the others, which stay empty."""
    all_of_row = [*np.atleast_1d(row.subplots(1, n_columns))]
    for empty in all_of_row[n:]:
        empty.set_axis_off()
    return all_of_row[:n], all_of_row[n:]


def gains(result: Mapping[str, Any], metric: str) -> dict[str, dict[str, float]]:
    """Return an arm's difference to SFT on test, with its interval, of the arms that have the metric."""
    pairs = {name: result["paired"].get(f"{name}{PAIR}{START}", {}) for name in result["systems"]}
    return {name: row[metric] for name, row in pairs.items() if metric in row}


def told(of: Mapping[str, Logged]) -> dict[str, Logged]:
    """Return the arms whose curve has enough points."""
    return {name: (steps, values) for name, (steps, values) in of.items() if len(steps) >= MIN_POINTS}


def draw_gains(axes: Axes, seeds: Mapping[str, int], of: Mapping[str, Mapping[str, float]], *, title: str) -> None:
    """Draw a row an arm, the first on top: the difference to SFT and its 95 % interval, hollow where that holds 0."""
    labels = [f"{name} ({n})" for name, n in seeds.items()]
    for place, name in enumerate(seeds):
        if name in of:
            low, high, color = of[name]["lo"], of[name]["hi"], style(name)[0]
            axes.plot([low, high], [place, place], color=color, linewidth=2.0)
            inside = "white" if low <= 0 <= high else color
            axes.plot(of[name]["diff"], place, "o", color=color, markersize=5, mfc=inside)
    axes.axvline(0.0, color="black", linewidth=0.8)
    is_first = axes.get_subplotspec().is_first_col()
    axes.set_yticks(range(len(labels)), labels if is_first else [""] * len(labels), fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    finish(axes, title)


def draw_curves(axes: Axes, lines: Mapping[str, Logged], *, title: str) -> None:
    """Draw a line an arm; a noisy one as its running mean."""
    for name, (steps, values) in lines.items():
        color, dashes = style(name)
        x, y = smoothed(np.asarray(steps, float), np.asarray(values, float))
        axes.plot(x, y, label=name, color=color, linestyle=dashes, linewidth=1.4)
    axes.set_xlabel("step", fontsize=8)
    finish(axes, title)


def finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)


def style(name: str) -> tuple[str, Any]:
    """Return an arm's colour, which is its family's, and its dashes, which say what is left out."""
    color = next(color for start, color in FAMILIES if name.startswith(start))
    return color, next((dashes for end, dashes in LINES if name.endswith(end)), "-")


def smoothed(
    steps_N: Float[np.ndarray, " N"], values_N: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Return the running mean of a long curve, at the middle of each window; a short one as it is."""
    if len(values_N) < SMOOTHED:
        return steps_N, values_N
    window = np.full(len(values_N) // 8, 1.0)
    window /= window.sum()
    return np.convolve(steps_N, window, "valid"), np.convolve(values_N, window, "valid")
