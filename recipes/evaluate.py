"""Stage 6: compare policies with each other and with honest bars, on the same held-out pages.

    python recipes/evaluate.py --policies sft=runs/demo/sft grpo=runs/demo/grpo grpo_sr=runs/demo/grpo_sr

Reads   data, catalogue, policies, and a reward model for R@K (``--reward_model none`` leaves it out).
Writes  eval.json, predictions.parquet, table.md, accuracy.png, validity.png and, for policies trained by RL,
        training.png, into --output_dir.
Watch   the paired differences, not the single numbers: two intervals may overlap where the difference is clear.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from genrec_rl.config import parse_recipe
from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.baselines import baseline_systems
from genrec_rl.evaluation.evaluate import Plan, System, describe, evaluate
from genrec_rl.evaluation.plots import plot_all
from genrec_rl.evaluation.policies import (
    BeamOptions,
    open_catalogue,
    parse_policies,
    policy_systems,
    reranked_systems,
    valued_systems,
)
from genrec_rl.evaluation.predictions import PredictionsWriter
from genrec_rl.evaluation.report import Samples, as_row, print_report, write_report
from genrec_rl.rewards.components import load_reward_model, reward_block
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import (
    PROJECT,
    Tracker,
    check_made_from,
    check_unseen_valid,
    console,
    finish_stage,
    run_recipe,
)


@dataclass
class Settings:
    """What is compared, on which pages, and how."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    policies: list[str] = field(default_factory=list, metadata={"help": "name=DIR ..., the starting policy first"})
    output_dir: str = field(default="runs/demo/eval", metadata={"help": "folder to write"})
    reward_model: dict | str | None = field(
        default=None, metadata={"help": "{class_path, init_args: {path}} or none"}
    )
    rerank: float | None = field(
        default=None, metadata={"help": "weight of the reward's log-odds: adds each policy re-ranked by reward_model"}
    )
    rerank_value: float | None = field(
        default=None,
        metadata={"help": "weight of log1p of the expected value: adds each policy with value tokens re-ranked"},
    )
    reward_dir: str | None = field(default=None, metadata={"help": "folder to load reward_model from, over its path"})
    trusted_packages: list[str] = field(default_factory=list, metadata={"help": "further packages to load from"})
    split: Literal["test", "valid"] = field(default="test", metadata={"help": "held-out pages"})
    baselines: bool = field(default=True, metadata={"help": "add popularity and co-occurrence"})
    ks: list[int] = field(default_factory=lambda: [1, 10, 50], metadata={"help": "ranks to report"})
    beams: int = field(default=50, metadata={"help": "items asked of every system"})
    batch_size: int = field(default=64, metadata={"help": "requests decoded at once"})
    beam_widths: list[int] | None = field(default=None, metadata={"help": "beams of each level; none: always beams"})
    per_beam: int | None = field(
        default=None, metadata={"help": "continuations of one beam that go on, its best; none: no cut"}
    )
    normalisation: Literal["vocabulary", "level", "children"] | None = field(
        default=None,
        metadata={"help": "probabilities over all tokens, a level's codes, real items' | none: as trained"},
    )
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "of the weights; bfloat16 is faster where the machine computes in it"}
    )
    continue_page: bool = field(
        default=False, metadata={"help": "policies read the request's own day as the beginning of their answer"}
    )
    exclude_seen: bool = field(
        default=False, metadata={"help": "no system answers with what the request's user has taken"}
    )
    max_history: int | None = field(
        default=None,
        metadata={"help": "newest history items shown; none: all"},
    )
    max_requests: int | None = field(default=None, metadata={"help": "score fewer requests: a smoke test only"})
    bootstrap_draws: int = field(default=1000, metadata={"help": "resamples of users behind the intervals"})
    seed: int = field(default=0, metadata={"help": "of the bootstrap and of the sampled users"})
    wandb_project: str = field(default=PROJECT, metadata={"help": "W&B project"})
    wandb_group: str | None = field(default=None, metadata={"help": "W&B group"})


def choose_systems(
    settings: Settings,
    dataset: Dataset,
    catalog: Catalog,
    policies: Mapping[str, Path],
    options: BeamOptions,
    scorers: Mapping[str, RewardModel],
) -> list[System]:
    """Return the baselines, the policies, and the policies re-ranked, as asked for."""
    asked = policy_systems(policies, catalog, options)
    bars = baseline_systems(dataset, catalog, exclude_seen=settings.exclude_seen) if settings.baselines else []
    systems = [*bars, *asked]
    if settings.rerank is not None:
        systems += reranked_systems(asked, scorers["R"], weight=settings.rerank)
    if settings.rerank_value is not None:
        systems += valued_systems(policies, asked, weight=settings.rerank_value)
    return systems


def main(argv: list[str] | None = None) -> None:
    (settings,) = parse_recipe([Settings], __file__, argv)
    started, output_dir = time.time(), Path(settings.output_dir)
    for name in ("max_requests", "max_history"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise ConfigError(f"{name} is {value}; at least 1, or leave it out for all")
    if settings.exclude_seen and settings.max_history is not None:
        raise ConfigError(
            f"exclude_seen would leave older items in than the newest {settings.max_history} (max_history); leave "
            "max_history out, since policies cut histories for themselves, or set exclude_seen: false"
        )
    policies, block = parse_policies(settings.policies), reward_block(settings.reward_model, settings.reward_dir)
    plan = Plan(tuple(settings.ks), settings.beams, settings.bootstrap_draws, settings.seed)
    widths = None if settings.beam_widths is None else tuple(settings.beam_widths)
    options = BeamOptions(settings.batch_size, widths, settings.normalisation, settings.dtype, settings.continue_page,
                          per_beam=settings.per_beam, exclude_seen=settings.exclude_seen)  # fmt: skip
    dataset, catalog = open_catalogue(settings.data_dir, settings.sid_dir)
    if plan.beams > catalog.trie.n_sids:
        raise ConfigError(f"beams {plan.beams} of {catalog.trie.n_sids} distinct SIDs; lower --beams and --ks")
    options.check(beams=plan.beams, n_levels=catalog.n_levels)
    made_from = {"data": settings.data_dir, "sids": settings.sid_dir}
    for folder in policies.values():
        check_made_from(folder, made_from, command="accelerate launch recipes/sft.py")
        if settings.split == "valid":
            check_unseen_valid(folder)
    if settings.rerank is not None and block is None:
        raise ConfigError("rerank needs a reward_model to re-rank by; name one, or leave both out")
    scorers = {}
    if block is not None:
        scorers["R"] = load_reward_model(block, catalog=catalog, trusted_packages=settings.trusted_packages)
    examples = list(dataset.examples(settings.split, max_history=settings.max_history))[: settings.max_requests]
    systems = choose_systems(settings, dataset, catalog, policies, options, scorers)
    samples = Samples(examples, titles=dataset.titles, seed=settings.seed)
    output_dir.mkdir(parents=True, exist_ok=True)
    with (
        Tracker(output_dir, job_type="evaluate", config=asdict(settings), project=settings.wandb_project,
                group=settings.wandb_group) as tracker,
        PredictionsWriter(output_dir / "predictions.parquet", examples, item_ids=dataset.item_ids) as writer,
    ):  # fmt: skip
        report = evaluate(
            systems,
            examples,
            catalog=catalog,
            popularity=dataset.popularity,
            item_values=dataset.item_values,
            plan=plan,
            scorers=scorers,
            protocol=describe(dataset, catalog, scorers, split=settings.split, max_requests=settings.max_requests,
                              max_history=settings.max_history, exclude_seen=settings.exclude_seen)
            | {"decoding": options.describe(plan.beams, policies)},
            sinks=(writer.write, samples.write),
        )  # fmt: skip
        tracker.log(as_row(report))
    write_report(report, output_dir, samples=samples.text())
    plot_all(report, policies, output_dir)
    inputs = {"data": settings.data_dir, "sids": settings.sid_dir, **policies}
    finish_stage(output_dir, stage="evaluate", settings=settings, inputs=inputs, seconds=time.time() - started)
    print_report(report, console)
    console.print(samples.text(), markup=False, highlight=False)
    console.print(f"table, plots and predictions in {output_dir}")


if __name__ == "__main__":
    run_recipe(main)
