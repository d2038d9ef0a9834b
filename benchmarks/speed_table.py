"""Put the measured speeds into benchmarks/README.md: every goal of every benchmark, as its results file holds it.

    make bench       (runs the eight benchmarks, then this)

Reads   benchmarks/results/{beam_search,grpo_step,sft_step,token_merger,reward_scoring,semantic_ids,trie,lazy_ar}
        .json.
Writes  the part of benchmarks/README.md between its speed-table markers.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.written import MEASURED, fill_part
from genrec_rl.errors import DataError
from genrec_rl.tracking import console, run_recipe

RESULTS = Path("benchmarks/results")
BENCHMARKS = (
    "beam_search",
    "grpo_step",
    "sft_step",
    "token_merger",
    "reward_scoring",
    "trie",
    "semantic_ids",
    "lazy_ar",
)


def main() -> None:
    rows = [row for name in BENCHMARKS for row in table_rows(name, read_result(name))]
    fill_part(MEASURED, "speed-table", "\n".join(["| | measured | goal | |", "|---|---|---|---|", *rows]))
    console.print(f"{MEASURED} holds {len(rows)} measured goals of {len(BENCHMARKS)} benchmarks")


def read_result(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; write it with `python benchmarks/{name}.py --json {path}`")
    result = json.loads(path.read_text())
    if not all(check["holds"] for check in result["checks"]):
        raise DataError(f"{path}: results differ from the baseline's (see its checks); its ratios mean nothing")
    return result


def table_rows(name: str, result: dict[str, Any]) -> list[str]:
    """Write one row a goal; the first of a benchmark links its results file."""
    rows = []
    for number, goal in enumerate(result["goals"]):
        source = f"[{name}](results/{name}.json), {result['commit']}" if number == 0 else ""
        sign = "at most" if goal["at_most"] else "at least"
        aim = "" if goal["aim"] is None else f" (aim {goal['aim']:g})"
        met = "" if goal["met"] else " **missed**"
        value = f"{goal['value']:,.0f}" if goal["value"] >= 1000 else f"{goal['value']:.4g}"
        rows.append(f"| {goal['goal']} | {value}{met} | {sign} {goal['must']:,.6g}{aim} | {source} |")
    return rows


if __name__ == "__main__":
    run_recipe(main)
