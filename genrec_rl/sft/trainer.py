"""Page-wise supervised fine-tuning on ``trl.SFTTrainer``; the loss is TRL's own, over the answer's tokens."""

from dataclasses import dataclass, field
from typing import Any

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
from genrec_rl.sft.siblings import sibling_nll


@dataclass
class PageSFTConfig(DeviceDefaults, SFTConfig):
    """``trl.SFTConfig`` with what page rows need; everything else stays TRL's.

    On a machine without a GPU the run is on the CPU in float32 unless told otherwise.
    """

    max_length: int | None = field(default=None, metadata={"help": "rows are never cut; see max_history"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "rows are written when read"})
    mtp_coef: float | None = field(
        default=None, metadata={"help": "weight of a LazyAR policy's L_MTP; none: 0.3 with lazy_layers, else 0"}
    )

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
        self.mtp_coef = mtp_weight(
            self.args.mtp_coef, is_lazy=unwrap(self.model).config.is_lazy, loss_type=self.args.loss_type
        )

    @override
    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return TRL's loss, or, where the rows say what each label is chosen among, the softmax over that.

        A LazyAR policy's training adds ``mtp_coef`` times L_MTP; evaluation does not.
        """
        has_mtp = self.mtp_coef > 0 and self.model.training
        if "allowed" not in inputs and not has_mtp:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "kept_places" not in inputs:
            inputs = labelled_places(model, inputs)
        read = {name: x for name, x in inputs.items() if name not in ("allowed", "labels", "shift_labels")}
        outputs = model(**read, use_cache=False, **({"mtp": True} if has_mtp else {}))
        labels_N, allowed_NV = inputs["labels"][0], inputs.get("allowed")
        logits_NV = outputs.logits[0]
        nll_N = _nll(logits_NV[: len(labels_N)], labels_N, allowed_NV)
        total = nll_N.sum()
        if has_mtp:
            mtp_N = self._mtp_nll(logits_NV[len(labels_N) :], labels_N, is_among_children=allowed_NV is not None)
            total = total + self.mtp_coef * mtp_N.sum()
            mean = mtp_N.detach().sum() / max(len(mtp_N), 1)
            self._metrics["train"]["mtp_loss"].append(self.accelerator.gather(mean).mean().item())
        loss = total / (len(nll_N) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP will average what is a share of all processes' labels
        return (loss, outputs) if return_outputs else loss

    def _mtp_nll(
        self, logits_NV: Float[Tensor, "N V"], labels_N: Int[Tensor, " N"], *, is_among_children: bool
    ) -> Float[Tensor, " N"]:
        if not is_among_children:
            return _nll(logits_NV, labels_N, None)
        config = unwrap(self.model).config
        return level_nll(logits_NV, labels_N, starts=config.sid_level_starts, sizes=config.sid_codebook_sizes)

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
