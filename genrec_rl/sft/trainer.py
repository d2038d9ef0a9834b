"""Page-wise supervised fine-tuning on ``trl.SFTTrainer``; the loss is TRL's own, over the answer's tokens.

Rows with weights or value tokens have VSL's loss (``sft/worth.py``); a LazyAR policy's has L_MTP beside it.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer
from typing_extensions import override

from genrec_rl.decoding.validation import Validation
from genrec_rl.errors import ConfigError
from genrec_rl.models.trunk import unwrap
from genrec_rl.sft.devices import DeviceDefaults, check_devices
from genrec_rl.sft.mtp import labelled_places, level_nll, mtp_weight
from genrec_rl.sft.rows import IGNORED, WeightedRows
from genrec_rl.sft.siblings import sibling_nll
from genrec_rl.sft.worth import vsl_total


@dataclass
class PageSFTConfig(DeviceDefaults, SFTConfig):
    """``trl.SFTConfig`` with what page rows need; everything else stays TRL's.

    On a machine without a GPU the run is on the CPU in float32 unless told otherwise.
    """

    max_length: int | None = field(default=None, metadata={"help": "rows are never cut; see max_history"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "rows are written when read"})
    value_coef: float = field(
        default=0.1, metadata={"help": "lambda_e, weight of the value token's loss; 0: it is not taught"}
    )
    mtp_coef: float | None = field(
        default=None, metadata={"help": "weight of a LazyAR policy's L_MTP; none: 0.3 with lazy_layers, else 0"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length is not None or self.packing or self.padding_free:
            raise ConfigError("max_length, packing and padding_free would cut pages; set max_history instead")
        if self.label_smoothing_factor:
            raise ConfigError("label_smoothing_factor would smooth towards the wrong tokens of a tree; leave it at 0")
        if not (math.isfinite(self.value_coef) and self.value_coef >= 0):
            raise ConfigError(
                f"value_coef {self.value_coef} must be a number of at least 0; 0 teaches no value token"
            )
        check_devices(self)
        self.dataset_kwargs = {"skip_prepare_dataset": True}


class PageSFTTrainer(SFTTrainer):
    """SFTTrainer whose evaluation also recommends, so that the best checkpoint can be chosen by NDCG@10.

    ``value_tokens`` are the policy's, which count by ``value_coef``. A LazyAR policy's training loss has ``mtp_coef``
    times L_MTP beside it, which no weight multiplies; the validation loss has not.
    """

    data_collator: Any

    def __init__(
        self,
        *args: Any,
        validation: Validation | None = None,
        value_tokens: range = range(0),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.validation, self.value_tokens = validation, value_tokens
        self.mtp_coef = mtp_weight(
            self.args.mtp_coef, is_lazy=unwrap(self.model).config.is_lazy, loss_type=self.args.loss_type
        )
        if kwargs.get("data_collator") is None:
            self.data_collator = WeightedRows(self.data_collator)

    @override
    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return TRL's loss or, where rows say what labels weigh or are chosen among, that of VSL; and L_MTP."""
        has_mtp = self.mtp_coef > 0 and self.model.training
        if not has_mtp and "allowed" not in inputs and "weights" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "kept_places" not in inputs:
            inputs = labelled_places(model, inputs)
        own = ("allowed", "weights", "labels", "shift_labels")
        read = {name: x for name, x in inputs.items() if name not in own}
        outputs = model(**read, use_cache=False, **({"mtp": True} if has_mtp else {}))
        labels_N, logits_NV = inputs["labels"][0], outputs.logits[0]
        nll_N = _nll(logits_NV[: len(labels_N)], labels_N, inputs.get("allowed"))
        total = self._weighed(nll_N, labels_N, inputs["weights"][0]) if "weights" in inputs else nll_N.sum()
        if has_mtp:
            mtp_N = self._mtp_nll(logits_NV[len(labels_N) :], labels_N, is_among_children="allowed" in inputs)
            total = total + self.mtp_coef * mtp_N.sum()
            mean = mtp_N.detach().sum() / max(len(mtp_N), 1)
            self._metrics["train"]["mtp_loss"].append(self.accelerator.gather(mean).mean().item())
        loss = self._mean(total, labels_N, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _weighed(
        self, nll_N: Float[Tensor, " N"], labels_N: Int[Tensor, " N"], weights_N: Float[Tensor, " N"]
    ) -> Float[Tensor, ""]:
        if self.args.loss_type != "nll":
            raise ConfigError(f"loss_type '{self.args.loss_type}' knows no weights and value tokens; leave it at nll")
        is_value_N = self._is_value(labels_N)
        self._log_value_nll(nll_N, is_value_N)
        return vsl_total(nll_N, weights_N, is_value_N, value_coef=self.args.value_coef)

    def _mtp_nll(
        self, logits_NV: Float[Tensor, "N V"], labels_N: Int[Tensor, " N"], *, is_among_children: bool
    ) -> Float[Tensor, " N"]:
        if not is_among_children:
            return _nll(logits_NV, labels_N, None)
        config = unwrap(self.model).config
        return level_nll(logits_NV, labels_N, starts=config.sid_level_starts, sizes=config.sid_codebook_sizes)

    def _mean(self, total: Tensor, labels_N: Int[Tensor, " N"], n_labels: Tensor | int | None) -> Tensor:
        """Divide by the SID labels of all processes and accumulated batches, or of this batch where none are told."""
        if n_labels is None:
            return total / (~self._is_value(labels_N)).sum().clamp(min=1)
        mean = total / torch.as_tensor(n_labels).clamp(min=1)
        if self.args.average_tokens_across_devices:
            mean = mean * self.accelerator.num_processes  # DDP will average what is a share of all processes' labels
        return mean

    def _is_value(self, labels: Tensor) -> Tensor:
        return (labels >= self.value_tokens.start) & (labels < self.value_tokens.stop)

    def _log_value_nll(self, nll: Tensor, is_value: Tensor) -> None:
        if not self.value_tokens:
            return
        sums: Any = torch.stack([nll.detach().masked_fill(~is_value, 0).sum(), is_value.sum().to(nll)])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        if count:
            self._metrics["train"]["value_nll"].append(total / count)

    @override
    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        """Count SID labels alone, so that value tokens are added to the mean and not averaged into it."""
        if self.value_tokens:
            batch_samples = [
                {name: x.masked_fill(self._is_value(x), IGNORED) for name, x in batch.items() if "labels" in name}
                for batch in batch_samples
            ]
        return super()._get_num_items_in_batch(batch_samples, device)

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


def _nll(
    logits_NV: Float[Tensor, "N V"], labels_N: Int[Tensor, " N"], allowed_NV: Bool[Tensor, "N U"] | None
) -> Float[Tensor, " N"]:
    if allowed_NV is None:
        return functional.cross_entropy(logits_NV.float(), labels_N, reduction="none")
    return sibling_nll(logits_NV, labels_N, allowed_NV)
