"""Settings of GRPO-SR: TRL's GRPOConfig, the terms of eq. 8, and defaults that fit three-token answers."""

import math
from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from genrec_rl.errors import ConfigError
from genrec_rl.rl.preference_settings import PREFERENCE_TERMS, PreferenceSettings, check_preferences
from genrec_rl.sft.devices import DeviceDefaults, check_devices

_POLICY_TERMS = ("grpo", "listwise_kl", "none", *PREFERENCE_TERMS)
_OWN_NAMES = {"beta": " (of preferences: preference_beta)", "delta": " (of rspo: reference_delta)"}
_ONLY_GRPO = (
    *("beta", "num_iterations", "epsilon", "epsilon_high", "delta", "scale_rewards", "loss_type", "entropy_coef"),
    *("importance_sampling_level", "top_entropy_quantile"),
)


@dataclass
class GRPOSRConfig(PreferenceSettings, DeviceDefaults, GRPOConfig):
    """``trl.GRPOConfig`` plus GenRec's choices. ``per_device_train_batch_size`` counts rollouts, as in TRL.

    With ``anchor_positives: false`` and ``nll_coef: 0`` this is the paper's plain GRPO.
    """

    policy_term: Literal["grpo", "listwise_kl", "none", "rspo", "dpo", "s_dpo"] = field(
        default="grpo",
        metadata={
            "help": "grpo: eq. 8; listwise_kl: fit the group's KL-regularised optimum; none: NLL alone, a control; "
            "rspo, dpo, s_dpo: preferences among the rollouts"
        },
    )
    margin_weight: float = field(
        default=1.0,
        metadata={"help": "w: a reward's log-odds against a log-probability, in listwise_kl and in check_reward"},
    )
    check_reward: bool = field(
        default=True,
        metadata={"help": "stop at step 0 if the reward model orders the start's beams no better than it"},
    )
    rollouts_from: Literal["policy", "start"] = field(
        default="policy",
        metadata={"help": "whose rollouts: the policy's own, or (listwise_kl, preferences) the start's throughout"},
    )
    nll_coef: float = field(default=0.1, metadata={"help": "alpha of eq. 8; 0 leaves the NLL term out"})
    nll_reduction: Literal["sum", "mean"] = field(
        default="sum", metadata={"help": "over a SID's tokens: sum (eq. 8), or mean as in the policy term"}
    )
    anchor_positives: bool = field(default=True, metadata={"help": "eq. 7: hits earn the group's best reward"})
    max_positives: int = field(default=8, metadata={"help": "positives a page gives to the NLL term, sampled"})
    constrained_rollouts: bool = field(
        default=False, metadata={"help": "roll out valid SIDs only; then hallucination is not measured"}
    )
    rollouts: Literal["beam", "gumbel"] = field(
        default="beam", metadata={"help": "the G best (beam), or a sample of the policy without repeats (gumbel)"}
    )
    fused_step: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"help": "read a prompt once for rollouts and loss, where that is the same update"}
    )
    rollout_table_steps: int = field(default=50, metadata={"help": "steps between tables of sampled rollouts"})

    loss_type: str = field(default="grpo", metadata={"help": "grpo is eq. 8; any of TRL's others may be chosen"})
    beta: float = field(default=0.0, metadata={"help": "KL to the start; eq. 8 has none"})
    num_generations: int | None = field(default=16, metadata={"help": "G: rollouts (beams) per prompt"})
    num_generations_eval: int | None = field(default=1, metadata={"help": "unused: evaluation recommends instead"})
    per_device_train_batch_size: int = field(default=256, metadata={"help": "rollouts per device and step"})
    disable_dropout: bool = field(default=True, metadata={"help": "rollouts and loss see the same network"})

    def __post_init__(self) -> None:  # noqa: C901  (a list of refusals)
        group = self.num_generations or 0
        if group < 2 or self.per_device_train_batch_size % group:
            raise ConfigError(
                f"per_device_train_batch_size {self.per_device_train_batch_size} must be a multiple of "
                f"num_generations {group} (at least 2): a rollout group lives on one device"
            )
        super().__post_init__()
        check_devices(self)
        if not 0 <= self.nll_coef < math.inf:
            raise ConfigError(f"nll_coef is {self.nll_coef}; it must be 0 (no NLL term) or a positive number")
        if self.policy_term not in _POLICY_TERMS:
            raise ConfigError(f"policy_term '{self.policy_term}' is not one of {', '.join(_POLICY_TERMS)}")
        if self.policy_term == "none" and self.nll_coef == 0:
            raise ConfigError(
                "policy_term none leaves the NLL term alone, and nll_coef is 0: nothing is learnt; raise it"
            )
        if self.rollouts_from not in ("policy", "start"):
            raise ConfigError(f"rollouts_from '{self.rollouts_from}' is not one of policy, start")
        if self.rollouts_from == "start" and self.policy_term not in ("listwise_kl", *PREFERENCE_TERMS):
            raise ConfigError(
                "rollouts_from start: eq. 8 weighs the policy's own rollouts; set policy_term listwise_kl or rspo"
            )
        if not 0 <= self.margin_weight < math.inf:
            raise ConfigError(f"margin_weight is {self.margin_weight}; it must be 0 or a positive number")
        if self.policy_term != "grpo":
            self._refuse_what_only_grpo_reads()
        check_preferences(self)
        if self.policy_term == "listwise_kl" and not (self.margin_weight or self.nll_coef):
            raise ConfigError("margin_weight and nll_coef are 0: listwise_kl teaches the start to itself; raise one")
        if self.nll_reduction not in ("sum", "mean"):
            raise ConfigError(f"nll_reduction '{self.nll_reduction}' is not one of sum, mean")
        if self.rollouts not in ("beam", "gumbel"):
            raise ConfigError(f"rollouts '{self.rollouts}' is not one of beam, gumbel")
        if self.fused_step not in ("auto", "always", "never"):
            raise ConfigError(f"fused_step '{self.fused_step}' is not one of auto, always, never")
        if self.max_positives < 1:
            raise ConfigError(f"max_positives is {self.max_positives}, at least 1 is needed")
        if self.use_vllm:
            raise ConfigError("use_vllm: merged prompts cannot be sent to vLLM; leave it false")
        if self.mask_truncated_completions:
            raise ConfigError("mask_truncated_completions would mask every SID (none has an end token); set it false")
        for name in ("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"):
            default = GRPOConfig.__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise ConfigError(f"{name} {getattr(self, name)}: beams do not sample token by token; leave it out")
        if self.temperature != 1.0:
            raise ConfigError(f"temperature {self.temperature}: beam rollouts score the policy itself; leave it at 1")

    def _refuse_what_only_grpo_reads(self) -> None:
        for name in _ONLY_GRPO:
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise ConfigError(
                    f"{name} {getattr(self, name)} is of TRL's policy loss, which policy_term {self.policy_term} "
                    f"leaves out: set it to {default}, or policy_term: grpo{_OWN_NAMES.get(name, '')}"
                )
