"""What do LazyAR and growing beam widths cost in accuracy, and save in time, on trained policies?

    python benchmarks/lazy_trained.py --seeds 0 --input ../shared/data

Reads   Amazon Beauty's pages and the UA-SIDs of gr4ad.py, which it makes where they are missing.
Writes  runs/gr4ad/beauty/: two policies of equal depth, one of them LazyAR, and what four ways of asking them for 512
        items answered, a folder each, done once; benchmarks/results/lazy_trained.{json,md}.
Watch   the bar. A run that was killed goes on where it was; ``--report true`` times, and writes what is done.

``plain`` is the whole depth with 512 beams on each level, ``narrow`` has a quarter and a half of them on the first
levels. Accuracy is that of all test pages; time that of some of them, on one thread, the four ways in turn.
lazy_ar.py has the ratios at GR4AD's own depth and at a million items, with random weights.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from benchmarks import gr4ad
from benchmarks.gr4ad_rows import SFT, PolicySpec
from benchmarks.harness import parse
from benchmarks.paper_tables import RESULTS
from benchmarks.tables.cells import Cell, work_off
from benchmarks.tables.measure import Columns, Requests, pair, read_columns, summarise, write_columns
from benchmarks.tables.report import as_result, differences, number, pair_title
from genrec_rl.data.store import load_dataset
from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.serving.load import level_widths
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.evaluate import Plan, measure_requests, predict
from genrec_rl.evaluation.policies import BeamOptions, load_recommender
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import console, run_recipe

BEAMS = 512
DEEP = (*SFT, "--num_layers", "6")
POLICIES = MappingProxyType({"plain": PolicySpec(DEEP), "lazy": PolicySpec((*DEEP, "--lazy_layers", "4"))})
FULL, NARROW = level_widths(BEAMS, 3, growing=False), level_widths(BEAMS, 3)
WAYS = MappingProxyType(
    {
        "plain": ("plain", FULL),
        "plain_narrow": ("plain", NARROW),
        "lazy": ("lazy", FULL),
        "lazy_narrow": ("lazy", NARROW),
    }
)
GOALS = MappingProxyType({"plain_narrow": 1.4, "lazy": 1.5, "lazy_narrow": 2.0})
"""Times faster than ``plain``, at least."""
MAX_LOSS = 0.02
"""Of NDCG@10, relative to ``plain``."""
SHOWN = ("NDCG@10", "HR@10", "HR@50")


@dataclass
class Settings:
    """Which seeds, and how much is timed."""

    input: str = field(default="../shared/data", metadata={"help": "folder that holds Beauty"})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "of training"})
    timed_requests: int = field(default=16, metadata={"help": "test requests that are timed"})
    rounds: int = field(default=9, metadata={"help": "times each way is timed, in turn"})
    report: bool = field(default=False, metadata={"help": "train nothing: time, and write what is done"})


def main() -> None:
    settings = parse(Settings)
    if settings.rounds < 1:
        raise ConfigError(f"rounds {settings.rounds} must be at least 1, and 9 for a median worth telling")
    if not settings.report:
        work_off([cell for seed in settings.seeds for cell in cells_of(settings, seed).values()])
    report(settings)


def cells_of(settings: Settings, seed: int) -> dict[str, Cell]:
    """Return a seed's cells in the order of the work: gr4ad.py's data and SIDs, two policies, four ways."""
    of_gr4ad = gr4ad.Settings(data="beauty", input=settings.input, seeds=[seed])
    made = gr4ad.cells_of(of_gr4ad, seed)
    cells = {name: made[name] for name in ("data", "sids_ua")}
    for name, spec in POLICIES.items():
        config = gr4ad.config_of(of_gr4ad, spec).read_text()
        facts = {"sids": made["sids_ua"].key, "arguments": spec.arguments, "config": config}
        facts |= {"script": spec.script, "recipe": gr4ad.recipe_yaml(spec.script)}
        run = partial(gr4ad.train, of_gr4ad, spec, seed)
        folder, needs = folder_of(f"deep_{name}", seed), (made["sids_ua"].folder,)
        cells[f"policy_{name}"] = Cell(f"{name}, seed {seed}", folder, facts, run, 25.0, needs)
    for way, (name, widths) in WAYS.items():
        facts = {"policy": cells[f"policy_{name}"].key, "widths": widths}
        run = partial(answer, way, seed)
        needs = (cells[f"policy_{name}"].folder,)
        cells[way] = Cell(f"{way}, seed {seed}", folder_of(f"asked_{way}", seed), facts, run, 20.0, needs)
    return cells


def folder_of(name: str, seed: int) -> Path:
    return gr4ad.RUNS / "beauty" / name / f"seed{seed}"


def answer(way: str, seed: int, folder: Path) -> None:
    """Ask for every test page, and keep one number a page and metric."""
    dataset = load_dataset(gr4ad.RUNS / "beauty" / "data")
    examples = dataset.examples("test", max_history=None)
    recommender = asked(way, seed)
    plan = Plan(ks=(10, 50), beams=BEAMS, draws=1)
    given = predict(gr4ad.UpTo(recommender), examples, name=way, decoding="constrained", plan=plan, scorers={})
    columns = measure_requests(
        given, examples, catalog=recommender.catalog, popularity=dataset.popularity, ks=(10, 50)
    )
    kept = {name: columns[name] for name in (*SHOWN, "Recall@10")}
    write_columns(folder, kept)


def asked(way: str, seed: int) -> BeamRecommender:
    """Return a way's policy and widths."""
    name, widths = WAYS[way]
    return load_recommender(
        folder_of(f"deep_{name}", seed) / "policy",
        catalog=Catalog.load(gr4ad.RUNS / "beauty" / "sids_ua"),
        options=BeamOptions(batch_size=16, beam_widths=widths),
    )


def report(settings: Settings) -> None:
    """Time the first seed's policies, and write both tables."""
    columns: dict[str, dict[int, Columns]] = {}
    for seed in settings.seeds:
        cells = cells_of(settings, seed)
        for way in [way for way in WAYS if cells[way].record() is not None]:
            columns.setdefault(way, {})[seed] = read_columns(cells[way].folder)
    seeds = [seed for seed in settings.seeds if all(seed in columns.get(way, {}) for way in WAYS)]
    if not seeds:
        console.print("no seed of which all four ways are done yet")
        return
    columns = {way: {seed: columns[way][seed] for seed in seeds} for way in WAYS}
    examples = load_dataset(gr4ad.RUNS / "beauty" / "data").examples("test", max_history=None)
    requests = Requests.of(examples)
    contexts = [example.context for example in examples[: settings.timed_requests]]
    seconds = time_in_turn({way: asked(way, seeds[0]) for way in WAYS}, contexts, rounds=settings.rounds)
    systems = {
        way: {metric: [summarise(of_seed, requests)[metric] for of_seed in of_way.values()] for metric in SHOWN}
        | {"ms_per_request": [1000 * float(np.median(seconds[way])) / len(contexts)]}
        for way, of_way in columns.items()
    }
    result = as_result(systems, pair(columns, [(way, "plain") for way in GOALS], requests), seeds=seeds)
    result["goals"] = {way: goal_of(way, result) for way in GOALS}
    file = RESULTS / "lazy_trained.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    file.with_suffix(".md").write_text(as_markdown(result))
    console.print(f"{file}, {file.with_suffix('.md')}")


def time_in_turn(
    recommenders: Mapping[str, BeamRecommender], contexts: Sequence[Any], *, rounds: int
) -> dict[str, list[float]]:
    """Return the CPU seconds of one thread that each way took, round by round, behind one round to warm up."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {way: [] for way in recommenders}
    for recommender in recommenders.values():
        recommender.policy.model.to("cpu")
    for _ in range(rounds + 1):
        for way, recommender in recommenders.items():
            begun = time.process_time()
            recommender.propose(contexts, widths=WAYS[way][1], constrained=True)
            seconds[way].append(time.process_time() - begun)
    torch.set_num_threads(n_threads)
    return {way: of_way[1:] for way, of_way in seconds.items()}


def goal_of(way: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return how much faster a way is than ``plain``, and what it loses, against what was asked."""
    own, plain = result["systems"][way], result["systems"]["plain"]
    faster = plain["ms_per_request"][0] / own["ms_per_request"][0]
    lost = 1 - float(np.mean(own["NDCG@10"])) / float(np.mean(plain["NDCG@10"]))
    is_met = faster >= GOALS[way] and lost <= MAX_LOSS
    return {"times_faster": faster, "must": GOALS[way], "lost": lost, "may_lose": MAX_LOSS, "met": is_met}


def as_markdown(result: Mapping[str, Any]) -> str:
    """Write the four ways, what each saves and costs, and the differences on the same users."""
    header = ["", *SHOWN, "ms a request", "times faster", "asked", "NDCG@10 lost"]
    lines = [
        f"Written by `{result['command']}`, commit {result['commit'][:10]}.",
        "",
        "Amazon Beauty, pages, UA-SIDs, 6 layers of 128, 4 of them lazy; 512 items a request, one thread.",
        "",
        f"| {' | '.join(header)} |",
        "|---" * len(header) + "|",
    ]
    for way, row in result["systems"].items():
        goal = result["goals"].get(way)
        told = [number(float(np.mean(row[metric]))) for metric in SHOWN] + [f"{row['ms_per_request'][0]:.1f}"]
        of_goal = [f"{goal['times_faster']:.2f}", str(goal["must"]), f"{goal['lost']:+.1%}"] if goal else [""] * 3
        lines.append(f"| **{way}** | {' | '.join([*told, *of_goal])} |")
    lines += ["", "Differences on the same users, 95 % intervals over users:", ""]
    lines += [f"- {pair_title(key)}: {differences(of, SHOWN)}" for key, of in result["paired"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_recipe(main)
