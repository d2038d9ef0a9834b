"""The paper's Tables 1 (systems) and 2 (sizes of the policy) on public data, against honest bars.

    python benchmarks/paper_tables.py --data beauty --table 1 --input ../shared/data
    python benchmarks/paper_tables.py --data movielens --table 2 --seeds 0

Reads   Amazon Beauty (the folder that holds amazon_beauty_2014, and letter_beauty for LETTER's SIDs) or MovieLens.
Writes  runs/tables/<data>/: data, catalogues, every policy and every system's answers, a folder each, done once;
        benchmarks/results/table<t>_<data>.{json,md} and pictures, of all cells that are done; of Beauty also
        the table in benchmarks/README.md.
Watch   the bar: which cell runs, and about how long the rest will take. A run that was killed goes on where it was;
        ``--report true`` only writes the table of what is done so far.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.baselines import BASELINES, SETTINGS
from benchmarks.harness import parse
from benchmarks.rl.arms import ARMS
from benchmarks.tables.cells import CELL_FILE, Cell, work_off
from benchmarks.tables.measure import Answers, Columns, Requests, read_columns
from benchmarks.tables.protocols import NARROW_BEAMS, PROTOCOLS, Protocol
from benchmarks.tables.report import brief_tables, tabulate, write_table
from benchmarks.tables.scaling import Curve, draw_curves, draw_targets, read_curve, scaling_facts
from benchmarks.tables.systems import ALIGNED, RERANK_WEIGHT, TABLES, TARGETS, SystemSpec
from benchmarks.written import MEASURED, fill_part
from genrec_rl.config import nearest
from genrec_rl.data.store import Dataset, load_dataset
from genrec_rl.decoding.recommender import BeamRecommender, Recommender
from genrec_rl.decoding.rerank import Reranker
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.baselines import counted_system
from genrec_rl.evaluation.evaluate import Decoding, Plan, predict
from genrec_rl.evaluation.policies import BeamOptions, load_recommender
from genrec_rl.rewards.components import load_reward_model
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import console, run_recipe

RUNS, RL_RUNS = Path("runs/tables"), Path("runs/rl")
ANSWERS = "answers.npz"
RESULTS = Path("benchmarks/results")
SEEDS = (0, 1, 2)
MIN_BEAMS = 50
TREES_CLASS = "reward_models.xgb.XGB"
IN_BRIEF = "table1_beauty"
HERE = Path(__file__).parent / "tables"
MARKET = ("--n_users", "800", "--n_items", "1000", "--n_requests", "8000")
"""Size of the simulated market: an SFT policy of it takes a minute."""
SID_ARGUMENTS = {"beauty": ("--epochs", "20"), "movielens": (), "synthetic": ()}
"""Of recipes/build_sids.py: on Beauty longer fine-tuning on co-clicks gives better SIDs (LOG.md)."""
MINUTES = {
    "counter": 0.5,
    "neural": 12.0,
    "policy": 15.0,
    "tiger": 55.0,
    "genrec_wide": 40.0,
    "genrec_running_wide": 40.0,
    "reranked": 25.0,
}


@dataclass
class Settings:
    """Which table, and how much of it."""

    data: Literal["beauty", "movielens", "synthetic"] = field(
        default="beauty", metadata={"help": "beauty | movielens | synthetic"}
    )
    table: int = field(default=1, metadata={"help": "table of the paper: 1, systems; 2, sizes", "choices": [1, 2]})
    input: str = field(default="../shared/data", metadata={"help": "folder that holds Beauty and its SIDs"})
    sids: Literal["letter", "ours"] = field(default="letter", metadata={"help": "of Beauty: LETTER's, or our own"})
    seeds: list[int] = field(default_factory=lambda: [*SEEDS], metadata={"help": "of training"})
    systems: list[str] = field(default_factory=list, metadata={"help": "names of rows; none: all"})
    protocols: list[str] = field(
        default_factory=list, metadata={"help": "of loo, pages, ties; none: all of Table 1, pages of Table 2"}
    )
    beams: int = field(default=50, metadata={"help": "items asked of every system"})
    jobs: int = field(default=1, metadata={"help": "cells at a time; 15 on one GPU with 16 cores"})
    report: bool = field(default=False, metadata={"help": "fit nothing: write the table of what is done"})


def main() -> None:
    settings = completed(parse(Settings))
    chosen = choose_systems(settings)
    if not settings.report:
        cells = in_order([protocol_cells(settings, protocol, chosen) for protocol in settings.protocols])
        work_off(cells, jobs=settings.jobs)
    report(settings)


def completed(settings: Settings) -> Settings:
    """Return the settings with what follows from the table and the data."""
    protocols = settings.protocols or {1: [*PROTOCOLS], 2: ["pages"]}[settings.table]
    return replace(settings, protocols=protocols, sids="ours" if settings.data != "beauty" else settings.sids)


def report(settings: Settings) -> None:
    """Write the table of all cells that are done with these data and SIDs."""
    folders = (RUNS / settings.data).glob(f"*/{settings.sids}/*/seed*")
    settings = replace(settings, seeds=sorted({int(folder.name.removeprefix("seed")) for folder in folders}))
    specs = TABLES[settings.table]
    suffix = "_own_sids" if settings.data == "beauty" and settings.sids == "ours" else ""
    file = RESULTS / f"table{settings.table}_{settings.data}{suffix}.json"
    answers: dict[str, dict[str, dict[int, Answers]]] = {}
    requests: dict[str, Requests] = {}
    curves: dict[str, list[Curve]] = {}
    for protocol in PROTOCOLS:
        parts = protocol_cells(settings, protocol, specs)
        for (name, seed), cell in parts.answers.items():
            if (given := load_answers(cell)) is not None:
                answers.setdefault(protocol, {}).setdefault(name, {})[seed] = given
        if protocol in answers:
            examples = load_dataset(parts.data.folder).examples("test", max_history=None)
            requests[protocol] = Requests.of(examples)
            if curves := read_curves(settings, parts, answers[protocol]):
                draw = draw_targets if settings.table == 1 else draw_curves
                draw(curves, file.with_name(f"{file.stem}_{protocol}_curves.png"))
    if not answers:
        console.print("nothing is done yet")
        return
    aligned = aligned_columns(settings) if settings.table == 1 else {}
    specs = as_shown([*specs, *(spec for spec in ALIGNED if spec.name in aligned)], data=settings.data)
    counters = {spec.name for spec in specs if spec.kind == "counter"}
    measured = {"loo": aligned} if "loo" in answers else {}
    result = tabulate(answers, requests, measured=measured, unseeded=counters)
    if settings.table == 2:
        result["scaling"] = scaling_facts(curves)
    write_table(result, specs, file)
    if file.stem == IN_BRIEF:
        fill_part(MEASURED, "accuracy-table", brief_tables(result, specs, file))
    console.print(f"{file}, {file.with_suffix('.md')}: {len(result['systems'])} systems")


def as_shown(specs: Sequence[SystemSpec], *, data: str) -> list[SystemSpec]:
    """Return the rows, without published numbers on other data than theirs, Beauty."""
    return [spec if data == "beauty" else replace(spec, published={}) for spec in specs]


def aligned_columns(settings: Settings) -> dict[str, dict[int, Columns]]:
    """Return what benchmarks/rl_gain.py measured of policies aligned from these ones, by row and seed.

    An arm that was made from another policy, or with other settings than it has now, is left out.
    """
    found: dict[str, dict[int, Columns]] = {}
    policies = protocol_cells(settings, "loo", TABLES[1]).answers
    config = HERE.with_name("rl") / f"{settings.data}.yaml"
    for spec in ALIGNED:
        now = {"arguments": list(ARMS[spec.name].arguments or ()), "config": config.read_text()}
        for seed in settings.seeds:
            folder = RL_RUNS / settings.data / "loo" / settings.sids / spec.of / spec.name / f"seed{seed}"
            if not (folder / CELL_FILE).is_file():
                continue
            facts = json.loads((folder / CELL_FILE).read_text())["facts"]
            if {name: facts.get(name) for name in ("sft", *now)} == {"sft": policies[spec.of, seed].key, **now}:
                found.setdefault(spec.name, {})[seed] = read_columns(folder)
    return found


def read_curves(
    settings: Settings, parts: "ProtocolCells", answers: Mapping[str, Mapping[int, Answers]]
) -> dict[str, list[Curve]]:
    """Read the validation losses of those systems whose losses may be compared, by name, a curve a seed."""
    comparable = TARGETS if settings.table == 1 else [spec.name for spec in TABLES[2]]
    policies = [name for name in comparable if name in answers]
    folders = {name: [parts.answers[name, seed].folder / "policy" for seed in answers[name]] for name in policies}
    return {name: [read_curve(folder) for folder in seeds] for name, seeds in folders.items()}


@dataclass(frozen=True, slots=True)
class ProtocolCells:
    """The cells of one protocol: data, catalogue, and every system's answers, by name and seed."""

    data: Cell
    sids: Cell
    answers: dict[tuple[str, int], Cell]


def in_order(protocols: Sequence[ProtocolCells]) -> list[Cell]:
    """Return all cells in the order of the work: a whole table of the first seed comes before the second seed."""
    stages = [cell for parts in protocols for cell in (parts.data, parts.sids)]
    answers = [(seed, cell) for parts in protocols for (_, seed), cell in parts.answers.items()]
    return stages + [cell for _, cell in sorted(answers, key=lambda pair: pair[0])]


def choose_systems(settings: Settings) -> list[SystemSpec]:
    known = {spec.name: spec for spec in TABLES[settings.table]}
    for what, names, choices in (("system", settings.systems, known), ("protocol", settings.protocols, PROTOCOLS)):
        for name in names:
            if name not in choices:
                raise ConfigError(f"no {what} '{name}' among {', '.join(choices)}{nearest(name, choices)}")
    for name in settings.systems:
        if not set(known[name].protocols) & set(settings.protocols):
            raise ConfigError(
                f"{name} is asked under {', '.join(known[name].protocols)} alone; add one to --protocols"
            )
    if settings.beams < MIN_BEAMS:
        raise ConfigError(f"beams {settings.beams} must be at least {MIN_BEAMS}, for HR@50 and HaR@50; raise it")
    wanted = {*settings.systems, *(known[name].of for name in settings.systems)} if settings.systems else {*known}
    return [spec for spec in known.values() if spec.name in wanted]


def protocol_cells(settings: Settings, protocol: str, specs: Sequence[SystemSpec]) -> ProtocolCells:
    root = RUNS / settings.data / protocol
    sid_root = root / f"sids_{settings.sids}"
    asked = PROTOCOLS[protocol]
    facts = {"data": settings.data, "split": asked.split, "shuffle_ties": asked.shuffles_ties}
    if settings.data == "synthetic":
        facts |= {"market": MARKET}
    data = Cell(f"{protocol}: data", root / "data", facts, partial(prepare, settings, protocol), 0.2)
    facts = facts | {"sids": SID_ARGUMENTS[settings.data] if settings.sids == "ours" else settings.sids}
    sids = Cell(
        f"{protocol}: catalogue", sid_root, facts, partial(build_sids, settings, data.folder), 1, (data.folder,)
    )
    answers = {}
    for spec in [spec for spec in specs if protocol in spec.protocols]:
        for seed in seeds_of(settings, spec, asked):
            minutes = MINUTES.get(spec.name, MINUTES[spec.kind])
            made_with = facts | {"system": spec.name, "seed": seed, "beams": settings.beams}
            made_with |= {"max_history": asked.max_history}
            if spec.kind == "neural":
                made_with |= {"settings": asdict(SETTINGS[spec.name])}
            if spec.kind == "policy":
                made_with |= {
                    "arguments": spec.arguments + asked.arguments,
                    "continues_page": spec.continues_page and asked.is_next_item,
                    "narrow_beams": NARROW_BEAMS,
                    "config": config_file(settings).read_text(),
                    "recipe": Path("recipes/sft.yaml").read_text(),
                }
            if spec.kind == "reranked":
                policy = answers[spec.of, seed].key
                made_with |= {"policy": policy, "arguments": spec.arguments, "weight": RERANK_WEIGHT}
            run = partial(answer, settings, protocol, spec, seed, data.folder, sid_root)
            name, folder = f"{protocol}: {spec.name}, seed {seed}", root / settings.sids / spec.name / f"seed{seed}"
            needs = (sids.folder, *((answers[spec.of, seed].folder,) if spec.of else ()))
            answers[spec.name, seed] = Cell(name, folder, made_with, run, minutes, needs)
    return ProtocolCells(data, sids, answers)


def seeds_of(settings: Settings, spec: SystemSpec, asked: Protocol) -> list[int]:
    """Return the seeds of a row: one where nothing is drawn, and one where ties are shuffled, to save days."""
    return [SEEDS[0]] if spec.kind == "counter" or asked.shuffles_ties else settings.seeds


def config_file(settings: Settings) -> Path:
    return HERE / f"{settings.data}.yaml"


def prepare(settings: Settings, protocol: str, folder: Path) -> None:
    source = {
        "movielens": ["--source", "movielens"],
        "beauty": ["--source", "amazon", "--input", str(Path(settings.input) / "amazon_beauty_2014")],
        "synthetic": ["--source", "synthetic", *MARKET],
    }[settings.data]
    asked = PROTOCOLS[protocol]
    ties = ["--shuffle_ties", "true"] if asked.shuffles_ties else []
    run_script("recipes/prepare.py", *source, "--split", asked.split, "--output_dir", str(folder), *ties)


def build_sids(settings: Settings, data_dir: Path, folder: Path) -> None:
    arguments = list(SID_ARGUMENTS[settings.data])
    if settings.sids == "letter":
        arguments = ["--codes_from", str(Path(settings.input) / "letter_beauty" / "Beauty.index.json")]
    run_script("recipes/build_sids.py", "--data_dir", str(data_dir), "--output_dir", str(folder), *arguments)


def answer(
    settings: Settings, protocol: str, spec: SystemSpec, seed: int, data_dir: Path, sid_dir: Path, folder: Path
) -> None:
    """Fit a system where it is not fitted yet, and keep what it answers to the test requests."""
    if spec.kind == "policy":
        fit_policy(settings, protocol, spec, seed, data_dir, sid_dir, folder / "policy")
    if spec.kind == "reranked":
        fit_trees(protocol, spec, seed, data_dir, sid_dir, folder)
    dataset, catalog = load_dataset(data_dir), Catalog.load(sid_dir)
    recommender = load(protocol, spec, seed, dataset, catalog, folder)
    examples = dataset.examples("test", max_history=PROTOCOLS[protocol].max_history)

    def ask(recommender: Recommender, beams: int, decoding: Decoding) -> np.ndarray:
        plan = Plan(ks=(1,), beams=beams, draws=1)
        return predict(recommender, examples, name=spec.name, decoding=decoding, plan=plan, scorers={}).rows_PK

    rows = {"constrained": ask(recommender, settings.beams, "constrained")}
    if isinstance(recommender, BeamRecommender):
        rows["narrow"] = ask(recommender, NARROW_BEAMS, "constrained")
    if isinstance(recommender, BeamRecommender) and recommender.normalisation == "vocabulary":
        rows["free"] = ask(recommender, settings.beams, "unconstrained")
        sampler = load(protocol, spec, seed, dataset, catalog, folder, sample_seed=seed)
        rows["sampled"] = ask(sampler, 1, "unconstrained")
    np.savez_compressed(folder / ANSWERS, allow_pickle=False, **{k: v.astype(np.int32) for k, v in rows.items()})


def fit_policy(
    settings: Settings, protocol: str, spec: SystemSpec, seed: int, data_dir: Path, sid_dir: Path, folder: Path
) -> None:
    """Run recipes/sft.py, from the newest checkpoint of a run that was cut off."""
    if (folder / "stage.json").is_file():
        return
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    resume = ["--resume_from_checkpoint", str(checkpoints[-1])] if checkpoints else []
    asked = PROTOCOLS[protocol]
    continues = ["--continue_page", "true"] if spec.continues_page and asked.is_next_item else []
    run_script(
        "recipes/sft.py", "--config", str(config_file(settings)), "--data_dir", str(data_dir),
        "--sid_dir", str(sid_dir), "--output_dir", str(folder), "--seed", str(seed),
        "--max_history", str(asked.max_history), *spec.arguments, *asked.arguments, *continues, *resume,
    )  # fmt: skip


def fit_trees(protocol: str, spec: SystemSpec, seed: int, data_dir: Path, sid_dir: Path, folder: Path) -> None:
    """Run recipes/train_xgb.py on what the policy proposes."""
    if (folder / "reward" / "stage.json").is_file():
        return
    is_next_item = PROTOCOLS[protocol].is_next_item
    requests = "running" if is_next_item else "page"
    continues = ["--continue_page", "true"] if spec.continues_page and is_next_item else []
    run_script(
        "recipes/train_xgb.py", "--data_dir", str(data_dir), "--sid_dir", str(sid_dir), "--seed", str(seed),
        "--policy_dir", str(policy_folder(spec, folder)), "--requests", requests,
        "--output_dir", str(folder / "reward"), *spec.arguments, *continues,
    )  # fmt: skip


def policy_folder(spec: SystemSpec, folder: Path) -> Path:
    """Return where the policy lies that answers in a cell's folder, or whose beams are re-ranked there."""
    return (folder.parent.parent / spec.of / folder.name if spec.of else folder) / "policy"


def load(
    protocol: str,
    spec: SystemSpec,
    seed: int,
    dataset: Dataset,
    catalog: Catalog,
    folder: Path,
    sample_seed: int | None = None,
) -> Recommender:
    """Return a fitted system, ready to be asked; counters and neural baselines are fitted here."""
    if spec.kind in ("policy", "reranked"):
        continues = spec.continues_page and PROTOCOLS[protocol].is_next_item
        options = BeamOptions(batch_size=128, continue_page=continues, sample_seed=sample_seed)
        recommender = load_recommender(policy_folder(spec, folder), catalog=catalog, options=options)
        if spec.kind == "policy":
            return recommender
        trees = {"class_path": TREES_CLASS, "init_args": {"path": str(folder / "reward")}}
        return Reranker(recommender, load_reward_model(trees, catalog=catalog), weight=RERANK_WEIGHT)
    if spec.kind == "neural":
        chosen = replace(SETTINGS[spec.name], max_history=PROTOCOLS[protocol].max_history)
        return BASELINES[spec.name](dataset, catalog, settings=chosen, seed=seed)
    return counted_system(spec.name, dataset, catalog).load()


def run_script(script: str, *arguments: str) -> None:
    """Run one of our scripts in a process of its own; what it prints goes to the terminal.

    Raises:
        ConfigError: when it fails, with its command.
    """
    command: list[Any] = [sys.executable, script, *arguments]
    if subprocess.run(command, check=False).returncode:
        raise ConfigError(f"failed: {' '.join(command[1:])}; mend what it says above and start again")


def load_answers(cell: Cell) -> Answers | None:
    """Return what a finished cell kept, None of one that is not done."""
    if cell.record() is None:
        return None
    with np.load(cell.folder / ANSWERS, allow_pickle=False) as arrays:
        return Answers(**{f"{kind}_PK": arrays[kind] for kind in arrays})


if __name__ == "__main__":
    run_recipe(main)
