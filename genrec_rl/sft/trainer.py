"""Page-wise supervised fine-tuning on ``trl.SFTTrainer``; the loss is TRL's own, over the answer's tokens."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer
from typing_extensions import override

from genrec_rl.decoding.validation import Validation
from genrec_rl.errors import ConfigError
from genrec_rl.sft.devices import DeviceDefaults, check_devices
from genrec_rl.sft.siblings import sibling_nll


@dataclass
class PageSFTConfig(DeviceDefaults, SFTConfig):
    """``trl.SFTConfig`` with what page rows need; everything else stays TRL's.

    On a machine without a GPU the run is on the CPU in float32 unless told otherwise.
    """

    max_length: int | None = field(default=None, metadata={"help": "rows are never cut; see max_history"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "rows are written when read"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length is not None or self.packing or self.padding_free:
            raise ConfigError("max_length, packing and padding_free would cut pages; set max_history instead")
        if self.label_smoothing_factor:
            raise ConfigError("label_smoothing_factor would smooth towards the wrong tokens of a tree; leave it at 0")
        check_devices(self)
        self.dataset_kwargs = {"skip_prepare_dataset": True}


class PageSFTTrainer(SFTTrainer):
    """SFTTrainer whose evaluation also recommends, so that the best checkpoint can be chosen by NDCG@10."""

    def __init__(self, *args: Any, validation: Validation | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.validation = validation

    @override
    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return TRL's loss, or, where the rows say what each label is chosen among, the softmax over that."""
        if "allowed" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        read = {name: x for name, x in inputs.items() if name not in ("allowed", "labels", "shift_labels")}
        outputs = model(**read, use_cache=False)
        nll_N = sibling_nll(outputs.logits[0], inputs["labels"][0], inputs["allowed"])
        loss = nll_N.sum() / (len(nll_N) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP will average what is a share of all processes' labels
        return (loss, outputs) if return_outputs else loss

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

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log without ``num_tokens``: TRL reads it off the attention mask, which in a tree is no row of tokens."""
        for metrics in self._metrics.values():
            metrics.pop("num_tokens", None)
        super().log(logs, start_time)
