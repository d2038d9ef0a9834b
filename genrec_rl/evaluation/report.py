"""An EvalReport for people and programs: eval.json, table.md, terminal tables, and what they say in words."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from genrec_rl.evaluation.baselines import COOCCURRENCE, POPULARITY
from genrec_rl.evaluation.evaluate import DECODINGS, EXCLUDE_SEEN, PAIR, POSITIVES_SEEN, Predictions
from genrec_rl.types import NO_ITEM, EvalReport, Example, Interval

TABLE_METRICS = ("HR@1", "HR@10", "HR@50", "NDCG@10", "NDCG@50", "HaR@10", "R@1", "R@10", "value@10", "coverage@10")
BARS = (POPULARITY, COOCCURRENCE)
_BAR_METRIC = "HR@10"
_ALIGNED_METRICS = ("HR@1", "HR@10", "HR@50", "NDCG@10", "R@10")
_NARROWED = 0.5
_RARELY, _OFTEN = 0.01, 0.05
"""Positives in the history below which they are rare, and answers in it from which on they are many."""

Verdict = Literal["higher", "lower", "not separated"]
Systems = Mapping[str, Mapping[str, Mapping[str, Interval]]]


def verdict(difference: Interval) -> Verdict:
    """Say in words whether the interval of a difference leaves 0 out."""
    if difference.low > 0:
        return "higher"
    return "lower" if difference.high < 0 else "not separated"


def write_json(report: EvalReport, path: str | Path) -> None:
    """Write ``{protocol, systems, paired}``; a bound that does not exist is null."""
    content = {
        "protocol": report.protocol,
        "systems": _plain(report.systems, center="mean"),
        "paired": _plain(report.paired, center="diff"),
    }
    Path(path).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_report(report: EvalReport, folder: str | Path, *, samples: str = "") -> None:
    """Write ``eval.json`` and ``table.md`` into a folder."""
    write_json(report, Path(folder) / "eval.json")
    (Path(folder) / "table.md").write_text(markdown(report, samples=samples))


def as_row(report: EvalReport) -> dict[str, float]:
    """Return all means as one flat row for a log: ``sft/constrained/HR@10``."""
    return {
        f"{system}/{decoding}/{metric}": value.mean
        for system, by_decoding in report.systems.items()
        for decoding, by_metric in by_decoding.items()
        for metric, value in by_metric.items()
    }


def _plain(systems: Systems, *, center: str) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    return {
        system: {
            decoding: {
                metric: {center: _finite(value.mean), "low": _finite(value.low), "high": _finite(value.high)}
                for metric, value in by_metric.items()
            }
            for decoding, by_metric in by_decoding.items()
        }
        for system, by_decoding in systems.items()
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class _Grid:
    """A table before it is drawn; a cell is None where a system lacks the metric."""

    title: str
    columns: list[str]
    rows: dict[str, list[Interval | None]]
    is_difference: bool


def _grids(report: EvalReport) -> Iterator[_Grid]:
    for decoding in DECODINGS:
        chosen = _under(report.systems, decoding)
        if chosen:
            yield _grid(f"{decoding} decoding", chosen)
    for decoding in DECODINGS:
        chosen = _under(report.paired, decoding)
        if chosen:
            yield _grid(f"differences on the same users, {decoding} decoding", chosen, is_difference=True)


def _under(systems: Systems, decoding: str) -> dict[str, Mapping[str, Interval]]:
    return {name: by_decoding[decoding] for name, by_decoding in systems.items() if decoding in by_decoding}


def _grid(title: str, rows: Mapping[str, Mapping[str, Interval]], *, is_difference: bool = False) -> _Grid:
    columns = [metric for metric in TABLE_METRICS if any(metric in row for row in rows.values())]
    cells = {name.replace(PAIR, " - "): [row.get(metric) for metric in columns] for name, row in rows.items()}
    return _Grid(title, columns, cells, is_difference)


def _center(value: Interval, is_difference: bool) -> str:
    return _signed(value.mean) if is_difference else _short(value.mean, 4)


def _signed(value: float) -> str:
    return ("+" if round(value, 4) > 0 else "") + _short(value, 4)


def _word(value: Interval, is_difference: bool) -> str:
    return verdict(value) if is_difference and verdict(value) != "not separated" else ""


def _short(value: float, digits: int) -> str:
    """Format without the leading zero: .2104, -.013, 1.000."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return f"{0:.{digits}f}"[1:]
    return text.replace("0.", ".", 1) if abs(value) < 1 and "0." in text[:3] else text


def markdown(report: EvalReport, *, samples: str = "") -> str:
    """Return table.md: the tables, what they say, how they were made, and sampled recommendations."""
    parts = ["# Evaluation", ""]
    for grid in _grids(report):
        parts += [f"## {grid.title[0].upper()}{grid.title[1:]}", "", f"| | {' | '.join(grid.columns)} |"]
        parts += ["|---" * (len(grid.columns) + 1) + "|"]
        for name, cells in grid.rows.items():
            parts += [f"| {name} | " + " | ".join(_markdown_cell(cell, grid.is_difference) for cell in cells) + " |"]
        parts += [""]
    parts += ["## What this says", "", *(f"- {line}" for line in findings(report)), ""]
    parts += ["## Protocol", "", *(f"- {key}: {value}" for key, value in report.protocol.items()), ""]
    if samples:
        parts += ["## Some recommendations", "", "```text", samples, "```", ""]
    return "\n".join(parts)


def _markdown_cell(value: Interval | None, is_difference: bool) -> str:
    if value is None:
        return ""
    bounds = "" if math.isnan(value.low) else f"[{_short(value.low, 4)}, {_short(value.high, 4)}]"
    word = _word(value, is_difference)
    return " ".join(filter(None, [_center(value, is_difference), bounds, f"**{word}**" if word else ""]))


def print_report(report: EvalReport, console: Console) -> None:
    """Print tables that fit 80 columns, and the findings; differences from the bars stand in table.md only."""
    for grid in _grids(report):
        rows = {
            name: cells for name, cells in grid.rows.items() if not name.endswith(tuple(f"- {bar}" for bar in BARS))
        }
        if not rows:
            continue
        table = Table(
            title=grid.title, title_justify="left", title_style="bold", box=box.SIMPLE, padding=(0, 1, 0, 0)
        )
        table.add_column("", overflow="fold")
        for column in grid.columns:
            table.add_column(column.replace("@", "\n@"), justify="right", no_wrap=True)
        for name, cells in rows.items():
            table.add_row(name.replace(" - ", "\n- "), *(_terminal_cell(cell, grid.is_difference) for cell in cells))
        console.print(table)
    for line in findings(report):
        console.print(f"- {line}", markup=False, highlight=False)


def _terminal_cell(value: Interval | None, is_difference: bool) -> str:
    if value is None:
        return ""
    bounds = "" if math.isnan(value.low) else f"[dim]±{_short((value.high - value.low) / 2, 3)}[/]"
    return "\n".join(filter(None, [_center(value, is_difference), bounds, _word(value, is_difference)]))


def findings(report: EvalReport) -> list[str]:
    """Say in plain words what the intervals support, and nothing more."""
    policies = [name for name in report.systems if name not in BARS]
    lines = [line for bar in BARS if bar in report.systems for line in [_against_bar(report, bar)] if line]
    reference = "sft" if "sft" in policies else next(iter(policies), "")
    for policy in policies:
        if policy != reference:
            lines += [
                line for decoding in DECODINGS for line in [_against(report, policy, reference, decoding)] if line
            ]
            lines += _narrowing(report, policy, reference)
    lines += _of_history(report)
    if limit := report.protocol.get("max_requests"):
        lines.append(f"Smoke test only: at most {limit} requests were scored.")
    draws = report.protocol.get("bootstrap_draws")
    lines.append(
        f"Intervals are 95 %, from {draws} resamples of users; they hold the sampling of users, not of training "
        "seeds, and are not corrected for the number of comparisons."
    )
    return lines


def _against_bar(report: EvalReport, bar: str) -> str:
    outcome: dict[str, list[str]] = {"higher": [], "not separated": [], "lower": []}
    for name in report.systems:
        difference = _difference(report, name, bar, "constrained", _BAR_METRIC)
        if difference is not None:
            outcome[verdict(difference)].append(name)
    words = {"higher": "above it", "not separated": "not separated from it", "lower": "below it"}
    said = [f"{words[word]}: {', '.join(names)}" for word, names in outcome.items() if names]
    return f"Against {bar} on {_BAR_METRIC}, constrained: {'; '.join(said)}." if said else ""


def _against(report: EvalReport, policy: str, reference: str, decoding: str) -> str:
    outcome: dict[str, list[str]] = {"higher": [], "lower": [], "not separated": []}
    metrics = _ALIGNED_METRICS + (("HaR@10",) if decoding == "unconstrained" else ())
    for metric in metrics:
        difference = _difference(report, policy, reference, decoding, metric)
        if difference is not None:
            word = verdict(difference)
            bounds = (difference.mean, difference.low, difference.high)
            size = "" if word == "not separated" else " ({}, {} to {})".format(*map(_signed, bounds))
            outcome[word].append(metric + size)
    words = {"higher": "above", "lower": "below", "not separated": "not separated"}
    said = [f"{words[word]} on {', '.join(names)}" for word, names in outcome.items() if names]
    return f"{policy} against {reference}, {decoding}: {'; '.join(said)}." if said else ""


def _of_history(report: EvalReport) -> list[str]:
    """Say where answers are wasted on what users have taken already, or where leaving it out costs positives."""
    again = float(report.protocol.get(POSITIVES_SEEN, 0))
    if report.protocol.get(EXCLUDE_SEEN) == "true":
        hidden = f"{again:.1%} of positives were taken before, and exclude_seen hides them; set it to false."
        return [hidden] if again >= _RARELY else []
    found = {name: of["constrained"].get("seen@10") for name, of in report.systems.items() if "constrained" in of}
    wasteful = [f"{name} {share.mean:.0%}" for name, share in found.items() if share and share.mean >= _OFTEN]
    if again >= _RARELY or not wasteful:
        return []
    return [
        f"Of the first ten, so many are items that the user has taken: {', '.join(wasteful)}; of the positives "
        f"{again:.1%} are. Set exclude_seen: true."
    ]


def _narrowing(report: EvalReport, policy: str, reference: str) -> list[str]:
    now, before = (report.systems[name].get("constrained", {}).get("distinct@1") for name in (policy, reference))
    if now is None or before is None or now.mean >= _NARROWED * before.mean:
        return []
    return [
        f"{policy} puts {now.mean:.0f} different items first where {reference} puts {before.mean:.0f}: "
        "its lists have narrowed, as happens when a reward is hacked."
    ]


def _difference(report: EvalReport, a: str, b: str, decoding: str, metric: str) -> Interval | None:
    """Return a - b, from whichever of the two orders was compared."""
    found = report.paired.get(f"{a}{PAIR}{b}", {}).get(decoding, {}).get(metric)
    if found is not None:
        return found
    other = report.paired.get(f"{b}{PAIR}{a}", {}).get(decoding, {}).get(metric)
    return None if other is None else Interval(-other.mean, -other.high, -other.low)


class Samples:
    """A few users' recommendations by title, for reading beside the numbers."""

    def __init__(
        self, examples: Sequence[Example], *, titles: Sequence[str], n_users: int = 2, k: int = 5, seed: int
    ) -> None:
        order = np.random.default_rng(seed).permutation(len(examples))[:n_users]
        self._chosen = sorted(int(p) for p in order)
        self._titles, self._k = titles, k
        self._blocks = [[self._heading(examples[p])] for p in self._chosen]
        self._positives = [set(examples[p].positives.tolist()) for p in self._chosen]

    def write(self, answers: Predictions) -> None:
        """Keep one system's first k recommendations for the chosen users."""
        for p, block, positives in zip(self._chosen, self._blocks, self._positives, strict=True):
            block.append(f"  {answers.system}, {answers.decoding}")
            top = zip(answers.rows_PK[p, : self._k].tolist(), answers.sids_PKL[p, : self._k].tolist(), strict=True)
            for rank, (row, sid) in enumerate(top, start=1):
                mark = "  HIT" if row in positives else ""
                name = f"{self._titles[row]}{mark}" if row != NO_ITEM else f"INVALID, no item has SID {_dashed(sid)}"
                block.append(f"    {rank}. {name}")

    def text(self) -> str:
        """Return one block of plain text per user."""
        return "\n\n".join("\n".join(block) for block in self._blocks)

    def _heading(self, example: Example) -> str:
        history = [self._titles[row] for row in example.context.history[-self._k :]]
        page = [self._titles[row] for row in example.positives]
        return (
            f"user {example.context.user_id}\n  last clicked or ordered: {'; '.join(history)}\n"
            f"  then clicked or ordered: {'; '.join(page)}"
        )


def _dashed(sid: Sequence[int]) -> str:
    return "-".join("?" if code < 0 else str(code) for code in sid)
