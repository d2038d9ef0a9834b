"""How good are the baselines? Fit them, then ask them about all users of a split.

    python benchmarks/accuracy_baselines.py --data_dir D --sid_dir S --systems cooccurrence sasrec_ce --json FILE

Reads   a prepared data set and a catalogue of semantic ids (recipes/prepare.py, recipes/build_sids.py).
Writes  the table on screen; with --json, all numbers, settings and learning curves.
"""

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table
from transformers import HfArgumentParser

from benchmarks.baselines import BASELINES, SETTINGS
from benchmarks.baselines.training import EpochRecord
from genrec_rl.config import nearest
from genrec_rl.data.split import Split
from genrec_rl.data.store import Dataset, load_dataset
from genrec_rl.decoding.recommender import Recommender
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.baselines import COUNTED, counted_system
from genrec_rl.evaluation.evaluate import Plan, measure_requests, predict
from genrec_rl.metrics import without_seen
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import console, run_recipe, source_commit

METRICS = ("Recall@5", "NDCG@5", "Recall@10", "NDCG@10")
UNSEEN = ("Recall@10", "NDCG@10")
"""Metrics reported also with the user's own items taken out, as many publications do."""
PLAN = Plan(ks=(5, 10), beams=20)


@dataclass
class Settings:
    """What is compared, on what."""

    data_dir: str = field(metadata={"help": "folder of recipes/prepare.py"})
    sid_dir: str = field(metadata={"help": "folder of recipes/build_sids.py"})
    systems: list[str] = field(
        default_factory=lambda: [*COUNTED, *BASELINES], metadata={"help": f"of {', '.join([*COUNTED, *BASELINES])}"}
    )
    split: Literal["valid", "test"] = "test"
    seed: int = 0
    override: str = field(default="{}", metadata={"help": 'JSON of settings to change, as {"epochs": 2}'})
    json: str | None = field(default=None, metadata={"help": "file for all numbers"})


def main() -> None:
    parser = HfArgumentParser(Settings, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings: Settings = parser.parse_args_into_dataclasses()[0]
    torch.set_num_threads(1)
    known = [*COUNTED, *BASELINES]
    for name in settings.systems:
        if name not in known:
            raise ConfigError(f"system '{name}' is none of {', '.join(known)}{nearest(name, known)}")
    dataset, catalog = load_dataset(settings.data_dir), Catalog.load(settings.sid_dir)
    catalog.check_items(dataset.items_fingerprint)
    results = {name: run(name, dataset, catalog, settings) for name in settings.systems}
    table = Table(title=f"{dataset.card.source}, {dataset.card.split}, {settings.split}", title_justify="left")
    columns = (*METRICS, *[f"{metric} unseen" for metric in UNSEEN])
    for column in ("system", *columns, "minutes"):
        short = column.replace("Recall", "R").replace("NDCG", "N").replace(" ", "\n")
        table.add_column(short, justify="left" if column == "system" else "right", overflow="fold")
    for name, result in results.items():
        table.add_row(name, *[f"{result[c]:.4f}" for c in columns], f"{result['fit_seconds'] / 60:.1f}")
    console.print(table)
    if settings.json:
        facts = {"commit": source_commit(), "settings": dataclasses.asdict(settings), "systems": results}
        path = Path(settings.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=1) + "\n")


def run(name: str, dataset: Dataset, catalog: Catalog, settings: Settings) -> dict[str, Any]:
    """Fit a system, and measure it on all requests of the split."""
    begun = time.perf_counter()
    curve: list[dict[str, Any]] = []

    def keep(record: EpochRecord) -> None:
        curve.append(dataclasses.asdict(record))
        console.print(f"{name} {record}", markup=False, highlight=False)

    if name in COUNTED:
        fitted, max_history, chosen = counted_system(name, dataset, catalog).load(), None, {}
    else:
        tuned = override(name, settings.override)
        fitted = BASELINES[name](dataset, catalog, settings=tuned, seed=settings.seed, on_epoch=keep)
        max_history, chosen = tuned.max_history, dataclasses.asdict(tuned)
    fit_seconds = time.perf_counter() - begun
    measured = measure(fitted, name, dataset, catalog, split=settings.split, max_history=max_history)
    return {**measured, "fit_seconds": fit_seconds, "settings": chosen, "curve": curve}


def override(name: str, changes: str) -> Any:
    """Return a baseline's settings with some of them changed.

    Raises:
        ConfigError: for a setting that it does not have.
    """
    values = json.loads(changes)
    known = [f.name for f in dataclasses.fields(SETTINGS[name])]
    for key in values:
        if key not in known:
            raise ConfigError(f"{name} has no setting '{key}'{nearest(key, known)}; known: {', '.join(known)}")
    return replace(SETTINGS[name], **values)


def measure(
    fitted: Recommender, name: str, dataset: Dataset, catalog: Catalog, *, split: Split, max_history: int | None
) -> dict[str, float]:
    """Return the mean of each metric over all requests of a split."""
    examples = list(dataset.examples(split, max_history=max_history))
    answers = predict(fitted, examples, name=name, decoding="constrained", plan=PLAN, scorers={})
    values = measure_requests(answers, examples, catalog=catalog, popularity=dataset.popularity, ks=PLAN.ks)
    means = {metric: float(values[metric].mean()) for metric in METRICS}
    unseen = replace(
        answers,
        rows_PK=without_seen(answers.rows_PK, [e.context.seen for e in dataset.examples(split, max_history=None)]),
    )
    values = measure_requests(unseen, examples, catalog=catalog, popularity=dataset.popularity, ks=PLAN.ks)
    return means | {f"{metric} unseen": float(values[metric].mean()) for metric in UNSEEN}


if __name__ == "__main__":
    run_recipe(main)
