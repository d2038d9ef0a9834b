"""Train the SIM reward model that GRPO-SR will maximise, and measure how far to trust it.

    python recipes/train_reward.py --data_dir runs/demo/data --sid_dir runs/demo/sids --output_dir runs/demo/reward
    python recipes/train_reward.py --policy_dir runs/demo/sft --output_dir runs/demo/reward_beams

Reads   the pages of ``prepare.py`` (training and validation pages; test pages stay closed), the catalogue, and with
        ``policy_dir`` a policy, whose own proposals SIM then learns to tell apart too.
Writes  the model (safetensors, config.json, manifest.json), reward.json, reliability.png, metrics.jsonl, stage.json.
Watch   GAUC against the popularity beside it: inside a page, does the model rank what the user took first?
        ``exposed`` are items shown and left, ``uniform`` and ``popular`` are drawn, ``proposed`` are a policy's own:
        RL asks about those, and a model that saw logs alone extrapolates there.
        The slope of calibration near 1, and a gate that stops far more random items than positives.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from genrec_rl.config import parse_recipe
from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.proposals import ProposalSettings, propose
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import PROJECT, Tracker, run_recipe
from genrec_rl.types import NO_ITEM
from reward_models.candidates import LabelledCandidates, NegativeSampler, label_proposals
from reward_models.report import judge
from reward_models.sim.fit import FitSettings, Proposals, category_search_keys, fit_sim, sid_search_keys
from reward_models.sim.model import SIMConfig
from reward_models.stage import Inputs, finish


@dataclass
class Settings:
    """Where to read and write; the network's shape is ``SIMConfig``'s and its training ``FitSettings``'."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    output_dir: str = field(default="runs/demo/reward", metadata={"help": "folder to write"})
    search_key: Literal["sid", "category"] = field(
        default="sid", metadata={"help": "what the hard search compares: first SID code, or the category column"}
    )
    learn_from: Literal["log", "log+proposed", "proposed"] | None = field(
        default=None,
        metadata={"help": "exposed and drawn items, a policy's proposals, or both | none: both if there is a policy"},
    )
    max_requests: int = field(default=10_000, metadata={"help": "training pages that a policy is asked, at random"})
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
    schemas = [Settings, SIMConfig, FitSettings, ProposalSettings]
    settings, shape, training, policy = parse_recipe(schemas, __file__, argv)
    started = time.monotonic()
    learns = what_to_learn(settings, policy)
    inputs = Inputs.read(settings.data_dir, settings.sid_dir)
    dataset, catalog = inputs.dataset, inputs.catalog
    train = dataset.examples("train", max_history=shape.max_history)
    tuning, held_out = inputs.halves(max_history=shape.max_history, seed=settings.seed)
    sampler = NegativeSampler(dataset.popularity, popular_share=training.popular_share)
    search_keys = make_search_keys(settings, dataset, catalog)
    n_asked = 0 if learns == "log" else settings.max_requests
    proposed = label_all(settings, policy, inputs, n_asked=n_asked) if policy.policy_dir else None
    config = asdict(settings) | asdict(shape) | asdict(training) | asdict(policy) | {"learn_from": learns}
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
            search_keys=search_keys,
            config=shape,
            settings=training,
            seed=settings.seed,
            device=settings.device,
            on_epoch=lambda e: tracker.log({"reward/loss": e.loss, "reward/tuning_gauc": e.gauc}, step=e.number),
            proposed=None if learns == "log" else Proposals(*proposed[:2], alone=learns == "proposed"),
        )
        model.save_pretrained(output_dir)
        report = judge(
            model,
            held_out,
            sampler=sampler,
            popularity=dataset.popularity,
            negatives_per_positive=training.negatives_per_positive,
            seed=settings.seed,
            proposed=proposed[2] if proposed else None,
            learnt_proposals=learns != "log",
        )
        tracker.log(report.flat())
    finish(model, report, inputs, output_dir=output_dir, config=config,
           further_inputs=policy.inputs, started=started)  # fmt: skip


def what_to_learn(settings: Settings, policy: ProposalSettings) -> str:
    """Return ``learn_from`` as it is meant."""
    if settings.max_requests < 1:
        raise ConfigError(f"max_requests {settings.max_requests} must be at least 1")
    if policy.policy_dir is None:
        if settings.learn_from not in (None, "log"):
            raise ConfigError(f"learn_from '{settings.learn_from}' needs a policy_dir whose proposals are learnt")
        return "log"
    return settings.learn_from or "log+proposed"


def label_all(
    settings: Settings, policy: ProposalSettings, inputs: Inputs, *, n_asked: int
) -> list[LabelledCandidates]:
    """Label what the policy proposes for training pages (at most ``n_asked``), tuning and held-out pages."""
    train = inputs.dataset.examples("train", max_history=None)  # the policy and SIM cut for themselves
    asked = np.random.default_rng([settings.seed, 1]).permutation(len(train))[:n_asked]
    tuning, held_out = inputs.halves(max_history=None, seed=settings.seed)
    parts = [[train[int(i)] for i in asked], tuning, held_out]
    taught, *judged = propose(policy, parts, catalog=inputs.catalog, made_from=inputs.folders)
    rows_PG = np.full((len(train), taught.shape[1]), NO_ITEM)
    rows_PG[asked] = taught
    pages = [[train[i] for i in range(len(train))], tuning, held_out]
    pairs = zip(pages, [rows_PG, *judged], strict=True)
    return [label_proposals(part, rows, catalog=inputs.catalog) for part, rows in pairs]


if __name__ == "__main__":
    run_recipe(main)
