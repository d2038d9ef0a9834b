"""Train the SIM reward model that GRPO-SR will maximise, and measure how far to trust it.

    python recipes/train_reward.py --data_dir runs/demo/data --sid_dir runs/demo/sids --output_dir runs/demo/reward

Reads   the pages of ``prepare.py`` (training and validation pages; test pages stay closed) and the catalogue.
Writes  the model (safetensors, config.json, manifest.json), reward.json, reliability.png, metrics.jsonl, stage.json.
Watch   GAUC against the popularity beside it: inside a page, does the model rank what the user took first?
        ``exposed`` are items shown and left, ``uniform`` and ``popular`` are drawn: the policy proposes all kinds.
        The slope of calibration near 1, and a gate that stops far more random items than positives.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from genrec_rl.config import parse_recipe
from genrec_rl.data.store import Dataset, load_dataset
from genrec_rl.errors import ConfigError
from genrec_rl.rewards.gates import EmbeddingGate, SidPrefixGate, gate_report
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import PROJECT, Tracker, console, finish_stage, require_stage, run_recipe
from reward_models.candidates import NegativeSampler
from reward_models.report import judge, write_report
from reward_models.sim.fit import FitSettings, category_search_keys, fit_sim, halve_users, sid_search_keys
from reward_models.sim.model import SIMConfig


@dataclass
class Settings:
    """Where to read and write; the network's shape is ``SIMConfig``'s and its training ``FitSettings``'."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    output_dir: str = field(default="runs/demo/reward", metadata={"help": "folder to write"})
    search_key: Literal["sid", "category"] = field(
        default="sid", metadata={"help": "what the hard search compares: first SID code, or the category column"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    seed: int = field(default=0, metadata={"help": "of everything random"})
    wandb_project: str = field(default=PROJECT, metadata={"help": "W&B project"})
    wandb_group: str | None = field(default=None, metadata={"help": "W&B group"})


def make_search_keys(settings: Settings, dataset: Dataset, catalog: Catalog) -> np.ndarray:
    """Return what the hard search compares of each item."""
    if settings.search_key == "sid":
        return sid_search_keys(catalog)
    if "category" not in dataset.items.columns:
        raise ConfigError("search_key 'category': items.parquet has no column category; add it or use sid")
    return category_search_keys(dataset.items["category"].to_list())


def main(argv: list[str] | None = None) -> None:
    settings, shape, training = parse_recipe([Settings, SIMConfig, FitSettings], __file__, argv)
    started = time.monotonic()
    data_dir = require_stage(settings.data_dir, stage="prepare", command="python recipes/prepare.py")
    sid_dir = require_stage(settings.sid_dir, stage="build_sids", command="python recipes/build_sids.py",
                            made_from={"data": settings.data_dir})  # fmt: skip
    dataset, catalog = load_dataset(data_dir), Catalog.load(sid_dir)
    catalog.check_items(dataset.items_fingerprint)
    train, valid = (dataset.examples(split, max_history=shape.max_history) for split in ("train", "valid"))
    tuning, held_out = halve_users(valid, seed=settings.seed)
    sampler = NegativeSampler(dataset.popularity, popular_share=training.popular_share)
    config = asdict(settings) | asdict(shape) | asdict(training)
    output_dir = Path(settings.output_dir)
    with Tracker(
        output_dir, job_type="train_reward", config=config,
        project=settings.wandb_project, group=settings.wandb_group,
    ) as tracker:  # fmt: skip
        model = fit_sim(
            train,
            tuning,
            catalog=catalog,
            sampler=sampler,
            search_keys=make_search_keys(settings, dataset, catalog),
            config=shape,
            settings=training,
            seed=settings.seed,
            device=settings.device,
            on_epoch=lambda e: tracker.log({"reward/loss": e.loss, "reward/tuning_gauc": e.gauc}, step=e.number),
        )
        model.save_pretrained(output_dir)
        report = judge(
            model,
            held_out,
            sampler=sampler,
            popularity=dataset.popularity,
            negatives_per_positive=training.negatives_per_positive,
            seed=settings.seed,
        )
        tracker.log(report.flat())
    offered = {"embedding": EmbeddingGate(catalog, examples=tuning), "sid_prefix": SidPrefixGate(catalog)}
    gates = {name: gate_report(gate, held_out, catalog, seed=settings.seed) for name, gate in offered.items()}
    seconds = time.monotonic() - started
    write_report(console, model, report, gates, output_dir, seconds=seconds)
    inputs = {"data": settings.data_dir, "sids": settings.sid_dir}
    finish_stage(output_dir, stage="train_reward", settings=config, inputs=inputs, seconds=seconds)


if __name__ == "__main__":
    run_recipe(main)
