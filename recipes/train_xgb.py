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

from genrec_rl.config import parse_recipe, read_block
from genrec_rl.data.store import Dataset
from genrec_rl.evaluation.proposals import ProposalSettings, propose
from genrec_rl.rewards.components import load_reward_model
from genrec_rl.sft.targets import Requests, training_requests
from genrec_rl.tracking import PROJECT, Tracker, run_recipe
from genrec_rl.types import Example
from reward_models.candidates import LabelledCandidates, NegativeSampler, label_candidates, label_proposals
from reward_models.report import judge
from reward_models.sim.fit import category_search_keys
from reward_models.stage import Inputs, finish
from reward_models.xgb.attributes import ATTRIBUTES, attribute_vectors
from reward_models.xgb.features import NO_CATEGORY
from reward_models.xgb.fit import FitSettings, fit_xgb


@dataclass
class Settings:
    """Where to read and write, and what is learnt from; the trees' training is ``FitSettings``'."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    output_dir: str = field(default="runs/demo/xgb", metadata={"help": "folder to write"})
    requests: Requests = field(
        default="page", metadata={"help": "a request is a page, or (leave-one-out) each next item"}
    )
    scorer: dict | str | None = field(
        default=None, metadata={"help": "{class_path, init_args: {path}} of a reward model whose score trees see too"}
    )
    trusted_packages: list[str] = field(default_factory=list, metadata={"help": "further packages to load it from"})
    max_requests: int = field(default=10_000, metadata={"help": "training requests, drawn at random"})
    negatives_per_positive: int = field(default=5, metadata={"help": "drawn items per positive, without a policy"})
    popular_share: float = field(default=0.5, metadata={"help": "share of them drawn by popularity"})
    seed: int = field(default=0, metadata={"help": "of everything random"})
    wandb_project: str = field(default=PROJECT, metadata={"help": "W&B project"})
    wandb_group: str | None = field(default=None, metadata={"help": "W&B group"})


def main(argv: list[str] | None = None) -> None:
    settings, training, policy = parse_recipe([Settings, FitSettings, ProposalSettings], __file__, argv)
    started = time.monotonic()
    inputs = Inputs.read(settings.data_dir, settings.sid_dir)
    dataset, catalog = inputs.dataset, inputs.catalog
    taught = draw_requests(dataset, settings)
    tuning, held_out = inputs.halves(max_history=None, seed=settings.seed)
    sampler = NegativeSampler(dataset.popularity, popular_share=settings.popular_share)
    config = asdict(settings) | asdict(training) | asdict(policy)
    output_dir = Path(settings.output_dir)
    trusted = settings.trusted_packages
    scorer = None
    if read_block(settings.scorer, key="scorer") is not None:
        scorer = load_reward_model(settings.scorer, catalog=catalog, trusted_packages=trusted, key="scorer")
    candidates = label(settings, policy, inputs, sampler, taught, tuning, held_out)
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
            attributes=attributes_of(dataset),
            settings=training,
            seed=settings.seed,
            scorer=scorer,
        )
        model.save_pretrained(output_dir)
        report = judge(
            model,
            held_out,
            sampler=sampler,
            popularity=dataset.popularity,
            negatives_per_positive=settings.negatives_per_positive,
            seed=settings.seed,
            proposed=candidates[2] if policy.policy_dir else None,
        )
        tracker.log(report.flat() | {f"reward/gain/{name}": share for name, share in model.importance.items()})
    finish(model, report, inputs, output_dir=output_dir, config=config,
           further_inputs=policy.inputs, started=started)  # fmt: skip


def draw_requests(dataset: Dataset, settings: Settings) -> list[Example]:
    """Draw the training requests that are learnt from."""
    requests = training_requests(dataset, settings.requests, max_history=None)
    drawn = np.random.default_rng(settings.seed).permutation(len(requests))[: settings.max_requests]
    return [requests[int(i)] for i in np.sort(drawn)]


def label(
    settings: Settings,
    policy: ProposalSettings,
    inputs: Inputs,
    sampler: NegativeSampler,
    *parts: Sequence[Example],
) -> list[LabelledCandidates]:
    """Label the candidates of each part: what the policy proposes, or else exposed and drawn items."""
    if policy.policy_dir is None:
        rng = np.random.default_rng([settings.seed, 1])
        n_drawn = settings.negatives_per_positive
        return [label_candidates(p, sampler=sampler, rng=rng, negatives_per_positive=n_drawn) for p in parts]
    found = propose(policy, parts, catalog=inputs.catalog, made_from=inputs.folders)
    return [label_proposals(part, rows, catalog=inputs.catalog) for part, rows in zip(parts, found, strict=True)]


def categories_of(dataset: Dataset) -> np.ndarray:
    """Number the items' categories; none of them has one where the table lacks the column."""
    if "category" not in dataset.items.columns:
        return np.full(dataset.n_items, NO_CATEGORY)
    names = dataset.items["category"].to_list()
    return np.where([name is None for name in names], NO_CATEGORY, category_search_keys(names))


def attributes_of(dataset: Dataset) -> np.ndarray | None:
    """Return vectors of the items' attributes, or None where the table lacks the column."""
    if ATTRIBUTES not in dataset.items.columns:
        return None
    return attribute_vectors(dataset.items[ATTRIBUTES].to_list())


if __name__ == "__main__":
    run_recipe(main)
