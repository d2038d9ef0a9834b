"""Keep the demo's result: copy what `make demo` measured, with where and by what, and put its table into README.

    make demo && python benchmarks/demo_table.py

Reads   runs/demo/eval/{eval.json,table.md} and the stages' records; and runs/demo/eval_rl, where the commands of
        README's "What RL gains" have run.
Writes  benchmarks/results/demo_movielens.{json,md}, and demo_listwise_kl.{json,md}; the part of README.md between its
        demo-table markers.
"""

import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.written import README, fill_part
from genrec_rl.tracking import STAGE_FILE, check_made_from, console, require_stage, run_recipe

RUNS = Path("runs/demo")
RESULTS = Path("benchmarks/results")
STAGES = ("data", "sids", "sft", "reward", "grpo", "grpo_sr", "eval")
OF_LISTWISE_KL = ("xgb", "listwise_kl", "eval_rl")
KEPT = ("Constrained decoding", "Unconstrained decoding", "What this says")


def main() -> None:
    for stage in STAGES:
        require_stage(RUNS / stage, stage=stage, command="make demo #")
    check_made_from(RUNS / "eval", beside("data", "sids", "sft", "grpo", "grpo_sr"), command="make demo #")
    fill_part(README, "demo-table", for_readme(keep("demo_movielens", STAGES, command="make demo")))
    if (RUNS / OF_LISTWISE_KL[-1] / STAGE_FILE).is_file():
        made_from = beside("data", "sids", "sft", "listwise_kl")
        check_made_from(RUNS / OF_LISTWISE_KL[-1], made_from, command="python recipes/evaluate.py")
        keep("demo_listwise_kl", OF_LISTWISE_KL, command="README, What RL gains")


def beside(*names: str) -> dict[str, Path]:
    """Return the stages' folders by the names under which an evaluation read them."""
    return {name: RUNS / name for name in names}


def keep(name: str, stages: Sequence[str], *, command: str) -> str:
    """Copy what the last of some stages measured, with how long each took, and return its table."""
    records = {stage: json.loads((RUNS / stage / STAGE_FILE).read_text()) for stage in stages}
    folder, last = RUNS / stages[-1], records[stages[-1]]
    result = {
        "command": command,
        "commit": last["commit"],
        "versions": last["versions"],
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, no GPU",
        "seconds": {stage: record["seconds"] for stage, record in records.items()},
        **json.loads((folder / "eval.json").read_text()),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    table = (folder / "table.md").read_text()
    (RESULTS / f"{name}.md").write_text(table)
    console.print(f"{RESULTS}/{name}.json and .md hold what commit {last['commit']} measured")
    return table


def for_readme(table: str) -> str:
    """Keep the figures and what they say; the paired differences, the protocol and the titles stay in the file."""
    sections = [part for part in re.split(r"^## ", table, flags=re.MULTILINE) if part.startswith(KEPT)]
    text = "\n\n".join(f"### {part.strip()}" for part in sections)
    return f"{text}\n\nDifferences on the same users, protocol and titles: `{RESULTS}/demo_movielens.md`."


if __name__ == "__main__":
    run_recipe(main)
