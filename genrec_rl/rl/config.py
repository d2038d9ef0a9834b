"""Settings of GRPO-SR: TRL's GRPOConfig, the terms of eq. 8, and defaults that fit three-token answers."""

from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from genrec_rl.rl.advantages import Shaping
from genrec_rl.rl.choices import GUARDED, refuse_contradictions, refuse_torn_groups
from genrec_rl.rl.preference_settings import PreferenceSettings, check_preferences
from genrec_rl.sft.devices import DeviceDefaults, check_devices


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
        metadata={"help": "w: a reward's log-odds against a log-probability, in listwise_kl"},
    )
    per_mass: bool = field(
        default=False,
        metadata={
            "help": "listwise_kl: divide by the start's probability of a group, so that unsure prompts count alike"
        },
    )
    check_reward: bool = field(
        default=True,
        metadata={"help": "stop at step 0 if the gated reward orders the start's beams worse than it does"},
    )
    check_weight: float = field(
        default=1.0,
        metadata={"help": "w in check_reward; listwise_kl's is margin_weight there too"},
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
    history_dropout: float = field(
        default=0.0, metadata={"help": "share of a prompt's history items left out, others each time; the reward too"}
    )
    max_positives: int = field(default=8, metadata={"help": "positives a page gives to the NLL term, sampled"})
    constrained_rollouts: bool = field(
        default=False, metadata={"help": "roll out valid SIDs only; then hallucination is not measured"}
    )
    rollouts: Literal["beam", "gumbel", "sample"] = field(
        default="beam",
        metadata={"help": "the G best; or draws of the policy, without repeats (gumbel) or with (sample)"},
    )
    exclude_seen: bool = field(
        default=False,
        metadata={"help": "neither rollouts nor evaluation answer with what the user has taken already"},
    )
    invalid_rollouts: Literal["zero", "drop"] = field(
        default="zero", metadata={"help": "an invalid SID's reward is 0, or it is left out of its group (worse HaR)"}
    )
    format_coef: float = field(
        default=0.0, metadata={"help": "weight of OneRec's format reward: valid SIDs among random rollouts earn 1"}
    )
    format_rollouts: int = field(default=5, metadata={"help": "k random rollouts of a group that it looks at"})
    min_std: float = field(
        default=0.0, metadata={"help": "floor of the deviation that advantages are divided by (scale_rewards)"}
    )
    rollout_weights: Literal["uniform", "policy"] = field(
        default="uniform", metadata={"help": "beams count alike (eq. 8), or by softmax of log pi (minimum risk)"}
    )
    credit: Literal["sequence", "level"] = field(
        default="sequence", metadata={"help": "a rollout's tokens share its advantage, or earn what each changed"}
    )
    inject_positives: bool = field(
        default=False, metadata={"help": "a group that missed its positives gets one; it was hacked in trials"}
    )
    page_coef: float = field(
        default=0.0, metadata={"help": "weight of page-wise SFT (eq. 4) on the same prompts; 0 leaves it out"}
    )
    max_page_items: int = field(default=10, metadata={"help": "items of a page that page_coef teaches"})
    guard: bool = field(
        default=False,
        metadata={"help": "the best checkpoint must not have the start's HaR@10 raised or gold lowered"},
    )
    patience: int = field(
        default=0, metadata={"help": "stop after that many evaluations without a better one; 0: never"}
    )
    probe_requests: int = field(
        default=256, metadata={"help": "validation requests of KL, entropy and log-probability of D+; 0: none"}
    )
    fused_step: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"help": "read a prompt once for rollouts and loss, where that is the same update"}
    )
    length_groups: int | None = field(
        default=None,
        metadata={
            "help": "a step's prompts are read in up to so many groups of like length; none: 8 on a CPU, else 1"
        },
    )
    rollout_table_steps: int = field(default=50, metadata={"help": "steps between tables of sampled rollouts"})

    loss_type: str = field(default="grpo", metadata={"help": "grpo is eq. 8; any of TRL's others may be chosen"})
    beta: float = field(default=0.0, metadata={"help": "KL to the start; eq. 8 has none"})
    num_generations: int | None = field(default=16, metadata={"help": "G: rollouts (beams) per prompt"})
    num_generations_eval: int | None = field(default=1, metadata={"help": "unused: evaluation recommends instead"})
    per_device_train_batch_size: int = field(default=256, metadata={"help": "rollouts per device and step"})
    disable_dropout: bool = field(default=True, metadata={"help": "rollouts and loss see the same network"})

    def __post_init__(self) -> None:
        refuse_torn_groups(self)
        super().__post_init__()
        check_devices(self)
        refuse_contradictions(self)
        check_preferences(self)
        if self.guard:
            self.metric_for_best_model = GUARDED

    @property
    def shaping(self) -> Shaping:
        """How rewards become advantages."""
        return Shaping(**{name: getattr(self, name) for name in Shaping.__dataclass_fields__})

    @property
    def weight_in_check(self) -> float:
        """The reward's weight where ``check_reward`` re-ranks the start's beams."""
        return self.margin_weight if self.policy_term == "listwise_kl" else self.check_weight
