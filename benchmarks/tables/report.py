"""A table of finished cells: JSON for programs, Markdown for people, a picture of both."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from benchmarks.tables.measure import Answers, Requests, measure, pair, summarise
from benchmarks.tables.protocols import ACCURACY, PROTOCOLS, Protocol
from benchmarks.tables.systems import PAIRS, SystemSpec
from genrec_rl.tracking import source_commit
from genrec_rl.types import Interval

mpl.use("Agg")
Metrics = dict[str, dict[str, list[float]]]


def write_table(
    answers: Mapping[str, Mapping[int, Answers]],
    requests: Requests,
    *,
    specs: Sequence[SystemSpec],
    protocol: str,
    file: Path,
) -> None:
    """Measure all answers, and put them into the table's files under their protocol.

    Leave-one-out metrics stand under their own names, those of other protocols behind their prefix.

    Args:
        answers: of each system, by seed.
        requests: what was asked.
        specs: the systems, in the table's order.
        protocol: a name of ``PROTOCOLS``.
        file: the JSON; its ``.md`` and ``.png`` lie beside it.
    """
    columns = {
        spec.name: [measure(given, requests) for given in answers[spec.name].values()]
        for spec in specs
        if spec.name in answers
    }
    means = {name: collect([summarise(seed, requests) for seed in seeds]) for name, seeds in columns.items()}
    pairs = [(a, b) for a, b in PAIRS if a in columns and b in columns]
    paired = pair(columns, pairs, requests)
    asked = PROTOCOLS[protocol]
    result = json.loads(file.read_text()) if file.is_file() else {"systems": {}, "paired": {}}
    result |= {
        "command": " ".join(["python", *sys.argv]),
        "commit": source_commit(),
        "seeds": sorted({seed for given in answers.values() for seed in given}),
    }
    merge(result["systems"], means, asked)
    merge(result["paired"], {key: {m: as_dict(i) for m, i in row.items()} for key, row in paired.items()}, asked)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    file.with_suffix(".md").write_text(as_markdown(result, specs))
    draw(result, specs, asked, file.with_name(f"{file.stem}_{protocol}.png"))


def collect(seeds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Turn one dictionary a seed into one list a metric."""
    return {name: [seed[name] for seed in seeds] for name in seeds[0]}


def merge(into: dict[str, dict[str, Any]], rows: Mapping[str, Mapping[str, Any]], asked: Protocol) -> None:
    """Put the rows' metrics, with the protocol's prefix, beside those of other protocols."""
    for name, row in rows.items():
        kept = {metric: value for metric, value in into.get(name, {}).items() if not asked.owns(metric)}
        into[name] = kept | {asked.prefix + metric: value for metric, value in row.items()}


def as_dict(interval: Interval) -> dict[str, float]:
    return {"diff": interval.mean, "lo": interval.low, "hi": interval.high}


def as_markdown(result: Mapping[str, Any], specs: Sequence[SystemSpec]) -> str:
    """Write the protocols' tables, published rows and paired differences."""
    parts = [f"Written by `{result['command']}`, commit {result['commit'][:10]}.\n"]
    for asked in PROTOCOLS.values():
        shown, prefix = asked.shown, asked.prefix
        rows = [s for s in specs if prefix + shown[0] in result["systems"].get(s.name, {})]
        if not rows:
            continue
        parts += [f"## {asked.title}\n", "| | seeds | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
        for spec in rows:
            found = result["systems"][spec.name]
            cells = [cell(found.get(prefix + metric)) for metric in shown]
            n_seeds = len(found[prefix + shown[0]])
            parts.append(f"| **{spec.name}**, {spec.title} | {n_seeds} | {' | '.join(cells)} |")
            if not prefix:
                parts += [published_row(source, values, shown) for source, values in spec.published.items()]
        parts += ["", *paired_lines(result["paired"], asked), ""]
    return "\n".join(parts) + "\n"


def cell(values: Sequence[float] | None) -> str:
    """Write a mean and, of several seeds, their standard deviation."""
    if values is None:
        return ""
    spread = f" ± {number(float(np.std(values, ddof=1)))}" if len(values) > 1 else ""
    return f"{number(float(np.mean(values)))}{spread}"


def number(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".", 1)


def published_row(source: str, values: Sequence[float], shown: Sequence[str]) -> str:
    by_name = dict(zip(ACCURACY, values, strict=True))
    return f"| *{source}* | | {' | '.join(number(by_name[m]) if m in by_name else '' for m in shown)} |"


def paired_lines(paired: Mapping[str, Mapping[str, Mapping[str, float]]], asked: Protocol) -> list[str]:
    """Write the differences on the same users, one line a pair."""
    lines = []
    for key, row in paired.items():
        cells = [(name, row.get(asked.prefix + name)) for name in asked.paired]
        found = [f"{name} {c['diff']:+.4f} [{c['lo']:+.4f}, {c['hi']:+.4f}]" for name, c in cells if c]
        lines += [f"- {key.replace('-', ' - ')}: {'; '.join(found)}"] if found else []
    return lines


def draw(result: Mapping[str, Any], specs: Sequence[SystemSpec], asked: Protocol, file: Path) -> None:
    """Draw each system's accuracy, a dot a seed, with the published rows beside."""
    metric = asked.prefix + asked.plotted
    rows = [s for s in specs if metric in result["systems"].get(s.name, {})]
    figure, axes = plt.subplots(figsize=(7, 0.34 * len(rows) + 1), layout="constrained")
    for y, spec in enumerate(reversed(rows)):
        values = result["systems"][spec.name][metric]
        is_ours = spec.name.startswith("genrec")
        axes.barh(y, np.mean(values), color="#2a6f97" if is_ours else "#b8c4cc", height=0.7)
        axes.plot(values, [y] * len(values), "o", color="black", markersize=3)
        if not asked.prefix:
            for *_, recall, _ in spec.published.values():
                axes.plot(recall, y, "D", color="#d1495b", markersize=4)
    axes.set_yticks(range(len(rows)), [s.name for s in reversed(rows)])
    published = ", diamonds: as published" if not asked.prefix else ""
    axes.set_xlabel(f"{asked.plotted}, test (dots: seeds{published})")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
    plt.close(figure)
