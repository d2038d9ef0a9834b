"""Keep the demo's result: copy what `make demo` measured, with where and by what, and put its table into README.

    make demo && python benchmarks/demo_table.py

Reads   runs/demo/eval/{eval.json,table.md} and the stages' records.
Writes  benchmarks/results/demo_movielens.{json,md}; the part of README.md between its demo-table markers.
"""

import json
import os
import platform
import re
from pathlib import Path

from benchmarks.written import README, fill_part
from genrec_rl.tracking import STAGE_FILE, console, require_stage, run_recipe

RUNS = Path("runs/demo")
RESULTS = Path("benchmarks/results")
STAGES = ("data", "sids", "sft", "reward", "grpo", "grpo_sr", "eval")
KEPT = ("Constrained decoding", "Unconstrained decoding", "What this says")


def main() -> None:
    for stage in STAGES:
        require_stage(RUNS / stage, stage=stage, command="make demo #")
    records = {stage: json.loads((RUNS / stage / STAGE_FILE).read_text()) for stage in STAGES}
    measured = json.loads((RUNS / "eval" / "eval.json").read_text())
    result = {
        "command": "make demo",
        "commit": records["eval"]["commit"],
        "versions": records["eval"]["versions"],
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, no GPU",
        "seconds": {stage: record["seconds"] for stage, record in records.items()},
        **measured,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "demo_movielens.json").write_text(json.dumps(result, indent=2) + "\n")
    table = (RUNS / "eval" / "table.md").read_text()
    (RESULTS / "demo_movielens.md").write_text(table)
    fill_part(README, "demo-table", for_readme(table))
    console.print(f"{RESULTS}/demo_movielens.json, .md and README.md hold the demo of commit {result['commit']}")


def for_readme(table: str) -> str:
    """Keep the figures and what they say; the paired differences, the protocol and the titles stay in the file."""
    sections = [part for part in re.split(r"^## ", table, flags=re.MULTILINE) if part.startswith(KEPT)]
    text = "\n\n".join(f"### {part.strip()}" for part in sections)
    return f"{text}\n\nDifferences on the same users, protocol and titles: `{RESULTS}/demo_movielens.md`."


if __name__ == "__main__":
    run_recipe(main)
