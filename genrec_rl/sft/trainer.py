"""Page-wise supervised fine-tuning on ``trl.SFTTrainer``; the loss is TRL's own, over the answer's tokens."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer
from typing_extensions import override

from genrec_rl.decoding.validation import Validation
from genrec_rl.errors import ConfigError


def has_accelerator() -> bool:
    """Whether this machine has a GPU that torch can use."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


@dataclass
class PageSFTConfig(SFTConfig):
    """``trl.SFTConfig`` with what page rows need; everything else stays TRL's.

    On a machine without a GPU the run is on the CPU in float32 unless told otherwise.
    """

    use_cpu: bool = field(default_factory=lambda: not has_accelerator(), metadata={"help": "train on the CPU"})
    bf16: bool = field(default_factory=torch.cuda.is_available, metadata={"help": "bfloat16 autocast"})
    activation_checkpointing: bool | None = field(
        default=False, metadata={"help": "save memory, at a third more time"}
    )
    max_length: int | None = field(default=None, metadata={"help": "rows are never cut; see max_history"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "rows are written when read"})
    dataloader_pin_memory: bool = field(default_factory=has_accelerator, metadata={"help": "faster copies to a GPU"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "show a NaN loss as NaN"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length is not None or self.packing or self.padding_free:
            raise ConfigError("max_length, packing and padding_free would cut pages; set max_history instead")
        self.dataset_kwargs = {"skip_prepare_dataset": True}


class PageSFTTrainer(SFTTrainer):
    """SFTTrainer whose evaluation also recommends, so that the best checkpoint can be chosen by NDCG@10."""

    def __init__(self, *args: Any, validation: Validation | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.validation = validation

    @override
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Add the recommendation metrics to the loss."""
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self.validation is not None:
            measured = self.validation.measure(self.accelerator)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in measured.items()})
        return output
