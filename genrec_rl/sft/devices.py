"""Where training runs: defaults for machines with and without a GPU, and set-ups that are refused."""

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from genrec_rl.errors import ConfigError


def has_accelerator() -> bool:
    """Whether this machine has a GPU that torch can use."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def has_fast_bf16() -> bool:
    """Whether the GPU computes in bfloat16."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


@dataclass
class DeviceDefaults:
    """TrainingArguments as this machine allows: without a GPU, the CPU in float32. To be mixed in first."""

    use_cpu: bool = field(default_factory=lambda: not has_accelerator(), metadata={"help": "train on the CPU"})
    bf16: bool = field(default_factory=has_fast_bf16, metadata={"help": "bfloat16 autocast"})
    activation_checkpointing: bool | None = field(
        default=False, metadata={"help": "save memory, at a third more time"}
    )
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "older name of the same"})
    dataloader_pin_memory: bool = field(default_factory=has_accelerator, metadata={"help": "faster copies to a GPU"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "show a NaN loss as NaN"})

    def __post_init__(self) -> None:
        """Honour the older name of activation checkpointing, which a default of ours would otherwise outvote."""
        if self.gradient_checkpointing:
            self.activation_checkpointing = True
        super().__post_init__()  # type: ignore[misc]


def check_devices(args: Any) -> None:
    """Refuse what would compute something else than asked.

    Raises:
        ConfigError: for several GPUs in one process (DataParallel would scatter a tree's positions), and for FSDP
            and ZeRO-3, by arguments or by accelerate's launcher (beam search reads the backbone directly, which
            sharded weights do not allow).
    """
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process; start one process each with `accelerate launch --multi_gpu`, "
            "or show it one with CUDA_VISIBLE_DEVICES=0"
        )
    for name, is_asked in (
        ("FSDP", args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")),
        ("ZeRO-3", is_deepspeed_zero3_enabled()),
    ):
        if is_asked:
            raise ConfigError(
                f"{name} is not supported yet: beam search cannot read sharded weights; use DDP or ZeRO-2 "
                "(recipes/accelerate)"
            )
