"""When a step may read each prompt once, with gradient, for its rollouts and its loss alike."""

from typing import Any

from torch import nn

from genrec_rl.errors import ConfigError
from genrec_rl.rl.config import GRPOSRConfig


def fuses(args: GRPOSRConfig, model: nn.Module, *, is_deepspeed: bool) -> tuple[bool, str]:
    """Return whether steps are fused, and why they are not.

    Fused, the rollouts come from the very weights, and the very forward, that the loss is taken of. That is the same
    update only if one update follows each batch of rollouts, and the forward has no dropout.

    Raises:
        ConfigError: when ``fused_step: always`` meets a reason against it.
    """
    if args.fused_step == "never":
        return False, "fused_step is never"
    reason = reason_against(args, model, is_deepspeed=is_deepspeed)
    if reason and args.fused_step == "always":
        raise ConfigError(f"fused_step: always, but {reason}; mend that, or set fused_step: auto")
    return not reason, reason


def reason_against(args: Any, model: Any, *, is_deepspeed: bool) -> str:
    """Return the first reason why a fused step would be another update, or would fail; empty if there is none."""
    if args.num_iterations > 1:
        return f"num_iterations is {args.num_iterations}: later updates need the rollouts scored again"
    if args.steps_per_generation > 1:
        return (
            f"steps_per_generation is {args.steps_per_generation}: rollouts of several micro-batches are made at once"
            " (set it to 1)"
        )
    if args.activation_checkpointing or args.gradient_checkpointing:
        return "activation checkpointing keeps no keys and values of the prompt"
    if is_deepspeed:
        return "DeepSpeed expects one forward a backward"
    dropout = max((module.p for module in model.modules() if isinstance(module, nn.Dropout)), default=0.0)
    if dropout > 0:
        return f"dropout is {dropout}: rollouts and loss must see the same network (disable_dropout: true)"
    if model.config.attention_dropout > 0:
        return f"attention_dropout is {model.config.attention_dropout}: set it to 0 in the policy's config.json"
    return ""
