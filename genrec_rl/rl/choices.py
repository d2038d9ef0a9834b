"""Choices of GRPO-SR that exclude each other, or the policy: each is refused with one line before a step is made."""

import math
from collections.abc import Iterator
from typing import Any

from genrec_rl.errors import ConfigError
from genrec_rl.models.policy import Policy
from genrec_rl.rl.preference_settings import PREFERENCE_TERMS

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
"""TRL's, each of which a test compares with its formula on our rollouts."""
POLICY_TERMS = ("grpo", "listwise_kl", "none", *PREFERENCE_TERMS)
FROM_START = ("listwise_kl", *PREFERENCE_TERMS)
"""Terms that read the policy that RL started from."""
NAMED = {
    "policy_term": POLICY_TERMS,
    "loss_type": LOSS_TYPES,
    "scale_rewards": ("group", "batch", "none"),
    "rollouts": ("beam", "gumbel", "sample"),
    "rollouts_from": ("policy", "start"),
    "invalid_rollouts": ("zero", "drop"),
    "rollout_weights": ("uniform", "policy"),
    "credit": ("sequence", "level"),
    "nll_reduction": ("sum", "mean"),
    "fused_step": ("auto", "always", "never"),
}
WEIGHTS = ("nll_coef", "margin_weight", "min_std", "format_coef", "page_coef", "check_weight")
LEAST = {"max_positives": 1, "max_page_items": 1, "length_groups": 1, "patience": 0, "probe_requests": 0}
GUARDED = "eval_guarded_ndcg@10"
"""Validation NDCG@10, less 1 where a guard is broken (``rl.selection``)."""
SHAPING = ("min_std", "invalid_rollouts", "rollout_weights", "credit", "format_coef")
"""What only a policy loss with advantages reads."""
ONLY_GRPO = (
    *("beta", "num_iterations", "epsilon", "epsilon_high", "delta", "scale_rewards", "loss_type", "entropy_coef"),
    *("importance_sampling_level", "top_entropy_quantile", *SHAPING),
)
SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs")
OWN_NAMES = {"beta": " (of preferences: preference_beta)", "delta": " (of rspo: reference_delta)"}


def refuse_torn_groups(args: Any) -> None:
    """Check that a device's rollouts are whole groups, which TRL asks for after it has shared them out.

    Raises:
        ConfigError: where they are not.
    """
    group = args.num_generations or 0
    if group < 2 or args.per_device_train_batch_size % group:
        raise ConfigError(
            f"per_device_train_batch_size {args.per_device_train_batch_size} must be a multiple of "
            f"num_generations {group} (at least 2): a rollout group lives on one device"
        )


def refuse_contradictions(args: Any) -> None:
    """Check the choices that ``GRPOSRConfig`` adds to TRL's, one by one and against each other.

    Raises:
        ConfigError: naming the first that cannot be.
    """
    groups = (_of_values, _of_unread, _of_trl, _of_terms, _of_rollouts, _of_selection)
    wrong = next((message for group in groups for is_wrong, message in group(args) if is_wrong), None)
    if wrong is not None:
        raise ConfigError(wrong)


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
    if args.constrained_rollouts and args.rollouts != "sample" and args.num_generations > n_sids:
        raise ConfigError(
            f"num_generations is {args.num_generations}, but the catalogue holds {n_sids} SIDs; lower it"
        )
    if args.page_coef > 0 and (reads_merged or network.is_lazy):
        other = "merged" if reads_merged else "not at all (LazyAR)"
        raise ConfigError(f"page_coef reads a page's finished items as codes, the policy {other}; set it to 0")


def _of_values(args: Any) -> Iterator[tuple[bool, str]]:
    """Each setting by itself."""
    for name, known in NAMED.items():
        value = getattr(args, name)
        yield value not in known, f"{name} '{value}' is not one of {', '.join(known)}"
    for name in WEIGHTS:
        value = getattr(args, name)
        yield not 0 <= value < math.inf, f"{name} is {value}; it must be 0 or a positive number"
    for name, least in LEAST.items():
        value = getattr(args, name)
        is_small = name != "length_groups" if value is None else value < least
        yield is_small, f"{name} is {value}, at least {least} is needed"
    dropped = args.history_dropout
    yield not 0 <= dropped < 1, f"history_dropout {dropped} must be at least 0 and below 1"


def _of_unread(args: Any) -> Iterator[tuple[bool, str]]:
    """Settings that differ from their defaults, and that nothing would read."""
    defaults = {name: known.default for name, known in type(args).__dataclass_fields__.items()}
    for name in ONLY_GRPO if args.policy_term != "grpo" else ():
        value, default = getattr(args, name), defaults[name]
        yield (
            value != default,
            (
                f"{name} {value} is of TRL's policy loss, which policy_term {args.policy_term} leaves out: set it to "
                f"{default}, or policy_term: grpo{OWN_NAMES.get(name, '')}"
            ),
        )
    for name in SAMPLING:
        value = getattr(args, name)
        yield value != defaults[name], f"{name} {value}: beams do not sample token by token; leave it out"


def _of_trl(args: Any) -> list[tuple[bool, str]]:
    """What TRL offers and rollouts of a few codes, read by beams, have no place for."""
    return [
        (args.use_vllm, "use_vllm: merged prompts cannot be sent to vLLM; leave it false"),
        (
            args.mask_truncated_completions,
            "mask_truncated_completions would mask every SID (none has an end token); set it false",
        ),
        (
            bool(args.pad_to_multiple_of),
            f"pad_to_multiple_of {args.pad_to_multiple_of}: an answer has exactly the tokens of a SID; leave it out",
        ),
        (
            args.temperature != 1.0,
            f"temperature {args.temperature}: beam rollouts score the policy itself; leave it at 1",
        ),
        (
            args.loss_type == "cispo" and (args.epsilon_high or 0) < 1,
            f"loss_type cispo caps the ratio, which is 1, at epsilon_high {args.epsilon_high}: the loss is scaled by "
            "it; set epsilon_high to 1 or more, e.g. 5",
        ),
    ]


def _of_terms(args: Any) -> list[tuple[bool, str]]:
    """Terms of the loss that leave nothing to learn, or do not read what was set."""
    return [
        (
            args.policy_term == "none" and args.nll_coef == 0 and args.page_coef == 0,
            "policy_term none leaves the NLL term alone, and nll_coef is 0: nothing is learnt; raise it",
        ),
        (
            args.policy_term == "listwise_kl" and not (args.margin_weight or args.nll_coef),
            "margin_weight and nll_coef are 0: listwise_kl teaches the start to itself; raise one",
        ),
        (
            args.per_mass and args.policy_term != "listwise_kl",
            f"per_mass divides the loss of listwise_kl, and policy_term is {args.policy_term}; set it to false",
        ),
        (
            args.inject_positives and args.policy_term == "none",
            "inject_positives: policy_term none reads no rollouts; set it to false",
        ),
        (
            args.rollouts_from == "start" and args.policy_term not in FROM_START,
            "rollouts_from start: eq. 8 weighs the policy's own rollouts; set policy_term listwise_kl or rspo",
        ),
        (
            args.rollouts == "sample" and args.policy_term in FROM_START,
            f"rollouts sample repeats rollouts, which {args.policy_term} would count twice; set rollouts: gumbel",
        ),
    ]


def _of_rollouts(args: Any) -> list[tuple[bool, str]]:
    """How rollouts are drawn, rewarded and weighed."""
    shapes = args.min_std > 0 or args.format_coef > 0 or args.invalid_rollouts == "drop"
    shapes = shapes or args.rollout_weights == "policy" or args.credit == "level"
    return [
        (
            args.exclude_seen and args.rollouts == "sample",
            "exclude_seen: independent samples are drawn of the whole policy; set rollouts: gumbel, or it to false",
        ),
        (
            args.exclude_seen and args.inject_positives,
            "inject_positives: a positive that was taken before would be a rollout in spite of exclude_seen; set one "
            "to false",
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
    ]


def _of_selection(args: Any) -> list[tuple[bool, str]]:
    """How the best checkpoint is chosen."""
    return [
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
