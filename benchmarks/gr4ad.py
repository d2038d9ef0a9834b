"""What does each part of GR4AD add? The paper's ablation (METHODS 1.7) on public data, in its order.

    python benchmarks/gr4ad.py --data synthetic --seeds 0 1 2
    python benchmarks/gr4ad.py --data beauty --seeds 0 --input ../shared/data

Reads   a simulated market whose items have copies by several sellers, or Amazon Beauty's pages.
Writes  runs/gr4ad/<data>/: data, catalogues, policies, the reward model and what each row answered, a folder each,
        done once; benchmarks/results/gr4ad.{json,md}, of all that is done on both.
Watch   the bar. A run that was killed goes on where it was; ``--report true`` only writes what is done so far.

Value is price times order on the market, and 1 an order on Beauty, where value@10 is therefore Recall@10. The paper
trains online on eCPM; here the reward is that of trees on the VSL policy's proposals (LazyAR's too), on the market
times what the item brings when it is taken. Accuracy is that of 64 beams; speed that of one thread at 512, in CPU
seconds. Beauty's alignments also read validation requests without their labels, and keep their last step; the
market's are chosen on validation.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.gr4ad_rows import PAIRS, POLICIES, ROWS, SHOWN, Aligned, PolicySpec, Row
from benchmarks.harness import parse
from benchmarks.paper_tables import RESULTS, run_script
from benchmarks.rl.arms import held_out_by
from benchmarks.tables.cells import Cell, work_off
from benchmarks.tables.measure import Columns, Requests, pair, read_columns, summarise, write_columns
from benchmarks.tables.report import as_dict, as_result, cell, difference, differences, pair_title
from benchmarks.tables.systems import TREES
from genrec_rl.data.store import Dataset, load_dataset
from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.serving.load import level_widths
from genrec_rl.evaluation.evaluate import PAIR, Plan, measure_requests, predict
from genrec_rl.evaluation.policies import BeamOptions, load_recommender
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import console, run_recipe
from genrec_rl.types import NO_ITEM, Context, Interval, Rollouts

RUNS, HERE = Path("runs/gr4ad"), Path(__file__).parent
MARKET = ("--n_users", "800", "--n_items", "1200", "--n_requests", "8000", "--copies", "4")
BOOKS = {
    "synthetic": ("--codebook_sizes", "64", "32", "16"),
    "beauty": ("--multi_resolution", "true"),
}
"""Falling sizes; those of the market are scaled to its 300 contents, since 256 first codes halve NDCG@10 (LOG.md)."""
UA_SID = ("--balanced", "true", "--last_level", "hash", "--hash_fields")
HASHED = {"synthetic": ("seller", "campaign"), "beauty": ("item_id",)}
REWARD_WORDS = {"synthetic": ("--objective", "rank:ndcg"), "beauty": TREES}
"""Of recipes/train_xgb.py."""
PRICED = ("synthetic",)
"""Where items differ in what they bring, so that the reward is an expected value."""
PREFIXES = {"synthetic": "", "beauty": "beauty:"}
"""Of the metrics in the one result file."""
TITLES = {"synthetic": "Simulated market", "beauty": "Amazon Beauty, pages"}
MINUTES = {"synthetic": 2.0, "beauty": 15.0}
BEAMS, FAST_BEAMS = 64, 512
"""Of accuracy, and of speed."""
TIMED = "speed_"
"""Begins the names of cells that nothing may run beside."""


@dataclass
class Settings:
    """Which data, and how much of the table."""

    data: Literal["synthetic", "beauty"] = field(default="synthetic", metadata={"help": "synthetic | beauty"})
    input: str = field(default="../shared/data", metadata={"help": "folder that holds Beauty"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of everything trained"})
    timed_requests: int = field(default=32, metadata={"help": "test requests that are timed at 512 beams"})
    jobs: int = field(default=1, metadata={"help": "cells at a time; speed is timed with nothing beside it"})
    report: bool = field(default=False, metadata={"help": "train nothing: write the table of what is done"})


def main() -> None:
    settings = parse(Settings)
    if not settings.report:
        cells = [item for seed in settings.seeds for item in cells_of(settings, seed).items()]
        work_off([cell for name, cell in cells if not name.startswith(TIMED)], jobs=settings.jobs)
        work_off([cell for name, cell in cells if name.startswith(TIMED)])
    report(settings)


def cells_of(settings: Settings, seed: int) -> dict[str, Cell]:
    """Return all cells of a seed, in the order of the work; data and catalogues are those of every seed."""
    root, minutes = RUNS / settings.data, MINUTES[settings.data]
    facts: dict[str, Any] = {
        "data": settings.data,
        "market": MARKET if settings.data == "synthetic" else (),
    }
    cells = {"data": Cell("data", root / "data", facts, partial(prepare, settings), 0.2)}
    for kind in ("plain", "ua"):
        folder, words = root / f"sids_{kind}", sid_words(settings, kind)
        run = partial(build_sids, settings, words)
        made_with = facts | {"words": words, "recipe": recipe_yaml("recipes/build_sids.py")}
        needs = (cells["data"].folder,)
        cells[f"sids_{kind}"] = Cell(f"{kind} SIDs", folder, made_with, run, minutes / 2, needs)

    def seeded(name: str, facts: dict[str, Any], run: Any, minutes: float, *needs: str) -> None:
        folder, of = root / name / f"seed{seed}", tuple(cells[x].folder for x in needs)
        cells[name] = Cell(f"{name}, seed {seed}", folder, facts, run, minutes, of)

    for name, spec in POLICIES.items():
        if isinstance(spec, Aligned) and "reward" not in cells:
            made_with = {"policy": cells[f"policy_{spec.start}"].key, "words": REWARD_WORDS[settings.data]}
            made_with |= {"priced": settings.data in PRICED, "recipe": recipe_yaml("recipes/train_xgb.py")}
            run = partial(train_reward, settings, spec, seed)
            seeded("reward", made_with, run, minutes / 2, f"policy_{spec.start}")
        made_with = {"sids": cells[f"sids_{spec.sids}"].key, "arguments": spec.arguments, "script": spec.script}
        made_with |= {"config": config_of(settings, spec).read_text(), "recipe": recipe_yaml(spec.script)}
        needs = (f"sids_{spec.sids}",)
        if isinstance(spec, Aligned):
            made_with |= {"start": cells[f"policy_{spec.start}"].key, "reward": cells["reward"].key}
            needs = (f"policy_{spec.start}", "reward")
        seeded(f"policy_{name}", made_with, partial(train, settings, spec, seed), minutes, *needs)
    for row in ROWS:
        policy = f"policy_{row.policy}"
        made_with = {"policy": cells[policy].key, "grows": row.grows}
        run = partial(answer, settings, row, seed)
        seeded(row.name, made_with | {"beams": BEAMS}, run, minutes / 4, policy)
        made_with |= {"beams": FAST_BEAMS, "n": settings.timed_requests}
        seeded(f"{TIMED}{row.name}", made_with, partial(time_row, settings, row, seed), minutes / 20, policy)
    return cells


def config_of(settings: Settings, spec: PolicySpec) -> Path:
    if not isinstance(spec, Aligned):
        return HERE / "tables" / f"{settings.data}.yaml"
    return HERE / "rl" / ("gr4ad_beauty.yaml" if settings.data == "beauty" else f"{settings.data}.yaml")


def prepare(settings: Settings, folder: Path) -> None:
    source = ["--source", "synthetic", *MARKET]
    if settings.data == "beauty":
        source = ["--source", "amazon", "--input", str(Path(settings.input) / "amazon_beauty_2014")]
    run_script("recipes/prepare.py", *source, "--output_dir", str(folder))


def recipe_yaml(script: str) -> str:
    """Return the settings of a recipe that a data set's YAML only adds to."""
    return Path(script).with_suffix(".yaml").read_text()


def sid_words(settings: Settings, kind: str) -> tuple[str, ...]:
    return (*BOOKS[settings.data], *UA_SID, *HASHED[settings.data]) if kind == "ua" else ()


def build_sids(settings: Settings, words: Sequence[str], folder: Path) -> None:
    data_dir = str(RUNS / settings.data / "data")
    run_script("recipes/build_sids.py", "--data_dir", data_dir, "--output_dir", str(folder), *words)


def stages(settings: Settings, spec: PolicySpec, seed: int) -> list[str]:
    root = RUNS / settings.data
    return ["--data_dir", str(root / "data"), "--sid_dir", str(root / f"sids_{spec.sids}"), "--seed", str(seed)]


def policy_dir(settings: Settings, name: str, seed: int) -> Path:
    return RUNS / settings.data / f"policy_{name}" / f"seed{seed}" / "policy"


def reward_dir(settings: Settings, seed: int) -> Path:
    return RUNS / settings.data / "reward" / f"seed{seed}" / "model"


def train_reward(settings: Settings, spec: Aligned, seed: int, folder: Path) -> None:
    """Teach trees what of the VSL policy's proposals was taken; multiply by its value where items differ in it."""
    words, trees = stages(settings, spec, seed), str(folder / ("trees" if settings.data in PRICED else "model"))
    start = str(policy_dir(settings, spec.start, seed))
    chosen = REWARD_WORDS[settings.data]
    run_script("recipes/train_xgb.py", *words, *chosen, "--policy_dir", start, "--output_dir", trees)
    if settings.data in PRICED:
        run_script(
            "recipes/combine_rewards.py", *words, "--members", trees, "--by_value", "true",
            "--output_dir", str(folder / "model"),
        )  # fmt: skip


def train(settings: Settings, spec: PolicySpec, seed: int, folder: Path) -> None:
    words = ["--config", str(config_of(settings, spec)), *stages(settings, spec, seed)]
    if isinstance(spec, Aligned):
        model = "expected_value.ExpectedValue" if settings.data in PRICED else "xgb.XGB"
        block = {"class_path": f"reward_models.{model}", "init_args": {"path": str(reward_dir(settings, seed))}}
        start = str(policy_dir(settings, spec.start, seed))
        words += ["--policy_dir", start, "--reward_model", json.dumps(block), "--check_reward", "false"]
        words += ["--exclude_seen", "false"]
    run_script(spec.script, *words, "--output_dir", str(folder / "policy"), *spec.arguments)


def answer(settings: Settings, row: Row, seed: int, folder: Path) -> None:
    """Ask a row's policy for every test page, within the catalogue and freely."""
    dataset, catalog = stage_inputs(settings, row)
    recommender = asked(settings, row, seed, catalog, beams=BEAMS)
    examples = dataset.examples("test", max_history=None)
    plan = Plan(ks=(10,), beams=BEAMS, draws=1)
    columns: Columns = {}
    for decoding in ("constrained", "unconstrained"):
        given = predict(UpTo(recommender), examples, name=row.name, decoding=decoding, plan=plan, scorers={})
        found = measure_requests(
            given, examples, catalog=catalog, popularity=dataset.popularity, item_values=dataset.item_values, ks=(10,)
        )
        is_free = decoding == "unconstrained"
        columns |= {name: values for name, values in found.items() if name.startswith("HaR") == is_free}
    write_columns(folder, columns)


def time_row(settings: Settings, row: Row, seed: int, folder: Path) -> None:
    """Time a row's policy at 512 beams on one thread of the processor, wherever it was trained."""
    dataset, catalog = stage_inputs(settings, row)
    recommender = asked(settings, row, seed, catalog, beams=FAST_BEAMS)
    recommender.policy.model.to("cpu")
    examples = dataset.examples("test", max_history=None)[: settings.timed_requests]
    speed = requests_per_second(recommender, [example.context for example in examples])
    (folder / "speed.json").write_text(json.dumps({"requests_per_s": speed}))


def stage_inputs(settings: Settings, row: Row) -> tuple[Dataset, Catalog]:
    sids = POLICIES[row.policy].sids
    return load_dataset(RUNS / settings.data / "data"), Catalog.load(RUNS / settings.data / f"sids_{sids}")


def asked(settings: Settings, row: Row, seed: int, catalog: Catalog, *, beams: int) -> BeamRecommender:
    """Return a row's policy, asked with as many beams on every level, or half as many as on the next one."""
    widths = level_widths(beams, catalog.n_levels) if row.grows else None
    return load_recommender(
        policy_dir(settings, row.policy, seed),
        catalog=catalog,
        options=BeamOptions(batch_size=32, beam_widths=widths),
    )


@dataclass(frozen=True)
class UpTo:
    """A policy that answers with up to k items: where growing widths leave fewer, ``NO_ITEM`` stands behind them.

    A catalogue of long first levels has hardly more items than pairs of first codes: half as many beams then end in
    about half as many items, and what is measured of the first ten needs no more.
    """

    recommender: BeamRecommender

    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool) -> Rollouts:
        """Return k places of each context, k the widths' last; see ``BeamRecommender.propose``."""
        widths = self.recommender.beam_widths or (k,) * self.recommender.catalog.n_levels
        assert widths[-1] == k
        found = self.recommender.propose(contexts, widths=widths, constrained=constrained)
        missing = k - found.rows_PG.shape[1]
        pad = torch.nn.functional.pad
        return Rollouts(
            sids_PGL=pad(found.sids_PGL, (0, 0, 0, missing)),
            rows_PG=pad(found.rows_PG, (0, missing), value=NO_ITEM),
            log_probs_PG=pad(found.log_probs_PG, (0, missing), value=-torch.inf),
        )


def requests_per_second(recommender: Any, contexts: Sequence[Any], *, rounds: int = 3) -> float:
    """Return requests a CPU second at 512 beams on one thread, the median of some rounds behind one to warm up."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    for _ in range(rounds + 1):
        begun = time.process_time()
        recommender.propose(contexts, widths=recommender.beam_widths or (FAST_BEAMS,) * 3, constrained=True)
        seconds.append(time.process_time() - begun)
    torch.set_num_threads(n_threads)
    return len(contexts) / float(np.median(seconds[1:]))


def report(settings: Settings) -> None:
    """Write the table of all rows that are done, of both data sets; one of which nothing is here stays as it was."""
    file = RESULTS / "gr4ad.json"
    before = json.loads(file.read_text()) if file.is_file() else as_result({}, {}, seeds=[]) | {"made": {}}
    result = as_result({}, {}, seeds=[]) | {"made": {}}
    n_new = 0
    for data, prefix in PREFIXES.items():
        seeds = seeds_done(data)
        found, intervals = measured(replace(settings, data=data, seeds=seeds)) if seeds else ({}, {})
        n_new += len(found)
        if found:
            made = {name: result[name] for name in ("command", "commit")} | {"seeds": seeds}
            systems = {name: {prefix + metric: x for metric, x in row.items()} for name, row in found.items()}
            paired = {
                key: {prefix + metric: as_dict(interval) for metric, interval in row.items()}
                for key, row in intervals.items()
            }
        else:
            made = before["made"].get(data)
            systems, paired = of_data(before["systems"], prefix), of_data(before["paired"], prefix)
        for part, rows in (("systems", systems), ("paired", paired)):
            for name, row in rows.items():
                result[part].setdefault(name, {}).update(row)
        result["made"] |= {data: made} if systems else {}
    if not n_new:
        console.print("nothing is done yet")
        return
    result["seeds"] = sorted({seed for made in result["made"].values() for seed in made["seeds"]})
    file.write_text(json.dumps(result, indent=1) + "\n")
    file.with_suffix(".md").write_text(as_markdown(result))
    console.print(f"{file}, {file.with_suffix('.md')}: {len(result['systems'])} rows")


def of_data(rows: Mapping[str, Mapping[str, Any]], prefix: str) -> dict[str, dict[str, Any]]:
    """Return what a result file holds of one data set, whose metrics begin with its prefix."""
    others = tuple(x for x in PREFIXES.values() if x and x != prefix)
    own = {
        name: {metric: x for metric, x in row.items() if metric.startswith(prefix) and not metric.startswith(others)}
        for name, row in rows.items()
    }
    return {name: row for name, row in own.items() if row}


def seeds_done(data: str) -> list[int]:
    """Return the seeds of which some row was begun, whatever this run was asked for."""
    folders = [folder for row in ROWS for folder in (RUNS / data / row.name).glob("seed*")]
    return sorted({int(folder.name.removeprefix("seed")) for folder in folders})


def measured(settings: Settings) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, Interval]]]:
    """Return each finished row's metrics, one number a seed, and the paired differences."""
    columns: dict[str, dict[int, Columns]] = {}
    speeds: dict[str, list[float]] = {}
    for seed in settings.seeds:
        cells = cells_of(settings, seed)
        for name in [row.name for row in ROWS if cells[row.name].record() is not None]:
            columns.setdefault(name, {})[seed] = read_columns(cells[name].folder)
            if (timed := cells[f"{TIMED}{name}"]).record() is not None:
                speed = json.loads((timed.folder / "speed.json").read_text())
                speeds.setdefault(name, []).append(speed["requests_per_s"])
    if not columns:
        return {}, {}
    aligned = next(spec for spec in POLICIES.values() if isinstance(spec, Aligned))
    examples = load_dataset(RUNS / settings.data / "data").examples("test", max_history=None)
    requests = Requests.of(examples, is_held_out=held_out_by(config_of(settings, aligned)))
    means = {name: [summarise(seed, requests) for seed in seeds.values()] for name, seeds in columns.items()}
    systems = {
        name: {metric: [seed[metric] for seed in seeds] for metric in seeds[0]}
        | ({"requests_per_s": speeds[name]} if name in speeds else {})
        for name, seeds in means.items()
    }
    return systems, pair(columns, [p for p in PAIRS if set(p) <= set(columns)], requests)


def as_markdown(result: Mapping[str, Any]) -> str:
    """Write a table for each data set: rows in the paper's order, its own numbers, and what each step changed."""
    lines = []
    for data, prefix in PREFIXES.items():
        rows = [row for row in ROWS if f"{prefix}NDCG@10" in result["systems"].get(row.name, {})]
        if rows:
            made = result["made"][data]
            lines += [f"## {TITLES[data]}", "", f"Written by `{made['command']}`, commit {made['commit'][:10]}.", ""]
            lines += [*table_lines(result, rows, prefix), ""]
    return "\n".join(lines)


def table_lines(result: Mapping[str, Any], rows: Sequence[Row], prefix: str) -> list[str]:
    """Write one data set's rows, and the differences on the same users."""
    header = ["", "seeds", *SHOWN, "requests/s", "the step's NDCG@10", "paper: revenue, QPS"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        found = result["systems"][row.name]
        numbers = [cell(found.get(prefix + metric)) for metric in SHOWN]
        speeds = found.get(f"{prefix}requests_per_s")
        speed = "" if speeds is None else f"{np.mean(speeds):.1f}"
        n_seeds = str(len(found[f"{prefix}NDCG@10"]))
        told = [f"**{row.name}**, {row.title}", n_seeds, *numbers, speed, step(result, row, prefix), row.paper]
        lines.append(f"| {' | '.join(told)} |")
    lines += ["", "Differences on the same users, 95 % intervals over users:", ""]
    for key, of in result["paired"].items():
        found = differences(of, SHOWN, prefix=prefix)
        lines += [f"- {pair_title(key)}: {found}"] if found else []
    return lines


def step(result: Mapping[str, Any], row: Row, prefix: str) -> str:
    """Say whether a row's part helps NDCG@10, against the row that it adds to: the first of its pairs."""
    before = next((b for a, b in PAIRS if a == row.name), None)
    of = result["paired"].get(f"{row.name}{PAIR}{before}", {}).get(f"{prefix}NDCG@10")
    if of is None:
        return ""
    verdict = "helps" if of["lo"] > 0 else "hurts" if of["hi"] < 0 else "no change seen"
    return f"{verdict}, to {before} {difference(of)}"


if __name__ == "__main__":
    run_recipe(main)
