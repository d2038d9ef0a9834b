"""GRPO-SR: align an SFT policy with a reward model (GenRec, eq. 6 to 8).

    accelerate launch recipes/grpo_sr.py --reward_model '{"class_path": "reward_models.sim.SIM", ...}'

Reads   data, catalogue, the SFT policy and a reward model; recipes/grpo_sr.yaml names those of `make demo`.
Writes  the aligned policy with the best validation NDCG@10, compared with the start; metrics.jsonl; rollouts.jsonl
        (sampled rollouts, every stage of their reward); the offline W&B run; checkpoints.
Watch   train/reward/raw should rise, train/rollout/hallucination_rate fall, and eval/ndcg@10 not fall: a reward
        that rises while eval/ndcg@10 falls is being hacked.
"""

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from genrec_rl.config import parse_recipe
from genrec_rl.errors import ConfigError
from genrec_rl.tracking import (
    PROJECT,
    Tracker,
    check_unseen_valid,
    console,
    finish_stage,
    is_main_process,
    require_stage,
    run_recipe,
)

if TYPE_CHECKING:  # (torch and TRL load slowly: not for --help, nor for a setting that is refused)
    from genrec_rl.data.store import Dataset
    from genrec_rl.decoding.validation import Validation
    from genrec_rl.models.policy import Policy
    from genrec_rl.rewards.protocol import RewardModel
    from genrec_rl.rl.config import GRPOSRConfig
    from genrec_rl.rl.diagnostics import HackingWatch
    from genrec_rl.rl.rollouts import RolloutScorer
    from genrec_rl.rl.trainer import GRPOSRTrainer
    from genrec_rl.sids.catalog import Catalog


LOST_AT_MOST = 0.01
"""Share of validation positives that ``exclude_seen`` may hide before a run says so."""


@dataclass
class Settings:
    """What is aligned, by which reward; trainer settings are ``GRPOSRConfig``'s."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    policy_dir: str = field(default="runs/demo/sft", metadata={"help": "policy to start from"})
    requests: Literal["page", "running"] = field(
        default="page", metadata={"help": "a request is a page, or (leave-one-out) each next item"}
    )
    continue_page: bool = field(
        default=False, metadata={"help": "the policy reads the request's own day as the beginning of its answer"}
    )
    unlabelled_share: float = field(
        default=0.0, metadata={"help": "share of prompts that are validation requests without their labels"}
    )
    unlabelled_users: float = field(
        default=0.5, metadata={"help": "share of users who give them; the others tell learning from memory"}
    )
    reward_model: dict | str | None = field(default=None, metadata={"help": "{class_path, init_args: {path}}"})
    gold_model: dict | str | None = field(
        default=None, metadata={"help": "a second reward model, logged beside the first and never trained on"}
    )
    gate: dict | str | None = field(default=None, metadata={"help": "{class_path, init_args}, or none: w/o gate"})
    trusted_packages: list[str] = field(default_factory=list, metadata={"help": "further packages to load from"})
    lora: dict | str | None = field(default=None, metadata={"help": "peft.LoraConfig arguments, e.g. {r: 16}"})
    keep_start: bool = field(default=False, metadata={"help": "write the start itself if no checkpoint beats it"})
    eval_beams: int = field(default=20, metadata={"help": "beams of the validation metrics"})
    wandb_project: str = field(default=PROJECT, metadata={"help": "W&B project"})
    wandb_group: str | None = field(default=None, metadata={"help": "W&B group"})


@dataclass(frozen=True)
class Inputs:
    """What the earlier stages left."""

    dataset: "Dataset"
    catalog: "Catalog"
    policy: "Policy"
    scorer: "RolloutScorer"
    gold_model: "RewardModel | None"


def main(argv: list[str] | None = None, *, recipe_file: str = __file__) -> None:
    from genrec_rl.models.lora import merge_lora
    from genrec_rl.rl.config import GRPOSRConfig
    from genrec_rl.rl.selection import keep_best

    settings, args = parse_recipe([Settings, GRPOSRConfig], recipe_file, argv)
    if str(args.metric_for_best_model).endswith("_held_out") and not settings.unlabelled_share:
        raise ConfigError(
            f"metric_for_best_model {args.metric_for_best_model}: no user is held out without an unlabelled_share "
            "above 0; raise it, or choose by eval_ndcg@10"
        )
    checks_reward = args.check_reward and args.policy_term != "none" and args.weight_in_check > 0
    if checks_reward and not args.eval_on_start:
        raise ConfigError("check_reward looks at the evaluation of step 0: set eval_on_start: true, or it to false")
    name, started = Path(recipe_file).stem, time.time()
    inputs = load_inputs(settings)
    with Tracker(
        args.output_dir, job_type=name, config=asdict(settings) | args.to_dict(), enabled=is_main_process(),
        project=settings.wandb_project, group=settings.wandb_group, resume=bool(args.resume_from_checkpoint),
    ) as tracker:  # fmt: skip
        trainer = make_trainer(settings, args, inputs, tracker, checks_reward=checks_reward)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    merge_lora(trainer.model)
    policy, verdict = keep_best(
        trainer, inputs.policy, start_dir=settings.policy_dir, catalog=inputs.catalog, keep_start=settings.keep_start
    )
    if is_main_process():
        policy.save_pretrained(args.output_dir)
        made_from = {"data": settings.data_dir, "sids": settings.sid_dir, "policy": settings.policy_dir}
        finish_stage(args.output_dir, stage=name, settings=asdict(settings) | args.to_dict(), inputs=made_from,
                     seconds=time.time() - started)  # fmt: skip
        console.print(f"policy in {args.output_dir}; {verdict}")


def load_inputs(settings: Settings) -> Inputs:
    """Load and check the earlier stages, each of which must have been made from the others."""
    from genrec_rl.data.store import load_dataset
    from genrec_rl.models.policy import load_policy
    from genrec_rl.rewards.components import load_gate, load_gold_model, load_reward_model
    from genrec_rl.rl.rollouts import RolloutScorer
    from genrec_rl.sids.catalog import Catalog

    dataset = load_dataset(require_stage(settings.data_dir, stage="prepare", command="python recipes/prepare.py"))
    sid_dir = require_stage(settings.sid_dir, stage="build_sids", command="python recipes/build_sids.py",
                            made_from={"data": settings.data_dir})  # fmt: skip
    catalog = Catalog.load(sid_dir)
    catalog.check_items(dataset.items_fingerprint)
    trusted = settings.trusted_packages
    reward_model = load_reward_model(settings.reward_model, catalog=catalog, trusted_packages=trusted)
    gold_model = load_gold_model(settings.gold_model, against=reward_model, catalog=catalog, trusted_packages=trusted)
    policy_dir = require_stage(settings.policy_dir, stage="sft", command="accelerate launch recipes/sft.py",
                               made_from={"data": settings.data_dir, "sids": settings.sid_dir})  # fmt: skip
    check_unseen_valid(policy_dir)
    policy = load_policy(policy_dir, catalog=catalog)
    gate = load_gate(settings.gate, catalog=catalog, dataset=dataset, trusted_packages=trusted)
    return Inputs(dataset, catalog, policy, RolloutScorer(reward_model, gate, catalog), gold_model)


def make_trainer(
    settings: Settings, args: "GRPOSRConfig", inputs: Inputs, tracker: Tracker, *, checks_reward: bool
) -> "GRPOSRTrainer":
    """Put the trainer together, with what it validates by and what it logs."""
    from genrec_rl.evaluation.evaluate import positives_seen
    from genrec_rl.models.lora import lora_config
    from genrec_rl.rl.diagnostics import MAGNET_COLUMNS
    from genrec_rl.rl.selection import Patience, RewardCheck
    from genrec_rl.rl.telemetry import TABLE_COLUMNS
    from genrec_rl.rl.trainer import GRPOSRTrainer
    from genrec_rl.rl.unlabelled import with_unlabelled
    from genrec_rl.sft.callbacks import EvaluationTableCallback, TableCallback, TrackerCallback, use_progress_bar
    from genrec_rl.sft.targets import training_requests

    titles = inputs.dataset.titles
    network = inputs.policy.model.config
    if args.page_coef > 0 and network.target and "page" not in network.target.split("+"):
        network.target += "+page"
    validation, watch = make_validation(settings, args, inputs)
    if args.exclude_seen and (again := positives_seen(validation.examples)) > LOST_AT_MOST:
        console.print(f"{again:.1%} of validation positives were taken before, and exclude_seen hides them: false?")
    trainer = GRPOSRTrainer(
        inputs.policy,
        args=args,  # (histories are whole: policy and reward cut them for themselves, gates judge all)
        examples=with_unlabelled(
            training_requests(inputs.dataset, settings.requests, max_history=None),
            inputs.dataset.examples("valid", max_history=None),
            share=settings.unlabelled_share,
            users=settings.unlabelled_users,
        ),
        scorer=inputs.scorer,
        validation=validation,
        continue_page=settings.continue_page,
        peft_config=lora_config(settings.lora, is_tied=network.tie_word_embeddings, is_lazy=network.is_lazy),
        callbacks=[TrackerCallback(tracker), *([RewardCheck()] if checks_reward else [])],
    )
    trainer.add_callback(TableCallback(tracker, name="rollouts", columns=TABLE_COLUMNS,
                                       rows=lambda: trainer.rollout_table(titles),
                                       every=args.rollout_table_steps))  # fmt: skip
    trainer.add_callback(EvaluationTableCallback(tracker, name="magnets", columns=MAGNET_COLUMNS,
                                                 rows=lambda: watch.magnets(titles)))  # fmt: skip
    if args.patience > 0:
        trainer.add_callback(Patience(early_stopping_patience=args.patience))
    use_progress_bar(trainer, ["reward/raw", "rollout/hallucination_rate", "nll", "eval_ndcg@10", "eval_har@10"])
    if not trainer.is_fused:
        console.print(f"prompts are read twice a step: {trainer.why_not_fused}", markup=False)
    return trainer


def make_validation(settings: Settings, args: "GRPOSRConfig", inputs: Inputs) -> "tuple[Validation, HackingWatch]":
    """Return what evaluations measure, and what they watch for hacking."""
    from genrec_rl.decoding.recommender import BeamRecommender
    from genrec_rl.decoding.validation import Validation
    from genrec_rl.rewards.scoring import GatedReward
    from genrec_rl.rl.diagnostics import HackingWatch
    from genrec_rl.rl.unlabelled import is_held_out

    scorer, policy = inputs.scorer, inputs.policy
    watch = HackingWatch(
        scorer,
        popularity=inputs.dataset.popularity,
        group_size=args.num_generations,
        anchor=args.anchor_positives,
        constrained=args.constrained_rollouts,
        gold_model=inputs.gold_model,
    )
    validation = Validation(
        inputs.dataset.examples("valid", max_history=None),
        BeamRecommender(
            policy,
            catalog=inputs.catalog,
            continue_page=settings.continue_page,
            exclude_seen=args.exclude_seen,
        ),
        beams=settings.eval_beams,
        measure_hallucination=policy.model.config.softmax == "vocabulary",
        reward_model=GatedReward(scorer.reward_model, scorer.gate),
        rerank_weight=args.weight_in_check,
        is_held_out=partial(is_held_out, users=settings.unlabelled_users) if settings.unlabelled_share else None,
        watch=watch,
    )
    return validation, watch


if __name__ == "__main__":
    run_recipe(main)
