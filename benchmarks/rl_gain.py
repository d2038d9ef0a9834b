"""What RL gains over SFT, against the controls that most papers lack (the paper's Table 3 on public data).

    python benchmarks/rl_gain.py --data movielens --seeds 0 1 2
    python benchmarks/rl_gain.py --data beauty --protocol loo --sids ours --input ../shared/data
    python benchmarks/rl_gain.py --data movielens --exclude_seen true
    python benchmarks/rl_gain.py --data movielens --seeds 0 --arms tried
    python benchmarks/rl_gain.py --data synthetic --seeds 0
    python benchmarks/rl_gain.py --data beauty --protocol loo --sids letter --length long --arms listwise_kl_per_mass

Reads   the data and the SFT policies of ``paper_tables.py``, which it makes where they are missing.
Writes  runs/rl/<data>/<protocol>/<sids>/<policy>/: reward models, every arm's policy and answers, a folder each, done
        once; benchmarks/results/rl_<data>.{json,md} and a picture: what each arm gained, and curves over the steps.
        What is not the default stands in the file's name: rl_beauty_loo_letter.json.
Watch   the bar. A run that was killed goes on where it was; ``--report true`` only writes what is done so far.

The reward of most arms is XGBoost on the SFT policy's own proposals to training requests. ``gold`` is SIM: another
architecture, trained on the log alone, of the same users. On the synthetic market the two change places, since it has
true exposures; ``true`` is known of it only: the probability that the user clicks what is shown, by the click model
that made the log. The last step of every arm is kept; test is opened for the table.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import paper_tables
from benchmarks.harness import parse
from benchmarks.rl.arms import (
    ARMS,
    GAINS,
    LONG,
    NO_GOLD,
    OF_LISTS,
    PAIRS,
    SHOWN,
    SIGNS,
    STRATA,
    TRIED,
    USUAL,
    WHERE_KNOWN,
    held_out_by,
)
from benchmarks.rl.cells import Settings, config_file, logged, seed_cells
from benchmarks.rl.pictures import CURVES, Logged, draw
from benchmarks.tables.cells import Cell, work_off
from benchmarks.tables.measure import Columns, Requests, pair, read_columns, shared_seeds, summarise
from benchmarks.tables.report import as_dict, as_result, cell, difference, differences, number, pair_title
from genrec_rl.config import nearest
from genrec_rl.data.store import load_dataset
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.evaluate import PAIR
from genrec_rl.tracking import console, run_recipe


def main() -> None:
    settings = parse(Settings)
    known = [*ARMS, "tried"]
    for name in settings.arms:
        if name not in known:
            raise ConfigError(f"no arm '{name}' among {', '.join(known)}{nearest(name, known)}")
    if settings.report and settings.arms:
        raise ConfigError(
            f"--report writes every arm that is done, not {', '.join(settings.arms)} alone; leave one out"
        )
    if not settings.report:
        work_off([cell for seed in settings.seeds for cell in chosen_cells(settings, seed)], jobs=settings.jobs)
    report(settings)


def chosen_cells(settings: Settings, seed: int) -> list[Cell]:
    """Return what is asked for, each arm behind those that it goes on from.

    Raises:
        ConfigError: for an arm that the data have no use for.
    """
    cells = seed_cells(settings, seed)
    names = settings.arms or (LONG if settings.length == "long" else USUAL)
    if "tried" in names:
        names = [name for name in [*names, *TRIED] if name in cells.arms]
    chosen: dict[str, Cell] = {}
    for name in names:
        if name not in cells.arms:
            samples = ARMS[name].draws_samples
            why = "samples are drawn of all items" if samples else "its reward learns from no proposals"
            raise ConfigError(f"arm {name} is none of {settings.data}'s: {why}; leave it out")
        line = [name]
        while after := ARMS[line[0]].after:
            line.insert(0, after)
        chosen |= {arm: cells.arms[arm] for arm in line}
    return [*cells.sft, cells.reward, cells.gold, *chosen.values()]


def report(settings: Settings) -> None:
    """Write the table of all arms that are done with these data, SIDs and policy."""
    columns: dict[str, dict[int, Columns]] = {}
    of_lists: dict[str, list[dict[str, float]]] = {}
    done: dict[str, dict[int, Path]] = {}
    for seed in settings.seeds:
        cells = seed_cells(settings, seed)
        for name, made in cells.arms.items():
            if made.record() is not None:
                columns.setdefault(name, {})[seed] = judged_by_others(name, read_columns(made.folder))
                of_lists.setdefault(name, []).append(json.loads((made.folder / "lists.json").read_text()))
                done.setdefault(name, {})[seed] = made.folder
    if not columns:
        console.print("nothing is done yet")
        return
    dataset = load_dataset(cells.sft[0].folder)
    requests = Requests.of(dataset.examples("test", max_history=None), is_held_out=held_out_by(config_file(settings)))
    means = {name: [summarise(seed, requests) for seed in seeds.values()] for name, seeds in columns.items()}
    systems = {
        name: {metric: [seed[metric] for seed in seeds] for metric in of_all(seeds)}
        | {metric: [seed[metric] for seed in of_lists[name]] for metric in OF_LISTS if metric in of_lists[name][0]}
        for name, seeds in means.items()
    }
    found = pair(columns, [p for p in PAIRS if set(p) <= set(columns)], requests)
    result = as_result(systems, found, seeds=settings.seeds)
    result["paired_by_seed"] = pair_by_seed(columns, requests)
    result["paired_seeds"] = {f"{a}{PAIR}{b}": len(shared_seeds(columns, a, b)) for a, b in PAIRS
                              if {a, b} <= set(columns)}  # fmt: skip
    file = paper_tables.RESULTS / f"rl_{'_'.join([settings.data, *unusual(settings)])}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    file.with_suffix(".md").write_text(as_markdown(result))
    draw(
        result,
        read_curves(done, watched="true" if settings.data == "synthetic" else "gold"),
        file.with_suffix(".png"),
        title=", ".join([settings.data, settings.protocol, *(["seen items excluded"] * settings.exclude_seen)]),
    )
    console.print(f"{file}, {file.with_suffix('.md')}: {len(systems)} arms")


def of_all(seeds: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the metrics that every seed has: cells made before a metric was measured lack it."""
    return [metric for metric in seeds[0] if all(metric in seed for seed in seeds)]


def judged_by_others(name: str, columns: Columns) -> Columns:
    """Return an arm's columns, without gold's where the gold model taught it."""
    return {metric: x for metric, x in columns.items() if not (name in NO_GOLD and metric.startswith("gold"))}


def pair_by_seed(
    columns: Mapping[str, Mapping[int, Columns]], requests: Requests
) -> dict[str, dict[str, dict[str, float]]]:
    """Return NDCG@10's difference of each seed that both have, of the pairs that say whether RL gained."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for a, b in [names for names in GAINS if set(names) <= set(columns)]:
        key = f"{a}{PAIR}{b}"
        for seed, _ in shared_seeds(columns, a, b):
            of_seed = pair({name: {seed: columns[name][seed]} for name in (a, b)}, [(a, b)], requests)[key]
            found.setdefault(key, {})[str(seed)] = as_dict(of_seed["NDCG@10"])
    return found


def unusual(settings: Settings) -> list[str]:
    """Return what of protocol, SIDs and policy is not the default, so that other tables have other files."""
    usual = Settings()
    names = [getattr(settings, name) for name in ("protocol", "sids", "policy", "length")
             if getattr(settings, name) != getattr(usual, name)]  # fmt: skip
    return [*names, *(["unseen"] if settings.exclude_seen else [])]


def as_markdown(result: Mapping[str, Any]) -> str:
    """Write the arms, the paper's rows, and the differences on the same users."""
    rows = result["systems"].values()
    of_requests = [*SHOWN, *(name for name in WHERE_KNOWN if any(name in row for row in rows))]
    shown = [*of_requests, *OF_LISTS]
    lines = [f"Written by `{result['command']}`, commit {result['commit'][:10]}.", ""]
    lines += ["| | seeds | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for name, arm in ARMS.items():
        if name in result["systems"]:
            row = result["systems"][name]
            cells = [cell(row.get(metric)) for metric in shown]
            lines.append(f"| **{name}**, {arm.title} | {len(row['NDCG@10'])} | {' | '.join(cells)} |")
        if arm.paper is not None:
            published = dict(zip(("HR@50", "R@1", "HaR@10"), arm.paper, strict=True))
            cells = [number(published[metric]) if metric in published else "" for metric in shown]
            lines.append(f"| *{arm.title}, the paper's Table 3 (its own data)* | | {' | '.join(cells)} |")
    if set(NO_GOLD) & set(result["systems"]):
        lines += ["", "Arms that the gold model taught have no gold: it cannot judge them."]
    lines += ["", "Differences on the same users, 95 % intervals over users:", ""]
    for key, row in result["paired"].items():
        seeds = result["paired_seeds"][key]
        lines.append(f"- {pair_title(key)} ({seeds} seed{'s' * (seeds > 1)}): {differences(row, of_requests)}")
    lines += ["", "NDCG@10 of each seed:", ""]
    for key, seeds in result["paired_by_seed"].items():
        lines.append(f"- {pair_title(key)}: {'; '.join(f'{seed}: {difference(x)}' for seed, x in seeds.items())}")
    lines += ["", "NDCG@10 by stratum: the newest item is of the request's own day or of an earlier one; the user's "
              "validation request was an unlabelled prompt or (held out) was not:", ""]  # fmt: skip
    for key in [key for key in result["paired_by_seed"] if key in result["paired"]]:
        of = {name: result["paired"][key].get(f"NDCG@10/{name}") for name in STRATA}
        lines.append(f"- {pair_title(key)}: {'; '.join(f'{n} {difference(x)}' for n, x in of.items() if x)}")
    lines += ["", "Signs of the paper's Table 3, and what was found:", ""]
    for (a, b), metric, sign in SIGNS:
        row = result["paired"].get(f"{a}{PAIR}{b}", {})
        if metric in row:
            lines.append(f"- {a} - {b}, {metric}: the paper {sign}, here {difference(row[metric])}")
    return "\n".join(lines) + "\n"


def read_curves(done: Mapping[str, Mapping[int, Path]], *, watched: str) -> dict[str, dict[str, Logged]]:
    """Return what the trained arms logged, by metric and arm, of the lowest seed of all.

    What recipes log as gold is named by the judge that was ``watched``: gold, or on the market the truth.
    Arms that were tried are left out: there are many, and other rewards have other scales. So is what SFT continued
    logs of its rollouts, since its prompts are others (all labelled).
    """
    first = min(seed for folders in done.values() for seed in folders)
    trained = {name: of[first] for name, of in done.items() if first in of and ARMS[name].arguments is not None
               and name not in TRIED}  # fmt: skip
    curves = {metric: {name: logged(folder, metric) for name, folder in trained.items()} for metric in CURVES}
    curves[f"eval/{watched}_mean@10"] = curves.pop("eval/gold_mean@10")
    for metric in curves:
        if metric.startswith("train/"):
            curves[metric].pop("sft_continued", None)
    return curves


if __name__ == "__main__":
    run_recipe(main)
