"""Settings of the preference terms (``policy_term: rspo | dpo | s_dpo``), mixed into ``GRPOSRConfig``."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from genrec_rl.errors import ConfigError
from genrec_rl.rl.preference import PreferenceLoss, dpo, rspo, s_dpo

PREFERENCE_TERMS = ("rspo", "dpo", "s_dpo")
_ONLY_RSPO = ("reference_delta", "rank_by", "preference_gain", "unified", "z_max")


@dataclass
class PreferenceSettings:
    """What the preference terms read. beta, delta, rank order, gain and Z_max are open in the source: ours."""

    preference_beta: float = field(default=0.5, metadata={"help": "beta: what a nat of log(pi / start) counts"})
    reference_delta: float = field(
        default=5.0, metadata={"help": "rspo: mean log(pi / start) of a list, in nats, that ends its comparison"}
    )
    rank_by: Literal["reward", "model"] = field(
        default="reward", metadata={"help": "rspo: whose ranks weigh a pair, the rewards' or the policy's"}
    )
    preference_gain: Literal["linear", "log1p"] = field(
        default="linear", metadata={"help": "rspo: a reward's gain in NDCG"}
    )
    unified: bool = field(
        default=False, metadata={"help": "rspo: weigh it against the NLL of positives by how far ranks disagree"}
    )
    z_max: float = field(default=1.0, metadata={"help": "Z_max of unified, which its source leaves undefined"})

    def preference_loss(self) -> Callable[..., PreferenceLoss]:
        """Return the loss that ``policy_term`` names, with its settings."""
        args: Any = self
        losses: dict[str, Callable[..., PreferenceLoss]] = {
            "rspo": partial(rspo, delta=self.reference_delta, rank_by=self.rank_by, gain=self.preference_gain),
            "dpo": dpo,
            "s_dpo": s_dpo,
        }
        return partial(losses[args.policy_term], beta=self.preference_beta)


def check_preferences(args: Any) -> None:
    """Refuse values without a meaning, and settings that the policy term does not read.

    Raises:
        ConfigError: naming the setting, its value and what it may be.
    """
    for name, choices in (("rank_by", ("reward", "model")), ("preference_gain", ("linear", "log1p"))):
        if getattr(args, name) not in choices:
            raise ConfigError(f"{name} '{getattr(args, name)}' is not one of {', '.join(choices)}")
    for name in ("preference_beta", "z_max"):
        if not 0 < getattr(args, name) < math.inf:
            raise ConfigError(f"{name} is {getattr(args, name)}; it must be a positive number")
    if math.isnan(args.reference_delta):
        raise ConfigError(
            "reference_delta is nan; it must be a number, or inf (in YAML .inf): the reference is never left out"
        )
    _refuse_unread(args, _ONLY_RSPO, readers=("rspo",))
    _refuse_unread(args, ("preference_beta",), readers=PREFERENCE_TERMS)
    if args.z_max != 1 and not args.unified:
        raise ConfigError(f"z_max {args.z_max} is read with unified alone: leave it at 1.0, or set unified: true")
    if args.unified and args.nll_coef == 0:
        raise ConfigError("unified weighs the NLL of positives, and nll_coef is 0: raise it (1 is the equation)")
    if args.unified and not args.anchor_positives:
        raise ConfigError("unified values a positive that no rollout found by eq. 7: set anchor_positives: true")


def _refuse_unread(args: Any, names: tuple[str, ...], *, readers: tuple[str, ...]) -> None:
    if args.policy_term in readers:
        return
    for name in names:
        default = PreferenceSettings.__dataclass_fields__[name].default
        if getattr(args, name) != default:
            raise ConfigError(
                f"{name} {getattr(args, name)} is not read by policy_term {args.policy_term}: leave it at {default}, "
                f"or set policy_term {' or '.join(readers)}"
            )
