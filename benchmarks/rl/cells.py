"""The cells of rl_gain.py: an SFT policy, its judges, and every arm's policy with its answers, once each.

An arm starts from SFT's policy or goes on from another arm's, and is taught by the reward, by the gold model, by
both, or by a reward of its own. What it was made with stands in its cell's key.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from benchmarks import paper_tables
from benchmarks.rl.arms import ARMS, Arm
from benchmarks.tables.cells import Cell
from benchmarks.tables.measure import Columns, write_columns
from benchmarks.tables.protocols import PROTOCOLS
from benchmarks.tables.systems import TABLE_1, TREES
from genrec_rl.data.store import load_dataset
from genrec_rl.decoding.recommender import Recommender
from genrec_rl.decoding.rerank import Reranker
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.evaluate import Decoding, Plan, measure_catalogue, measure_requests, predict
from genrec_rl.evaluation.policies import BeamOptions, load_recommender, trained_over
from genrec_rl.rewards.components import load_reward_model
from genrec_rl.sids.catalog import Catalog

HERE = Path(__file__).parent
KS = (1, 10, 50)
MINUTES = {"reward": 8.0, "gold": 5.0, "arm": 12.0, "long": 75.0}
JUDGES = {
    "reward": ("recipes/train_xgb.py", "reward_models.xgb.XGB"),
    "gold": ("recipes/train_reward.py", "reward_models.sim.SIM"),
}
ENSEMBLE = "reward_models.ensemble.Ensemble"
OF_MARKET = {"reward": JUDGES["gold"], "gold": JUDGES["reward"]}
"""A log with true exposures teaches SIM what is liked; of proposals that nobody saw trees learn what was logged."""


@dataclass
class Settings:
    """Which data, policy and arms."""

    data: Literal["movielens", "beauty", "synthetic"] = field(
        default="movielens", metadata={"help": "movielens | beauty | synthetic"}
    )
    protocol: Literal["pages", "loo"] = field(default="pages", metadata={"help": "of paper_tables.py"})
    sids: Literal["letter", "ours"] = field(default="ours", metadata={"help": "of Beauty: LETTER's, or our own"})
    policy: str | None = field(
        default=None, metadata={"help": "row of Table 1 to start from; none: genrec of pages, genrec_wide of loo"}
    )
    input: str = field(default="../shared/data", metadata={"help": "folder that holds Beauty and LETTER's SIDs"})
    length: Literal["short", "long"] = field(
        default="short", metadata={"help": "short: benchmarks/rl/<data>.yaml; long (Beauty alone): <data>_long.yaml"}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of everything trained"})
    arms: list[str] = field(
        default_factory=list,
        metadata={"help": "names of rows, or tried; none: all but the tried, or a few long ones"},
    )
    jobs: int = field(default=1, metadata={"help": "cells at a time"})
    report: bool = field(default=False, metadata={"help": "train nothing: write the table of what is done"})


@dataclass(frozen=True, slots=True)
class SeedCells:
    """The cells of one seed, in the order of the work."""

    sft: list[Cell]
    reward: Cell
    gold: Cell
    arms: dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Teaching:
    """The reward that teaches an arm: a cell's, or made in the arm's own folder, of its start's proposals or not."""

    class_path: str
    folder: Path | None = None
    make: Callable[..., None] | None = None
    is_of_start: bool = False

    def block(self, folder: Path, start_dir: Path) -> dict[str, Any]:
        """Return what a recipe's YAML calls ``reward_model``; make it first, where it is the arm's own."""
        if self.make is not None:
            self.make(folder, policy_dir=start_dir if self.is_of_start else None)
        return {"class_path": self.class_path, "init_args": {"path": str((self.folder or folder) / "model")}}


def seed_cells(settings: Settings, seed: int) -> SeedCells:
    name = settings.policy or {"pages": "genrec", "loo": "genrec_wide"}[settings.protocol]
    specs = [spec for spec in TABLE_1 if spec.name == name and spec.kind == "policy"]
    if not specs:
        raise ConfigError(f"policy '{name}' is no policy of Table 1")
    table = paper_tables.completed(
        paper_tables.Settings(data=settings.data, input=settings.input, sids=settings.sids, seeds=[seed])
    )
    made = paper_tables.protocol_cells(table, settings.protocol, specs)
    sft = made.answers[name, seed]
    root = paper_tables.RL_RUNS / settings.data / settings.protocol / table.sids / name
    stages = ["--data_dir", str(made.data.folder), "--sid_dir", str(made.sids.folder), "--seed", str(seed)]
    is_next_item = PROTOCOLS[settings.protocol].is_next_item
    requests = ["--requests", "running" if is_next_item else "page"]
    continues_page = specs[0].continues_page and is_next_item
    if continues_page:
        requests += ["--continue_page", "true"]
    objective = TREES if settings.data == "beauty" else ("--objective", "rank:ndcg")
    reward_words = ["--policy_dir", str(sft.folder / "policy"), *objective, *requests]
    facts = {"sft": sft.key}
    trees = (facts | {"words": reward_words}, partial(train, "recipes/train_xgb.py", [*stages, *reward_words]))
    sim = (facts, partial(train, "recipes/train_reward.py", stages))
    made_by = {"recipes/train_xgb.py": trees, "recipes/train_reward.py": sim}
    reward, gold = (
        Cell(f"{name}, seed {seed}", root / name / f"seed{seed}", *made_by[judges(settings)[name][0]], MINUTES[name],
             (sft.folder,))
        for name in ("reward", "gold")
    )  # fmt: skip
    words = ["--config", str(config_file(settings)), *stages, *requests]
    shared = partial(
        arm_cell, settings, made=made, sft=sft, reward=reward, gold=gold, words=words, continues_page=continues_page
    )
    script, reward_class = judges(settings)["reward"]
    own_words = reward_words[2:] if script == JUDGES["reward"][0] else []
    members = ["--members", *(str(judge.folder / "model") for judge in (reward, gold))]
    teachers: dict[str, Teaching] = {
        "reward": Teaching(reward_class, reward.folder),
        "gold": Teaching(judges(settings)["gold"][1], gold.folder),
        "ensemble": Teaching(ENSEMBLE, make=partial(train, "recipes/combine_rewards.py", [*stages, *members])),
        "refreshed": Teaching(reward_class, make=partial(train, script, [*stages, *own_words]), is_of_start=True),
    }
    arms: dict[str, Cell] = {}
    for arm in ARMS.values():
        is_long = settings.length == "long" and (arm.arguments is not None or arm.is_reranked)
        folder = root / (f"{arm.name}_long" if is_long else arm.name) / f"seed{seed}"
        arms[arm.name] = shared(arm, folder, after=arms.get(arm.after or ""), teacher=teachers[arm.taught_by])
    return SeedCells([made.data, made.sids, sft], reward, gold, arms)


def arm_cell(
    settings: Settings,
    arm: Arm,
    folder: Path,
    *,
    made: paper_tables.ProtocolCells,
    sft: Cell,
    reward: Cell,
    gold: Cell,
    words: Sequence[str],
    continues_page: bool,
    after: Cell | None,
    teacher: Teaching,
) -> Cell:
    """Return an arm's cell; ``after`` is that of the arm it goes on from."""
    if settings.length == "long" and arm.if_long:
        arm = replace(arm, arguments=(*(arm.arguments or ()), *arm.if_long))
    facts = {"sft": sft.key, "reward": reward.key, "gold": gold.key, "arguments": arm.arguments}
    if arm.arguments is not None:
        facts |= {"config": config_file(settings).read_text()}
    if arm.is_reranked:
        facts |= {"margin_weight": margin_weight(settings)}
    if after is not None:
        facts |= {"after": after.key}
    if arm.taught_by != "reward":
        facts |= {"taught_by": arm.taught_by}
    start, needs = after or sft, (reward.folder, gold.folder, *((after.folder,) if after else ()))
    run = partial(answer, settings, arm, made, start.folder / "policy", reward.folder, gold.folder, words,
                  teacher=teacher, continues_page=continues_page)  # fmt: skip
    minutes = MINUTES["long" if settings.length == "long" and arm.arguments is not None else "arm"]
    return Cell(
        ", ".join([folder.parent.name, folder.name.replace("seed", "seed ")]), folder, facts, run, minutes, needs
    )


def judges(settings: Settings) -> dict[str, tuple[str, str]]:
    """Return the script that makes the reward and the gold model, and the class of each."""
    return OF_MARKET if settings.data == "synthetic" else JUDGES


def train(script: str, words: Sequence[str], folder: Path, *, policy_dir: Path | None = None) -> None:
    """Train a judge, on a policy's proposals where one is given."""
    proposals = [] if policy_dir is None else ["--policy_dir", str(policy_dir)]
    paper_tables.run_script(script, *words, *proposals, "--output_dir", str(folder / "model"))


def answer(
    settings: Settings,
    arm: Arm,
    made: paper_tables.ProtocolCells,
    start_dir: Path,
    reward_dir: Path,
    gold_dir: Path,
    words: Sequence[str],
    folder: Path,
    *,
    teacher: Teaching,
    continues_page: bool,
) -> None:
    """Align the policy, if the arm does, and keep one number a test request and metric."""
    policy_dir = start_dir
    reward_block, gold_block = (
        {"class_path": judges(settings)[name][1], "init_args": {"path": str(made_in / "model")}}
        for name, made_in in (("reward", reward_dir), ("gold", gold_dir))
    )
    blocks = {"R": reward_block, "gold": gold_block}
    if settings.data == "synthetic":
        blocks["true"] = {"class_path": "reward_models.truth.TruePreference",
                          "init_args": {"path": str(made.data.folder)}}  # fmt: skip
    if arm.arguments is not None:
        policy_dir, taught_by = folder / "policy", teacher.block(folder / "teacher", start_dir)
        only_items = ["--constrained_rollouts", "true"] if trained_over(start_dir) == "children" else []
        paper_tables.run_script(
            "recipes/grpo_sr.py", *words, "--policy_dir", str(start_dir), "--reward_model", json.dumps(taught_by),
            "--gold_model", json.dumps(blocks.get("true", gold_block)), "--output_dir", str(policy_dir), *only_items,
            *arm.arguments,
        )  # fmt: skip
    dataset, catalog = load_dataset(made.data.folder), Catalog.load(made.sids.folder)
    scorers = {name: load_reward_model(block, catalog=catalog) for name, block in blocks.items()}
    recommender: Recommender = load_recommender(
        policy_dir, catalog=catalog, options=BeamOptions(batch_size=128, continue_page=continues_page)
    )
    if arm.is_reranked:
        recommender = Reranker(recommender, scorers["R"], weight=margin_weight(settings))
    examples = dataset.examples("test", max_history=PROTOCOLS[settings.protocol].max_history)
    plan = Plan(ks=KS, beams=max(KS))

    def measure(decoding: Decoding) -> tuple[Columns, dict[str, float]]:
        given = predict(recommender, examples, name=arm.name, decoding=decoding, plan=plan, scorers=scorers)
        columns = measure_requests(given, examples, catalog=catalog, popularity=dataset.popularity, ks=KS)
        of_lists = measure_catalogue(given, n_items=catalog.n_items, ks=KS)
        return columns, {name: interval.mean for name, interval in of_lists.items()}

    columns, of_lists = measure("constrained")
    columns = {name: values for name, values in columns.items() if not name.startswith("HaR")}
    if trained_over(start_dir) == "vocabulary" and not arm.is_reranked:  # (re-ranking only moves invalid SIDs last)
        free, _ = measure("unconstrained")
        columns |= {name: values for name, values in free.items() if name.startswith("HaR")}
    if arm.arguments is not None:
        of_lists["zero_advantage_share"] = float(np.mean(logged(folder, "train/rollout/zero_advantage_share")[1]))
    (folder / "lists.json").write_text(json.dumps(of_lists))
    write_columns(folder, columns)


def margin_weight(settings: Settings) -> float:
    """Return the weight that listwise_kl and the check of the reward have too."""
    return float(config_of(settings)["margin_weight"])


def config_file(settings: Settings) -> Path:
    """Return the file of what all arms of a data set share.

    Raises:
        ConfigError: when a data set has none of this length.
    """
    name = settings.data if settings.length == "short" else f"{settings.data}_{settings.length}"
    file = HERE / f"{name}.yaml"
    if not file.exists():
        having = ", ".join(sorted(path.stem.removesuffix("_long") for path in HERE.glob("*_long.yaml")))
        raise ConfigError(f"length long is not set up for {settings.data}, only for {having}; leave --length out")
    return file


def config_of(settings: Settings) -> dict[str, Any]:
    """Return what all arms of a data set share."""
    return yaml.safe_load(config_file(settings).read_text())


def logged(folder: Path, name: str) -> tuple[list[int], list[float]]:
    """Return the steps and values at which an arm logged a metric."""
    rows = [json.loads(line) for line in (folder / "policy" / "metrics.jsonl").read_text().splitlines()]
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]
