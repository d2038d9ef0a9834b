"""A table of finished cells: JSON for programs, Markdown for people, a picture of both."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from benchmarks.tables.measure import Answers, Columns, Requests, measure, pair, summarise
from benchmarks.tables.protocols import PROTOCOLS, PUBLISHED, Protocol
from benchmarks.tables.systems import PAIRS, SystemSpec
from genrec_rl.evaluation.evaluate import PAIR
from genrec_rl.tracking import source_commit
from genrec_rl.types import Interval

mpl.use("Agg")
Result = dict[str, Any]
MIN_COUNT = 10.0
"""A mean above it is no share."""


def tabulate(
    answers: Mapping[str, Mapping[str, Mapping[int, Answers]]],
    requests: Mapping[str, Requests],
    *,
    measured: Mapping[str, Mapping[str, Mapping[int, Columns]]] = MappingProxyType({}),
    unseeded: Collection[str] = (),
) -> Result:
    """Measure all answers.

    Args:
        answers: by protocol, system and seed.
        requests: what each protocol asked.
        measured: further systems, by protocol and name, of which each seed's numbers are known already.
        unseeded: systems in which nothing is drawn.

    Returns:
        Each system's metrics, one number a seed, and the paired differences. Leave-one-out metrics stand under their
        own names, those of other protocols behind their prefix.
    """
    seeds = {seed for systems in answers.values() for given in systems.values() for seed in given}
    result = as_result({}, {}, seeds=sorted(seeds))
    for protocol, systems in answers.items():
        asked, prefix = requests[protocol], PROTOCOLS[protocol].prefix
        columns = {
            name: {seed: measure(given, asked) for seed, given in seeds.items()} for name, seeds in systems.items()
        }
        columns |= {name: dict(seeds) for name, seeds in measured.get(protocol, {}).items()}
        for name, seeds in columns.items():
            means = [summarise(seed, asked) for seed in seeds.values()]
            row = result["systems"].setdefault(name, {})
            row |= {prefix + metric: [seed[metric] for seed in means] for metric in means[0]}
        for key, row in pair(columns, [p for p in PAIRS if set(p) <= set(columns)], asked, unseeded=unseeded).items():
            found = result["paired"].setdefault(key, {})
            found |= {prefix + metric: as_dict(interval) for metric, interval in row.items()}
    return result


def write_table(result: Result, specs: Sequence[SystemSpec], file: Path) -> None:
    """Write the JSON, and beside it the ``.md`` and a picture of each protocol."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    file.with_suffix(".md").write_text(as_markdown(result, specs))
    for name, asked in PROTOCOLS.items():
        if rows_of(result, specs, asked):
            draw(result, specs, asked, file.with_name(f"{file.stem}_{name}.png"))


def rows_of(result: Result, specs: Sequence[SystemSpec], asked: Protocol) -> list[SystemSpec]:
    """Return the systems that a protocol has numbers of, in the table's order."""
    return [spec for spec in specs if asked.prefix + asked.plotted in result["systems"].get(spec.name, {})]


def as_result(
    systems: dict[str, dict[str, list[float]]],
    paired: Mapping[str, Mapping[str, Interval]],
    *,
    seeds: Sequence[int],
) -> Result:
    """Return what a result file holds: the command and commit that made it, one number a seed, and differences."""
    return {
        "command": _command(sys.argv),
        "commit": source_commit(),
        "seeds": list(seeds),
        "systems": systems,
        "paired": {key: {metric: as_dict(x) for metric, x in row.items()} for key, row in paired.items()},
    }


def _command(words: Sequence[str]) -> str:
    """Return the command that makes the cells, also where this run only wrote the table of them."""
    text = " ".join(["python", *words])
    return text.replace(" --report true", "")


def as_dict(interval: Interval) -> dict[str, float]:
    return {"diff": interval.mean, "lo": interval.low, "hi": interval.high}


def as_markdown(result: Result, specs: Sequence[SystemSpec]) -> str:
    """Write the protocols' whole tables, published rows and paired differences."""
    parts = [f"Written by `{result['command']}`, commit {result['commit'][:10]}.\n"]
    for asked in PROTOCOLS.values():
        if rows_of(result, specs, asked):
            parts += [f"## {asked.title}\n", f"{asked.note}\n", *table_lines(result, specs, asked, asked.shown), ""]
            parts += [*paired_lines(result["paired"], asked), ""]
    return "\n".join(parts) + "\n"


def brief_tables(result: Result, specs: Sequence[SystemSpec], file: Path) -> str:
    """Write the protocols' tables with few columns, and where the rest stands."""
    parts = []
    for asked in PROTOCOLS.values():
        if rows_of(result, specs, asked):
            parts += [f"### {asked.title}\n", f"{asked.note}\n", *table_lines(result, specs, asked, asked.brief), ""]
    return "\n".join([*parts, f"All columns, and differences on the same users: `results/{file.stem}.md`."])


def table_lines(result: Result, specs: Sequence[SystemSpec], asked: Protocol, shown: Sequence[str]) -> list[str]:
    """Write one protocol's table, with the published rows under leave-one-out."""
    lines = ["| | seeds | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for spec in rows_of(result, specs, asked):
        found = result["systems"][spec.name]
        cells = [cell(found.get(asked.prefix + metric)) for metric in shown]
        n_seeds = len(found[asked.prefix + asked.plotted])
        lines.append(f"| **{spec.name}**, {spec.title} | {n_seeds} | {' | '.join(cells)} |")
        if asked.has_published:
            lines += [published_row(source, values, shown) for source, values in spec.published.items()]
    return lines


def cell(values: Sequence[float] | None) -> str:
    """Write a mean and, of several seeds, their standard deviation; counts, of 10 and more, without places."""
    if values is None:
        return ""
    as_count = float(np.mean(values)) >= MIN_COUNT
    spread = f" ± {number(float(np.std(values, ddof=1)), as_count=as_count)}" if len(values) > 1 else ""
    return f"{number(float(np.mean(values)), as_count=as_count)}{spread}"


def number(value: float, *, as_count: bool = False) -> str:
    """Write a share with four places and no leading zero, or a count with none."""
    if as_count:
        return f"{value:.0f}"
    text = f"{value:.4f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def published_row(source: str, values: Sequence[float], shown: Sequence[str]) -> str:
    by_name = dict(zip(PUBLISHED, values, strict=True))
    return f"| *{source}* | | {' | '.join(number(by_name[m]) if m in by_name else '' for m in shown)} |"


def paired_lines(paired: Mapping[str, Mapping[str, Mapping[str, float]]], asked: Protocol) -> list[str]:
    """Write the differences on the same users, one line a pair."""
    lines = []
    for key, row in paired.items():
        found = differences(row, asked.paired, prefix=asked.prefix)
        lines += [f"- {pair_title(key)}: {found}"] if found else []
    return lines


def pair_title(key: str) -> str:
    return key.replace(PAIR, f" {PAIR} ")


def differences(row: Mapping[str, Mapping[str, float]], metrics: Sequence[str], *, prefix: str = "") -> str:
    """Write a pair's differences of those metrics that it has, whose names begin with ``prefix`` in the row."""
    return "; ".join(f"{name} {difference(row[prefix + name])}" for name in metrics if prefix + name in row)


def difference(of: Mapping[str, float]) -> str:
    return f"{of['diff']:+.4f} [{of['lo']:+.4f}, {of['hi']:+.4f}]"


def draw(result: Result, specs: Sequence[SystemSpec], asked: Protocol, file: Path) -> None:
    """Draw each system's accuracy, a dot a seed, with the published rows beside."""
    metric = asked.prefix + asked.plotted
    rows = rows_of(result, specs, asked)
    figure, axes = plt.subplots(figsize=(7, 0.34 * len(rows) + 1), layout="constrained")
    for y, spec in enumerate(reversed(rows)):
        values = result["systems"][spec.name][metric]
        is_ours = spec.kind not in ("counter", "neural")
        axes.barh(y, np.mean(values), color="#2a6f97" if is_ours else "#b8c4cc", height=0.7)
        axes.plot(values, [y] * len(values), "o", color="black", markersize=3)
        if asked.has_published:
            for *_, recall, _ in spec.published.values():
                axes.plot(recall, y, "D", color="#d1495b", markersize=4)
    axes.set_yticks(range(len(rows)), [s.name for s in reversed(rows)])
    published = ", diamonds: as published" if asked.has_published and any(spec.published for spec in rows) else ""
    axes.set_xlabel(f"{asked.plotted}, test (dots: seeds{published})")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
    plt.close(figure)
