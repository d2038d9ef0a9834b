"""How every benchmark measures: ours and the baselines interleaved in one process, 1 thread, CPU seconds, medians.

    bench = Benchmark(__doc__, settings)
    measured = bench.compare("W=50", [Contender("ours", ...), Contender("HF generate", ...)])
    bench.check("W=50: items as HF's", max_difference, limit=1e-4)
    bench.finish()

CPU seconds (``time.process_time``) do not grow when another process takes the core, and with one thread they
are what the work costs; ``kernel_s`` is the part that the operating system took, most of it to hand out fresh
memory. Peak memory is that of torch's tensors, from the profiler, in a run that is not timed; a
contender that is not torch has none. The last line that ``finish`` prints is one line of JSON.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import faiss
import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch.profiler import ProfilerActivity, profile
from transformers import HfArgumentParser

from genrec_rl.tracking import console, source_commit

mpl.use("Agg")
VERSIONS = ("genrec-rl", "torch", "transformers", "trl", "faiss-cpu", "prefix-grouper", "semantic-id")
MIB = 1 << 20
S = TypeVar("S", bound="BenchmarkSettings")


@dataclass
class BenchmarkSettings:
    """What every benchmark can be told."""

    json: str | None = field(default=None, metadata={"help": "file for all numbers, with machine and versions"})
    repeats: int = field(default=5, metadata={"help": "timed runs of each contender; the median counts"})
    slow_repeats: int = field(default=2, metadata={"help": "the same for baselines that take seconds"})
    seed: int = field(default=0, metadata={"help": "of weights and data"})
    sweep: bool = field(default=False, metadata={"help": "also measure growth and draw it, where there is a plot"})


def parse(settings: type[S]) -> S:
    """Read settings off the command line."""
    parser = HfArgumentParser(
        settings, description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser.parse_args_into_dataclasses()[0]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way of doing the work. ``prepare`` runs untimed before each run, and its answer is given to ``run``."""

    name: str
    run: Callable[..., Any]
    repeats: int | None = None
    prepare: Callable[[], Any] | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Median, smallest and largest CPU seconds; peak MiB of tensors; and what the first, untimed run returned."""

    seconds: float
    fastest: float
    slowest: float
    peak_mib: float | None
    result: Any


class Benchmark:
    """Collects cases, prints them, writes them.

    Args:
        question: what is asked; the first line of the script's docstring.
        settings: what was asked for, kept with the numbers.
    """

    def __init__(self, question: str | None, settings: BenchmarkSettings) -> None:
        self.question, self.settings = (question or "").strip().partition("\n")[0], settings
        self.cases: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        self.goals: list[dict[str, Any]] = []
        self._commit = source_commit()
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        threadpool_limits(1)
        torch.manual_seed(settings.seed)

    def compare(self, case: str, contenders: Sequence[Contender], **facts: Any) -> dict[str, Measured]:
        """Run all once for warm-up, result and memory, then round after round; the first contender is ours."""
        firsts = {c.name: _run_once(c) for c in contenders}
        times: dict[str, list[float]] = {c.name: [] for c in contenders}
        kernel: dict[str, list[float]] = {c.name: [] for c in contenders}
        for round_ in range(max(c.repeats or self.settings.repeats for c in contenders)):
            for c in contenders:
                if round_ < (c.repeats or self.settings.repeats):
                    given = [c.prepare()] if c.prepare else []
                    begun, begun_kernel = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_stime
                    c.run(*given)
                    times[c.name].append(time.process_time() - begun)
                    kernel[c.name].append(resource.getrusage(resource.RUSAGE_SELF).ru_stime - begun_kernel)
        measured = {
            name: Measured(statistics.median(t), min(t), max(t), firsts[name][1], firsts[name][0])
            for name, t in times.items()
        }
        ours = measured[contenders[0].name]
        for name, m in measured.items():
            row = {"case": case, "contender": name, "cpu_s": m.seconds, "fastest": m.fastest, "slowest": m.slowest}
            row |= {"ratio": m.seconds / ours.seconds, "peak_mib": m.peak_mib, **facts}
            row["memory_ratio"] = m.peak_mib / ours.peak_mib if m.peak_mib and ours.peak_mib else None
            row["kernel_s"] = statistics.median(kernel[name])
            self.cases.append(row)
            console.print(_line(row), markup=False, highlight=False)
        return measured

    def check(self, what: str, value: float, *, limit: float) -> None:
        """Record an equality beside the ratios; a violated one ends the script with an error at ``finish``."""
        self.checks.append({"what": what, "value": float(value), "limit": limit, "holds": bool(value <= limit)})

    def goal(self, what: str, value: float, *, must: float, aim: float | None = None, at_most: bool = False) -> None:
        """Hold a number against the project's goal."""
        met = value <= must if at_most else value >= must
        self.goals.append({"goal": what, "value": value, "must": must, "aim": aim, "at_most": at_most, "met": met})

    def finish(self) -> None:
        """Print the table, the checks and the goals; write the file; end with one line of JSON.

        Raises:
            SystemExit: when a check did not hold.
        """
        _print_table(self.question, self.cases, ("case", "contender", "cpu_s", "ratio", "peak_mib", "memory_ratio"))
        _print_table("Equal results", self.checks, ("what", "value", "limit", "holds"))
        _print_table("Goals", self.goals, ("goal", "value", "must", "aim", "met"))
        if self.settings.json:
            path = Path(self.settings.json)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.facts(), indent=1) + "\n")
        ratios: dict[str, dict[str, float]] = {}
        peaks: dict[str, dict[str, float]] = {}
        for row in self.cases:
            ratios.setdefault(row["case"], {})[row["contender"]] = round(row["ratio"], 3)
            if row["peak_mib"] is not None:
                peaks.setdefault(row["case"], {})[row["contender"]] = round(row["peak_mib"], 2)
        print(json.dumps({"ratios": ratios, "peak_mib": peaks}))
        if not all(check["holds"] for check in self.checks):
            raise SystemExit("results differ: see the table of equal results above; these ratios mean nothing")

    def facts(self) -> dict[str, Any]:
        """Return all numbers, with machine and versions."""
        installed = {d.metadata["Name"].lower().replace("_", "-") for d in metadata.distributions()}
        return {
            "question": self.question,
            "command": " ".join(["python", *sys.argv]),
            "commit": self._commit,
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, 1 thread used, no GPU",
            "versions": {name: metadata.version(name) for name in VERSIONS if name in installed},
            "settings": dataclasses.asdict(self.settings),
            "cases": self.cases,
            "checks": self.checks,
            "goals": self.goals,
        }


def _run_once(contender: Contender) -> tuple[Any, float | None]:
    """Run under torch's profiler; return the result and the peak of what was allocated meanwhile."""
    given = [contender.prepare()] if contender.prepare else []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        result = contender.run(*given)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events):
        held += size
        peak = max(peak, held)
    return result, peak / MIB if peak else None


def _print_table(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left", min_width=80)
    for column in columns:
        is_word = isinstance(rows[0][column], str)
        table.add_column(column, justify="left" if is_word else "right", no_wrap=not is_word)
    for row in rows:
        table.add_row(*[_cell(row[column]) for column in columns])
    console.print(table)


def _line(row: dict[str, Any]) -> str:
    return f"{row['case']}  {row['contender']}: {row['cpu_s']:.4f} s, {row['ratio']:.2f}x"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def plot_growth(
    path: Path, title: str, x_label: str, y_label: str, curves: Mapping[str, Mapping[float, float]]
) -> None:
    """Draw how cost grows: one line a contender, both axes logarithmic."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, points in curves.items():
        axes.plot(list(points), list(points.values()), marker="o", label=name)
    axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
    xs = sorted({x for points in curves.values() for x in points})
    axes.set_xticks(xs, [f"{x:,.0f}" for x in xs], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
