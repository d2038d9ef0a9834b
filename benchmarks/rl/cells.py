"""The cells of rl_gain.py: an SFT policy, its judges, and every arm's policy with its answers, once each.

An arm starts from SFT's policy or goes on from another arm's, and is taught by the reward, by the gold model, by
both, or by a reward of its own. What it was made with stands in its cell's key.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Int

from benchmarks import paper_tables
from benchmarks.rl.arms import ARMS, Arm
from benchmarks.tables.cells import Cell
from benchmarks.tables.measure import Columns, write_columns
from benchmarks.tables.protocols import PROTOCOLS
from benchmarks.tables.systems import TABLE_1, TREES, SystemSpec
from genrec_rl.data.store import load_dataset
from genrec_rl.decoding.recommender import Recommender
from genrec_rl.decoding.rerank import Reranker
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.evaluate import (
    Decoding,
    Plan,
    Predictions,
    measure_catalogue,
    measure_requests,
    predict,
)
from genrec_rl.evaluation.policies import BeamOptions, load_recommender, trained_over
from genrec_rl.evaluation.predictions import PredictionsWriter
from genrec_rl.metrics import hit_rate, ndcg, without_seen
from genrec_rl.rewards.components import load_reward_model
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Example

HERE = Path(__file__).parent
KS = (1, 10, 50)
Block = dict[str, Any]
"""A class_path and its init_args, as YAML has them."""
MINUTES = {"reward": 8.0, "gold": 5.0, "arm": 12.0, "long": 75.0}
TREES_SCRIPT, SIM_SCRIPT = "recipes/train_xgb.py", "recipes/train_reward.py"
JUDGES = {"reward": (TREES_SCRIPT, "reward_models.xgb.XGB"), "gold": (SIM_SCRIPT, "reward_models.sim.SIM")}
ENSEMBLE = "reward_models.ensemble.Ensemble"
EXCLUDED = {"exclude_seen": "all that was taken, liked or not"}
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
    exclude_seen: bool = field(
        default=False, metadata={"help": "no proposal, rollout or answer holds what the user has taken already"}
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
    """The reward that teaches an arm: a cell's, or made by a script in the arm's own folder.

    ``is_of_start`` is told the policy that the arm starts from, and learns from its proposals.
    """

    class_path: str
    folder: Path | None = None
    script: str | None = None
    words: tuple[str, ...] = ()
    is_of_start: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What a reward of the arm's own is made with, for its cell's key."""
        recipe = "" if self.script is None else Path(self.script).with_suffix(".yaml").read_text()
        return {"class_path": self.class_path, "words": list(self.words), "recipe": recipe}

    def block(self, folder: Path, start_dir: Path) -> Block:
        """Return what a recipe's YAML calls ``reward_model``; make it first, where it is the arm's own."""
        if self.script is not None:
            proposals = ["--policy_dir", str(start_dir)] if self.is_of_start else []
            train(self.script, [*self.words, *proposals], folder)
        return block_of(self.class_path, self.folder or folder)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all arms of a seed share: what was made before them, and what each recipe is told."""

    made: paper_tables.ProtocolCells
    sft: Cell
    reward: Cell
    gold: Cell
    words: tuple[str, ...]
    continues_page: bool
    teachers: dict[str, Teaching]


def seed_cells(settings: Settings, seed: int) -> SeedCells:
    """Return one seed's cells, without arms whose reward the data have no use for, or that draw what is excluded."""
    name = settings.policy or {"pages": "genrec", "loo": "genrec_wide"}[settings.protocol]
    specs = [spec for spec in TABLE_1 if spec.name == name and spec.kind == "policy"]
    if not specs:
        raise ConfigError(f"policy '{name}' is no policy of Table 1")
    table = paper_tables.completed(
        paper_tables.Settings(data=settings.data, input=settings.input, sids=settings.sids, seeds=[seed])
    )
    made = paper_tables.protocol_cells(table, settings.protocol, specs)
    usual = paper_tables.RL_RUNS / settings.data / settings.protocol / table.sids / name
    root = usual.with_name(f"{name}_unseen") if settings.exclude_seen else usual
    shared = shared_by_arms(settings, seed, made, made.answers[name, seed], (usual, root), specs[0])
    arms: dict[str, Cell] = {}
    for arm in ARMS.values():
        if arm.taught_by in shared.teachers and not (settings.exclude_seen and arm.draws_samples):
            after = arms[arm.after] if arm.after else None
            arms[arm.name] = arm_cell(settings, seed, arm, shared, root, after=after)
    return SeedCells([made.data, made.sids, shared.sft], shared.reward, shared.gold, arms)


def shared_by_arms(
    settings: Settings,
    seed: int,
    made: paper_tables.ProtocolCells,
    sft: Cell,
    roots: tuple[Path, Path],
    spec: SystemSpec,
) -> Shared:
    """Return the judges' cells, and what every arm's recipes are told.

    ``roots`` are the folders of judges that learn from the log, and of those that learn from proposals.
    """
    stages = ["--data_dir", str(made.data.folder), "--sid_dir", str(made.sids.folder), "--seed", str(seed)]
    is_next_item = PROTOCOLS[settings.protocol].is_next_item
    requests = ["--requests", "running" if is_next_item else "page"]
    continues_page = spec.continues_page and is_next_item
    if continues_page:
        requests += ["--continue_page", "true"]
    objective = TREES if settings.data == "beauty" else ("--objective", "rank:ndcg")
    of_trees = [*objective, *requests, *(["--exclude_seen", "true"] * settings.exclude_seen)]
    of_sft = ["--policy_dir", str(sft.folder / "policy"), *of_trees]
    facts = {"sft": sft.key}
    of_proposals = facts | {"words": of_sft} | (EXCLUDED if settings.exclude_seen else {})
    made_by = {
        TREES_SCRIPT: (roots[1], of_proposals, partial(train, TREES_SCRIPT, [*stages, *of_sft])),
        SIM_SCRIPT: (roots[0], facts, partial(train, SIM_SCRIPT, stages)),
    }
    reward, gold = (
        Cell(f"{judge}, seed {seed}", root / judge / f"seed{seed}", made_with, run, MINUTES[judge], (sft.folder,))
        for judge in ("reward", "gold")
        for root, made_with, run in [made_by[judges(settings)[judge][0]]]
    )
    script, reward_class = judges(settings)["reward"]
    members = ("--members", *(str(judge.folder / "model") for judge in (reward, gold)), "--kappa", "0.5")
    teachers = {
        "reward": Teaching(reward_class, reward.folder),
        "gold": Teaching(judges(settings)["gold"][1], gold.folder),
        "ensemble": Teaching(ENSEMBLE, script="recipes/combine_rewards.py", words=(*stages, *members)),
    }
    if script == TREES_SCRIPT:  # (the market's SIM learns from no proposals that could be renewed)
        teachers["refreshed"] = Teaching(reward_class, None, script, (*stages, *of_trees), is_of_start=True)
    requests += ["--exclude_seen", str(settings.exclude_seen).lower()]
    words = ("--config", str(config_file(settings)), *stages, *requests)
    return Shared(made, sft, reward, gold, words, continues_page, teachers)


def arm_cell(settings: Settings, seed: int, arm: Arm, shared: Shared, root: Path, *, after: Cell | None) -> Cell:
    """Return an arm's cell; ``after`` is that of the arm it goes on from."""
    facts: dict[str, Any] = {"sft": shared.sft.key, "reward": shared.reward.key, "gold": shared.gold.key}
    facts |= {"arguments": arm.arguments}
    if settings.exclude_seen:
        facts |= EXCLUDED
    if arm.arguments is not None:
        facts |= {"config": config_file(settings).read_text()}
    if arm.is_reranked:
        facts |= {"margin_weight": margin_weight(settings)}
    if after is not None:
        facts |= {"after": after.key}
    if arm.taught_by != "reward":
        facts |= {"taught_by": shared.teachers[arm.taught_by].facts}
    is_long = settings.length == "long" and (arm.arguments is not None or arm.is_reranked)
    title = f"{arm.name}_long" if is_long else arm.name
    minutes = MINUTES["long" if is_long and arm.arguments is not None else "arm"]
    needs = (shared.reward.folder, shared.gold.folder, *((after.folder,) if after else ()))
    run = partial(answer, settings, arm, shared, (after or shared.sft).folder / "policy")
    return Cell(f"{title}, seed {seed}", root / title / f"seed{seed}", facts, run, minutes, needs)


def judges(settings: Settings) -> dict[str, tuple[str, str]]:
    """Return the script that makes the reward and the gold model, and the class of each."""
    return OF_MARKET if settings.data == "synthetic" else JUDGES


def block_of(class_path: str, folder: Path) -> Block:
    """Return what a recipe's YAML says of a reward model."""
    return {"class_path": class_path, "init_args": {"path": str(folder / "model")}}


def train(script: str, words: Sequence[str], folder: Path) -> None:
    """Train a judge."""
    paper_tables.run_script(script, *words, "--output_dir", str(folder / "model"))


def scorer_blocks(settings: Settings, shared: Shared) -> dict[str, Block]:
    """Return what answers are measured by: the reward (R), gold, and on the market the truth."""
    classes = judges(settings)
    blocks = {"R": block_of(classes["reward"][1], shared.reward.folder)}
    blocks["gold"] = block_of(classes["gold"][1], shared.gold.folder)
    if settings.data == "synthetic":
        blocks["true"] = {"class_path": "reward_models.truth.TruePreference",
                          "init_args": {"path": str(shared.made.data.folder)}}  # fmt: skip
    return blocks


def watcher(arm: Arm, blocks: Mapping[str, Block]) -> Block | None:
    """Return the judge to watch while an arm trains: the truth where it is known, else one that teaches nothing."""
    if "true" in blocks:
        return blocks["true"]
    return {"gold": blocks["R"], "ensemble": None}.get(arm.taught_by, blocks["gold"])


def arm_words(
    arm: Arm, shared: Shared, blocks: Mapping[str, Block], taught_by: Block, *, start_dir: Path, policy_dir: Path
) -> list[str]:
    """Return what recipes/grpo_sr.py is told."""
    watched = watcher(arm, blocks)
    words = [*shared.words, "--policy_dir", str(start_dir), "--output_dir", str(policy_dir)]
    words += ["--reward_model", json.dumps(taught_by)]
    words += ["--gold_model", "none" if watched is None else json.dumps(watched)]
    if trained_over(start_dir) == "children":
        words += ["--constrained_rollouts", "true"]
    return [*words, *(arm.arguments or ())]


def answer(settings: Settings, arm: Arm, shared: Shared, start_dir: Path, folder: Path) -> None:
    """Align the policy, if the arm does, and keep one number a test request and metric."""
    policy_dir, blocks = start_dir, scorer_blocks(settings, shared)
    if arm.arguments is not None:
        policy_dir = folder / "policy"
        taught_by = shared.teachers[arm.taught_by].block(folder / "teacher", start_dir)
        words = arm_words(arm, shared, blocks, taught_by, start_dir=start_dir, policy_dir=policy_dir)
        paper_tables.run_script("recipes/grpo_sr.py", *words)
    dataset, catalog = load_dataset(shared.made.data.folder), Catalog.load(shared.made.sids.folder)
    scorers = {name: load_reward_model(block, catalog=catalog) for name, block in blocks.items()}
    options = BeamOptions(batch_size=128, continue_page=shared.continues_page, exclude_seen=settings.exclude_seen)
    recommender: Recommender = load_recommender(policy_dir, catalog=catalog, options=options)
    if arm.is_reranked:
        recommender = Reranker(recommender, scorers["R"], weight=margin_weight(settings))
    whole = dataset.examples("test", max_history=None)
    max_history = PROTOCOLS[settings.protocol].max_history
    # What is excluded is the whole history, of which policies and judges read the newest by themselves.
    examples = whole if settings.exclude_seen else dataset.examples("test", max_history=max_history)
    plan = Plan(ks=KS, beams=max(KS))

    def measure(decoding: Decoding) -> tuple[Predictions, Columns]:
        given = predict(recommender, examples, name=arm.name, decoding=decoding, plan=plan, scorers=scorers)
        writer.write(given)
        return given, measure_requests(given, examples, catalog=catalog, popularity=dataset.popularity, ks=KS)

    with PredictionsWriter(folder / "predictions.parquet", examples, item_ids=dataset.item_ids) as writer:
        given, columns = measure("constrained")
        columns = {name: values for name, values in columns.items() if not name.startswith("HaR")}
        if not settings.exclude_seen:
            columns |= measure_unseen(given.rows_PK, whole)
        of_lists = measure_catalogue(given, n_items=catalog.n_items, ks=KS)
        if trained_over(start_dir) == "vocabulary" and not arm.is_reranked:  # (re-ranking only moves invalid SIDs)
            _, free = measure("unconstrained")
            columns |= {name: values for name, values in free.items() if name.startswith("HaR")}
    lists = {name: interval.mean for name, interval in of_lists.items()}
    if arm.arguments is not None:
        lists["zero_advantage_share"] = float(np.mean(logged(folder, "train/rollout/zero_advantage_share")[1]))
    (folder / "lists.json").write_text(json.dumps(lists))
    write_columns(folder, columns)


def measure_unseen(rows_PK: Int[np.ndarray, "P K"], examples: Sequence[Example]) -> Columns:
    """Return accuracy once what users have taken is left out of the answers, which are not refilled."""
    rows_PK = without_seen(rows_PK, [example.context.seen for example in examples])
    positives = [example.positives for example in examples]
    return {"HR@10/unseen": hit_rate(rows_PK, positives, k=10), "NDCG@10/unseen": ndcg(rows_PK, positives, k=10)}


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
