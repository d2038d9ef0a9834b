"""How the loss falls with training and size: the curves of Figures 2a and 2b, and a power law through their ends."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.optimize import curve_fit

from genrec_rl.errors import DataError
from genrec_rl.models.qwen2 import GenRecQwen2Config, GenRecQwen2ForCausalLM

mpl.use("Agg")


@dataclass(frozen=True, slots=True)
class Curve:
    """Validation loss of one policy (nats a token, each positive after the history before its page).

    Each loss has its ``epochs``, ``tokens`` (input places, padding included) and ``seconds`` (of training).
    """

    n_parameters: int
    epochs: list[float]
    losses: list[float]
    tokens: list[float]
    seconds: list[float]

    @property
    def best(self) -> float:
        """The lowest loss."""
        return min(self.losses)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """loss = floor + scale * (parameters / 10^6)^-exponent."""

    floor: float
    scale: float
    exponent: float

    def __call__(self, n_parameters: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the loss at these sizes."""
        return self.floor + self.scale * (np.asarray(n_parameters) / 1e6) ** -self.exponent


def read_curve(policy_dir: Path) -> Curve:
    """Read a policy's size and validation losses off what recipes/sft.py left.

    Raises:
        DataError: when it was never evaluated.
    """
    rows = [json.loads(line) for line in (policy_dir / "metrics.jsonl").read_text().splitlines()]
    last = 0
    seconds: dict[int, float] = {}
    points: dict[int, tuple[float, float, float, float]] = {}
    for row in rows:
        step = row["step"]
        if step < last:  # cut off, and gone on from an earlier checkpoint
            seconds = {at: took for at, took in seconds.items() if at < step}
        last = step
        seconds[step] = seconds.get(step, 0.0) + row.get("train/seconds", 0.0)
        if "eval/loss" in row:
            tokens = row.get("train/num_input_tokens_seen", 0)
            points[step] = (row["eval/loss"], row["train/epoch"], tokens, sum(seconds.values()))
    if not points:
        raise DataError(f"{policy_dir / 'metrics.jsonl'} holds no eval/loss; train with an eval_strategy")
    losses, epochs, tokens_at, seconds_at = zip(*(points[step] for step in sorted(points)), strict=True)
    n_parameters = count_parameters(policy_dir)
    return Curve(n_parameters, list(epochs), list(losses), list(tokens_at), list(seconds_at))


def count_parameters(policy_dir: Path) -> int:
    """Return how many numbers a policy learns, by its configuration: its weights may have been cleared away."""
    config = GenRecQwen2Config.from_pretrained(policy_dir)
    with torch.device("meta"):
        network = GenRecQwen2ForCausalLM(config)
    return sum(parameter.numel() for parameter in network.parameters())


def law_at(sizes: Float[np.ndarray, " n"], *law: float) -> Float[np.ndarray, " n"]:
    return PowerLaw(*law)(sizes)


def fit_power_law(curves: Sequence[Curve]) -> PowerLaw | None:
    """Fit the lowest losses; None with fewer than four sizes, or where no law of this form fits."""
    sizes, losses = np.array([(curve.n_parameters, curve.best) for curve in curves]).T
    if len(np.unique(sizes)) < 4:
        return None
    start = (losses.min() * 0.9, np.ptp(losses) + 1e-3, 0.5)
    try:
        found, _ = curve_fit(
            lambda n, *p: PowerLaw(*p)(n), sizes, losses, p0=start, bounds=(0, np.inf), maxfev=20_000
        )
    except RuntimeError:
        return None
    return PowerLaw(*map(float, found))


def scaling_facts(curves: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
    """Return sizes, every seed's lowest loss and the law through them, for a result file."""
    law = fit_power_law([curve for seeds in curves.values() for curve in seeds])
    sizes = {
        name: {"parameters": of[0].n_parameters, "lowest_loss": [c.best for c in of]} for name, of in curves.items()
    }
    return {"sizes": sizes, "law": None if law is None else asdict(law)}


def draw_targets(curves: Mapping[str, Sequence[Curve]], file: Path) -> None:
    """Draw losses over tokens and over seconds, a line a system (the first seed's): Figure 2a."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for name, (curve, *_) in curves.items():
        left.plot(np.array(curve.tokens) / 1e6, curve.losses, marker="o", markersize=3, label=name)
        right.plot(np.array(curve.seconds) / 60, curve.losses, marker="o", markersize=3)
    left.set(xlabel="tokens read (millions, padding included)", ylabel="validation loss (nats a token)")
    right.set(xlabel="minutes of training")
    left.legend(frameon=False, fontsize=8)
    _save(figure, file)


def draw_curves(curves: Mapping[str, Sequence[Curve]], file: Path) -> None:
    """Draw losses over epochs, a line a size (the first seed's), and their lowest over parameters with the law."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    shades = plt.colormaps["viridis"](np.linspace(0.05, 0.85, len(curves)))
    for color, (name, seeds) in zip(shades, curves.items(), strict=True):
        left.plot(seeds[0].epochs, seeds[0].losses, marker="o", markersize=3, color=color, label=name)
        for curve in seeds:
            right.plot(curve.n_parameters, curve.best, "o", color=color)
    every = [curve for seeds in curves.values() for curve in seeds]
    law = fit_power_law(every)
    if law is not None:
        parameters = [curve.n_parameters for curve in every]
        sizes = np.geomspace(min(parameters), max(parameters), 50)
        right.plot(sizes, law(sizes), color="#999999", linewidth=1, zorder=0)
        right.set_title(f"{law.floor:.3f} + {law.scale:.3f} (N / 1M)^-{law.exponent:.2f}", fontsize=9)
    left.set(xlabel="epoch", ylabel="validation loss (nats a token)")
    right.set(xlabel="parameters", xscale="log")
    figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right")
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
    plt.close(figure)
