"""Supervised fine-tuning: teach a policy to write the page that follows a history.

    accelerate launch recipes/sft.py --data_dir runs/demo/data --sid_dir runs/demo/sids --output_dir runs/demo/sft

Reads   the prepared data (recipes/prepare.py) and the catalogue (recipes/build_sids.py).
Writes  the policy with the best validation NDCG@10: model.safetensors, config.json (with the prompt grammar's
        hash), tokenizer; metrics.jsonl; the offline W&B run; checkpoints.
Watch   eval/ndcg@10 rises while eval/har@10 (share of invented SIDs in free beams) falls; with values eval/value@10,
        and train/value_nll.
"""

import time
from dataclasses import asdict, dataclass, field
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

if TYPE_CHECKING:
    from genrec_rl.data.store import Dataset
    from genrec_rl.data.values import ValueBuckets
    from genrec_rl.models.policy import Policy
    from genrec_rl.sft.packing import Packed
    from genrec_rl.sft.trainer import PageSFTConfig, PageSFTTrainer
    from genrec_rl.sids.catalog import Catalog


@dataclass
class Settings:
    """What the policy is and what it learns from; trainer settings are ``PageSFTConfig``'s."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    backbone: str | None = field(default=None, metadata={"help": "folder of a Qwen2 checkpoint; none: from scratch"})
    hidden_size: int = field(default=128, metadata={"help": "width, from scratch"})
    num_layers: int = field(default=3, metadata={"help": "layers, from scratch"})
    num_heads: int = field(default=4, metadata={"help": "attention heads, from scratch"})
    intermediate_size: int = field(default=384, metadata={"help": "MLP width, from scratch"})
    embedding_dropout: float = field(default=0.2, metadata={"help": "dropout of the input vectors"})
    residual_dropout: float = field(default=0.2, metadata={"help": "dropout of attention and MLP outputs"})
    scale_embeddings: bool = field(
        default=False, metadata={"help": "input vectors times the root of hidden_size: from scratch learns faster"}
    )
    item_embedding: bool = field(
        default=False, metadata={"help": "a vector of its own for each prompt item, beside its codes'"}
    )
    item_dropout: float = field(default=0.5, metadata={"help": "dropout of that vector"})
    merge: bool = field(default=True, metadata={"help": "one vector per prompt item (eq. 5); false: w/o TM"})
    separator: Literal["item", "day", "page", "none"] = field(
        default="item", metadata={"help": "after each item | item, and whether the day goes on | page | none"}
    )
    page_items: Literal["codes", "merged"] = field(
        default="codes",
        metadata={"help": "how finished items of a page are read: their codes, or the last one merged"},
    )
    max_history: int = field(default=50, metadata={"help": "most recent items of a prompt"})
    history_dropout: float = field(
        default=0.0, metadata={"help": "share of a training prompt's items left out, others each epoch"}
    )
    target: str = field(
        default="page", metadata={"help": "page (eq. 3, 4) | item (vanilla NTP) | running; or joined: page+running"}
    )
    packing_pages: Literal["user_tree", "none"] = field(
        default="user_tree", metadata={"help": "user_tree: a user's history once; none: one row a page"}
    )
    softmax: Literal["vocabulary", "children"] = field(
        default="vocabulary",
        metadata={"help": "over all tokens, or over codes of real items (faster; then HaR means nothing)"},
    )
    lazy_layers: int = field(
        default=0,
        metadata={"help": "LazyAR: lower layers that never see the code before, so beams share them; 0: off"},
    )
    init_from: str | None = field(
        default=None, metadata={"help": "SFT policy to start from; with lazy_layers a plain one is made LazyAR"}
    )
    max_page_items: int = field(default=10, metadata={"help": "items of a page that are supervised"})
    max_exposed: int = field(default=0, metadata={"help": "exposed items after a page's positives"})
    learn_valid: bool = field(
        default=False,
        metadata={"help": "learn the validation pages too, to serve: no choice can be made by them then"},
    )
    n_value_buckets: int = field(
        default=0,
        metadata={"help": "equal-frequency buckets of what an item was worth, a token of which is taught behind it "
                  "(target item or running; value_coef); GR4AD: 32 | 0: off"},
    )  # fmt: skip
    value_user_weight: float = field(
        default=0.0, metadata={"help": "strength of a user's training value in the weight of his answers | 0: off"}
    )
    action_weights: list[float] = field(
        default_factory=lambda: [1.0, 1.0, 1.0],
        metadata={"help": "weights of an ordered, a clicked and an exposed item in an answer"},
    )
    value_weight_clip: float = field(
        default=99.0, metadata={"help": "percentile that larger weights are cut to; 100: none is"}
    )
    lora: dict | str | None = field(default=None, metadata={"help": "peft.LoraConfig arguments, e.g. {r: 16}"})
    eval_beams: int = field(default=20, metadata={"help": "beams of the validation metrics"})
    eval_hallucination: bool = field(
        default=True, metadata={"help": "also decode freely, for eval/har@10 (softmax vocabulary)"}
    )
    continue_page: bool = field(
        default=False, metadata={"help": "validate with the request's own day as the beginning of the answer"}
    )
    wandb_project: str = field(default=PROJECT, metadata={"help": "W&B project"})
    wandb_group: str | None = field(default=None, metadata={"help": "W&B group"})


@dataclass(frozen=True)
class Inputs:
    """What the earlier stages left, and what of it is taught to which policy."""

    dataset: "Dataset"
    catalog: "Catalog"
    policy: "Policy"
    rows: "Packed"


def main(argv: list[str] | None = None) -> None:
    from genrec_rl.models.lora import merge_lora
    from genrec_rl.sft.trainer import PageSFTConfig

    settings, args = parse_recipe([Settings, PageSFTConfig], __file__, argv)
    if settings.learn_valid and args.load_best_model_at_end:
        raise ConfigError("learn_valid teaches the pages that would choose; set load_best_model_at_end: false")
    if settings.n_value_buckets > 0 and args.value_coef == 0:
        raise ConfigError("value_coef 0 teaches no value token; raise it, or set n_value_buckets: 0")
    started = time.time()
    inputs = load_inputs(settings, args)
    with Tracker(
        args.output_dir, job_type="sft", config=asdict(settings) | args.to_dict(), enabled=is_main_process(),
        project=settings.wandb_project, group=settings.wandb_group, resume=bool(args.resume_from_checkpoint),
    ) as tracker:  # fmt: skip
        trainer = make_trainer(settings, args, inputs, tracker)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    merge_lora(trainer.model)
    if is_main_process():
        inputs.policy.save_pretrained(args.output_dir)
        made_from = {"data": settings.data_dir, "sids": settings.sid_dir}
        made_from |= {} if settings.init_from is None else {"policy": settings.init_from}
        finish_stage(args.output_dir, stage="sft", settings=asdict(settings) | args.to_dict(), inputs=made_from,
                     seconds=time.time() - started)  # fmt: skip
        best = trainer.state.best_metric
        verdict = (
            "nothing was validated" if best is None else f"best validation {args.metric_for_best_model} {best:.4f}"
        )
        console.print(f"policy in {args.output_dir}; {verdict}")


def load_inputs(settings: Settings, args: "PageSFTConfig") -> Inputs:
    """Load the data and the catalogue, make the policy, and pack what it learns."""
    from genrec_rl.data.store import load_dataset
    from genrec_rl.sft.packing import pack
    from genrec_rl.sft.worth import WeightPlan, training_buckets
    from genrec_rl.sids.catalog import Catalog

    weights = WeightPlan(settings.value_user_weight, tuple(settings.action_weights), settings.value_weight_clip)
    dataset = load_dataset(require_stage(settings.data_dir, stage="prepare", command="python recipes/prepare.py"))
    sid_dir = require_stage(settings.sid_dir, stage="build_sids", command="python recipes/build_sids.py",
                            made_from={"data": settings.data_dir})  # fmt: skip
    catalog = Catalog.load(sid_dir)
    catalog.check_items(dataset.items_fingerprint)
    values = training_buckets(dataset, n_buckets=settings.n_value_buckets)
    policy = make_policy(settings, catalog, values=values, seed=args.seed)
    rows = pack(
        dataset,
        policy,
        catalog,
        packing=settings.packing_pages,
        target=settings.target,
        max_items=settings.max_page_items,
        max_exposed=settings.max_exposed,
        history_dropout=settings.history_dropout,
        learn_valid=settings.learn_valid,
        teaches_value=values is not None and args.value_coef > 0,
        weights=weights,
    )
    return Inputs(dataset, catalog, policy, rows)


def make_policy(settings: Settings, catalog: "Catalog", *, values: "ValueBuckets | None", seed: int) -> "Policy":
    """Return the policy to train: new, or with the weights of a finished one."""
    from genrec_rl.models.conversion import start_from
    from genrec_rl.models.policy import BackboneSize, create_policy, load_policy
    from genrec_rl.models.prompts import PromptGrammar

    size = BackboneSize(settings.hidden_size, settings.num_layers, settings.num_heads, settings.intermediate_size)
    policy = create_policy(
        catalog,
        grammar=PromptGrammar(settings.merge, settings.separator, settings.max_history, settings.page_items),
        backbone=settings.backbone or size,
        embedding_dropout=settings.embedding_dropout,
        residual_dropout=settings.residual_dropout,
        scale_embeddings=settings.scale_embeddings,
        item_embedding=settings.item_embedding,
        item_dropout=settings.item_dropout,
        softmax=settings.softmax,
        values=values,
        lazy_layers=settings.lazy_layers or None,
        seed=seed,
    )
    policy.model.config.target = settings.target
    if settings.init_from is not None:
        folder = require_stage(settings.init_from, stage="sft", command="accelerate launch recipes/sft.py",
                               made_from={"data": settings.data_dir, "sids": settings.sid_dir})  # fmt: skip
        if not settings.learn_valid:
            check_unseen_valid(folder)
        start_from(policy, load_policy(folder, catalog=catalog))
    return policy


def make_trainer(settings: Settings, args: "PageSFTConfig", inputs: Inputs, tracker: Tracker) -> "PageSFTTrainer":
    """Put the trainer together, with what it validates by and what it logs."""
    from genrec_rl.decoding.recommender import BeamRecommender
    from genrec_rl.decoding.validation import Validation
    from genrec_rl.models.lora import lora_config
    from genrec_rl.sft.callbacks import TrackerCallback, use_progress_bar
    from genrec_rl.sft.trainer import PageSFTTrainer

    policy, network = inputs.policy, inputs.policy.model.config
    trainer = PageSFTTrainer(
        model=policy.model,
        args=args,
        train_dataset=inputs.rows.train,
        eval_dataset=inputs.rows.valid,
        data_collator=inputs.rows.collator,
        processing_class=policy.tokenizer,
        peft_config=lora_config(settings.lora, is_tied=network.tie_word_embeddings, is_lazy=network.is_lazy),
        callbacks=[TrackerCallback(tracker)],
        value_tokens=policy.vocab.value_tokens,
        validation=Validation(
            inputs.dataset.examples("valid", max_history=settings.max_history),
            BeamRecommender(policy, catalog=inputs.catalog, continue_page=settings.continue_page),
            beams=settings.eval_beams,
            measure_hallucination=settings.eval_hallucination and settings.softmax == "vocabulary",
        ),
    )
    use_progress_bar(trainer, ["loss", "eval_loss", "eval_ndcg@10", "eval_hr@10", "eval_har@10"])
    return trainer


if __name__ == "__main__":
    run_recipe(main)
