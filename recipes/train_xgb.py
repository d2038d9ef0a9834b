"""Train gradient-boosted trees as the reward model: seconds instead of minutes, and features that people can read.

    python recipes/train_xgb.py --data_dir runs/demo/data --sid_dir runs/demo/sids --output_dir runs/demo/xgb
    python recipes/train_xgb.py --policy_dir runs/demo/sft --objective rank:ndcg --output_dir runs/demo/xgb

Reads   the pages of ``prepare.py`` (training and validation pages; test pages stay closed), the catalogue, and with
        ``policy_dir`` a policy, whose own proposals the trees then learn to order.
Writes  the model (model.ubj, tables.safetensors, config.json, manifest.json), reward.json, reliability.png,
        metrics.jsonl, stage.json.
Watch   GAUC against the popularity beside it, above all of ``proposed``: inside a policy's own beam, does the model
        put what the user took first?
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from genrec_rl.config import parse_recipe
from genrec_rl.data.store import Dataset, load_dataset
from genrec_rl.rewards.gates import EmbeddingGate, SidPrefixGate, gate_report
from genrec_rl.sft.targets import Requests, training_requests
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import PROJECT, Tracker, check_unseen_valid, console, finish_stage, require_stage, run_recipe
from genrec_rl.types import Example
from reward_models.candidates import LabelledCandidates, NegativeSampler, label_candidates, label_proposals
from reward_models.report import judge, write_report
from reward_models.sim.fit import category_search_keys, halve_users
from reward_models.xgb.features import NO_CATEGORY
from reward_models.xgb.fit import FitSettings, fit_xgb


@dataclass
class Settings:
    """Where to read and write, and what is learnt from; the trees' training is ``FitSettings``'."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    policy_dir: str | None = field(
        default=None, metadata={"help": "policy whose proposals are learnt; none: exposed and drawn items"}
    )
    output_dir: str = field(default="runs/demo/xgb", metadata={"help": "folder to write"})
    requests: Requests = field(
        default="page", metadata={"help": "a request is a page, or (leave-one-out) each next item"}
    )
    max_requests: int = field(default=10_000, metadata={"help": "training requests, drawn at random"})
    beams: int = field(default=50, metadata={"help": "proposals of a request"})
    negatives_per_positive: int = field(default=5, metadata={"help": "drawn items per positive, without a policy"})
    popular_share: float = field(default=0.5, metadata={"help": "share of them drawn by popularity"})
    seed: int = field(default=0, metadata={"help": "of everything random"})
    wandb_project: str = field(default=PROJECT, metadata={"help": "W&B project"})
    wandb_group: str | None = field(default=None, metadata={"help": "W&B group"})


def main(argv: list[str] | None = None) -> None:
    settings, training = parse_recipe([Settings, FitSettings], __file__, argv)
    started = time.monotonic()
    data_dir = require_stage(settings.data_dir, stage="prepare", command="python recipes/prepare.py")
    sid_dir = require_stage(settings.sid_dir, stage="build_sids", command="python recipes/build_sids.py",
                            made_from={"data": settings.data_dir})  # fmt: skip
    dataset, catalog = load_dataset(data_dir), Catalog.load(sid_dir)
    catalog.check_items(dataset.items_fingerprint)
    taught = draw_requests(dataset, settings)
    tuning, held_out = halve_users(dataset.examples("valid", max_history=None), seed=settings.seed)
    sampler = NegativeSampler(dataset.popularity, popular_share=settings.popular_share)
    config = asdict(settings) | asdict(training)
    output_dir = Path(settings.output_dir)
    candidates = label(settings, catalog, sampler, taught, tuning, held_out)
    with Tracker(
        output_dir, job_type="train_xgb", config=config,
        project=settings.wandb_project, group=settings.wandb_group,
    ) as tracker:  # fmt: skip
        model = fit_xgb(
            dataset.examples("train", max_history=None),
            candidates[0],
            candidates[1],
            catalog=catalog,
            categories=categories_of(dataset),
            settings=training,
            seed=settings.seed,
        )
        model.save_pretrained(output_dir)
        report = judge(
            model,
            held_out,
            sampler=sampler,
            popularity=dataset.popularity,
            negatives_per_positive=settings.negatives_per_positive,
            seed=settings.seed,
            proposed=candidates[2] if settings.policy_dir else None,
        )
        tracker.log(report.flat() | {f"reward/gain/{name}": share for name, share in model.importance.items()})
    offered = {"embedding": EmbeddingGate(catalog, examples=tuning), "sid_prefix": SidPrefixGate(catalog)}
    gates = {name: gate_report(gate, held_out, catalog, seed=settings.seed) for name, gate in offered.items()}
    seconds = time.monotonic() - started
    write_report(console, model, report, gates, output_dir, seconds=seconds)
    inputs = {"data": settings.data_dir, "sids": settings.sid_dir}
    inputs |= {"policy": settings.policy_dir} if settings.policy_dir else {}
    finish_stage(output_dir, stage="train_reward", settings=config, inputs=inputs, seconds=seconds)


def draw_requests(dataset: Dataset, settings: Settings) -> list[Example]:
    """Draw the training requests that are learnt from."""
    requests = training_requests(dataset, settings.requests, max_history=None)
    drawn = np.random.default_rng(settings.seed).permutation(len(requests))[: settings.max_requests]
    return [requests[int(i)] for i in np.sort(drawn)]


def label(
    settings: Settings, catalog: Catalog, sampler: NegativeSampler, *parts: Sequence[Example]
) -> list[LabelledCandidates]:
    """Label the candidates of each part: what the policy proposes, or else exposed and drawn items."""
    rng = np.random.default_rng([settings.seed, 1])
    if settings.policy_dir is None:
        n_drawn = settings.negatives_per_positive
        return [label_candidates(p, sampler=sampler, rng=rng, negatives_per_positive=n_drawn) for p in parts]
    from genrec_rl.evaluation.policies import BeamOptions, load_recommender

    policy_dir = require_stage(settings.policy_dir, stage="sft", command="accelerate launch recipes/sft.py",
                               made_from={"data": settings.data_dir, "sids": settings.sid_dir})  # fmt: skip
    check_unseen_valid(policy_dir)
    recommender = load_recommender(policy_dir, catalog=catalog, options=BeamOptions(batch_size=128))
    labelled = []
    for part in parts:
        proposed = recommender.recommend([example.context for example in part], k=settings.beams, constrained=True)
        labelled.append(label_proposals(part, proposed.rows_PG.numpy(), catalog=catalog))
    return labelled


def categories_of(dataset: Dataset) -> np.ndarray:
    """Number the items' categories; none of them has one where the table lacks the column."""
    if "category" not in dataset.items.columns:
        return np.full(dataset.n_items, NO_CATEGORY)
    names = dataset.items["category"].to_list()
    return np.where([name is None for name in names], NO_CATEGORY, category_search_keys(names))


if __name__ == "__main__":
    run_recipe(main)
