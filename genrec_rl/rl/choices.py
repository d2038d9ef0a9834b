"""Choices of GRPO-SR that exclude each other, or the policy: each is refused with one line before a step is made."""

import math
from typing import Any

from genrec_rl.errors import ConfigError
from genrec_rl.models.policy import Policy
from genrec_rl.rl.preference_settings import PREFERENCE_TERMS

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
"""TRL's, each of which a test compares with its formula on our rollouts."""
NAMED = {
    "loss_type": LOSS_TYPES,
    "scale_rewards": ("group", "batch", "none"),
    "rollouts": ("beam", "gumbel", "sample"),
    "invalid_rollouts": ("zero", "drop"),
    "rollout_weights": ("uniform", "policy"),
    "credit": ("sequence", "level"),
}
GUARDED = "eval_guarded_ndcg@10"
"""Validation NDCG@10, less 1 where a guard is broken (``rl.selection``)."""
SHAPING = ("min_std", "invalid_rollouts", "rollout_weights", "credit", "format_coef")
"""What only a policy loss with advantages reads."""


def refuse_contradictions(args: Any) -> None:
    """Check the choices that ``GRPOSRConfig`` adds to TRL's, one by one and against each other.

    Raises:
        ConfigError: naming the first that cannot be.
    """
    for name, known in NAMED.items():
        if getattr(args, name) not in known:
            raise ConfigError(f"{name} '{getattr(args, name)}' is not one of {', '.join(known)}")
    for name in ("min_std", "format_coef", "page_coef", "check_weight"):
        value = getattr(args, name)
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be 0 or a positive number")
    for name, least in (("max_page_items", 1), ("patience", 0), ("probe_requests", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"{name} is {getattr(args, name)}, at least {least} is needed")
    for is_wrong, message in _contradictions(args):
        if is_wrong:
            raise ConfigError(message)


def refuse_for_policy(args: Any, policy: Policy, *, n_sids: int) -> None:
    """Check the choices against the policy to be aligned and the number of SIDs in its catalogue.

    Raises:
        ConfigError: naming the first that cannot be.
    """
    network, reads_merged = policy.model.config, policy.prompts.grammar.page_items == "merged"
    if network.softmax == "children" and not args.constrained_rollouts:
        raise ConfigError(
            "the policy was trained with softmax children, so it knows nothing of SIDs that do not exist; set "
            "constrained_rollouts: true, or train it with `recipes/sft.py --softmax vocabulary`"
        )
    if args.constrained_rollouts and args.num_generations > n_sids:
        raise ConfigError(
            f"num_generations is {args.num_generations}, but the catalogue holds {n_sids} SIDs; lower it"
        )
    if args.page_coef > 0 and (reads_merged or network.is_lazy):
        other = "merged" if reads_merged else "not at all (LazyAR)"
        raise ConfigError(f"page_coef reads a page's finished items as codes, the policy {other}; set it to 0")


def _contradictions(args: Any) -> list[tuple[bool, str]]:
    shapes = args.min_std > 0 or args.format_coef > 0 or args.invalid_rollouts == "drop"
    shapes = shapes or args.rollout_weights == "policy" or args.credit == "level"
    return [
        (
            args.rollouts == "sample" and args.policy_term in ("listwise_kl", *PREFERENCE_TERMS),
            f"rollouts sample repeats rollouts, which {args.policy_term} would count twice; set rollouts: gumbel",
        ),
        (
            args.per_mass and args.policy_term != "listwise_kl",
            f"per_mass divides the loss of listwise_kl, and policy_term is {args.policy_term}; set it to false",
        ),
        (
            args.rollout_weights == "policy" and args.rollouts != "beam",
            f"rollout_weights policy: {args.rollouts} rollouts are drawn by the policy already; set rollouts: beam",
        ),
        (
            args.rollout_weights == "policy" and args.credit == "level",
            "rollout_weights policy and credit level: each is a baseline of its own; leave one at its default",
        ),
        (
            args.rollout_weights == "policy" and args.inject_positives,
            "inject_positives: an injected rollout has no log-probability for rollout_weights policy; leave one out",
        ),
        (
            args.credit == "level" and args.importance_sampling_level == "sequence",
            "credit level: importance_sampling_level sequence takes a rollout's mean over tokens; set it to token",
        ),
        (
            args.min_std > 0 and args.scale_rewards == "none",
            f"min_std {args.min_std}: scale_rewards none divides by no deviation; set min_std: 0",
        ),
        (
            args.constrained_rollouts and args.invalid_rollouts == "drop",
            "invalid_rollouts drop: constrained_rollouts makes no invalid SID; leave one out",
        ),
        (
            args.constrained_rollouts and args.format_coef > 0,
            "format_coef: constrained_rollouts makes no invalid SID, so every format reward is the same; set it to 0",
        ),
        (
            args.format_coef > 0 and not 1 <= args.format_rollouts <= args.num_generations,
            f"format_rollouts is {args.format_rollouts}; it must lie in 1..{args.num_generations} (num_generations)",
        ),
        (
            shapes and args.multi_objective_aggregation != "sum_then_normalize",
            f"multi_objective_aggregation {args.multi_objective_aggregation}: {', '.join(SHAPING)} make advantages "
            "of one reward; set it to sum_then_normalize",
        ),
        (
            args.inject_positives and args.policy_term == "none",
            "inject_positives: policy_term none reads no rollouts; set it to false",
        ),
        (
            args.loss_type == "cispo" and (args.epsilon_high or 0) < 1,
            f"loss_type cispo caps the ratio, which is 1, at epsilon_high {args.epsilon_high}: the loss is scaled by "
            "it; set epsilon_high to 1 or more, e.g. 5",
        ),
        (
            args.guard and not (args.load_best_model_at_end and args.eval_on_start),
            "guard chooses among checkpoints against the start: set load_best_model_at_end and eval_on_start to true",
        ),
        (
            args.guard and args.metric_for_best_model not in ("eval_ndcg@10", "ndcg@10", GUARDED),
            f"guard chooses by validation NDCG@10, not {args.metric_for_best_model}; set metric_for_best_model: "
            "eval_ndcg@10",
        ),
        (
            args.patience > 0 and not args.load_best_model_at_end,
            f"patience {args.patience} waits for a better checkpoint; set load_best_model_at_end: true",
        ),
    ]
