"""Page-wise supervised fine-tuning on ``trl.SFTTrainer``; the loss is TRL's own, over the answer's tokens.

Rows with weights or value tokens have VSL's loss (``sft/worth.py``), and further terms may be added to either.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer
from typing_extensions import override

from genrec_rl.decoding.validation import Validation
from genrec_rl.errors import ConfigError
from genrec_rl.sft.devices import DeviceDefaults, check_devices
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


@dataclass(frozen=True, slots=True, eq=False)
class LossTerm:
    """One more term of the training loss: ``coef`` times the mean of ``total`` over the batch's SID labels.

    ``total`` takes the model, perhaps wrapped for distributed training, and the collated batch, and returns a sum
    with a gradient; ``name`` is what its mean is logged under.
    """

    name: str
    coef: float
    total: Callable[[Any, dict[str, Tensor]], Tensor]


class PageSFTTrainer(SFTTrainer):
    """SFTTrainer whose evaluation also recommends, so that the best checkpoint can be chosen by NDCG@10.

    ``value_tokens`` are the policy's, which count by ``value_coef``. ``terms`` are added while training, not to the
    validation loss: ``L = E[w L_NTP] + sum of coef E[total]``.
    """

    data_collator: Any

    def __init__(
        self,
        *args: Any,
        validation: Validation | None = None,
        value_tokens: range = range(0),
        terms: Sequence[LossTerm] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.validation, self.value_tokens, self.terms = validation, value_tokens, terms
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
        """Return TRL's loss or, where rows say what labels weigh or are chosen among, that of VSL, plus the terms."""
        batch = dict(inputs)  # TRL writes into its inputs
        if "allowed" in inputs or "weights" in inputs:
            loss, outputs = self._labelled_loss(model, batch, num_items_in_batch)
        elif return_outputs:
            loss, outputs = super().compute_loss(model, batch, True, num_items_in_batch)
        else:
            loss, outputs = super().compute_loss(model, batch, num_items_in_batch=num_items_in_batch), None
        for term in self.terms if model.training else ():
            added = self._mean(term.total(model, dict(inputs)), inputs, num_items_in_batch)
            self._metrics["train"][term.name].append(added.item())
            loss = loss + term.coef * added
        return (loss, outputs) if return_outputs else loss

    def _labelled_loss(self, model: Any, inputs: dict[str, Any], n_labels: Tensor | int | None) -> tuple[Tensor, Any]:
        """Return the loss of labels that have a weight each, or are chosen among some tokens alone (``allowed``)."""
        own = ("allowed", "weights")
        if "allowed" in inputs:
            outputs = model(
                **{name: x for name, x in inputs.items() if name not in (*own, "labels", "shift_labels")},
                use_cache=False,
            )
            nll, labels = sibling_nll(outputs.logits[0], inputs["labels"][0], inputs["allowed"]), inputs["labels"][0]
        else:
            read = {name: x for name, x in inputs.items() if name not in own}
            outputs = model(**read, use_cache=False, fused_lm_head=True)
            nll, labels = -outputs.log_probs, _predicted(inputs)
        if "weights" not in inputs:
            return self._mean(nll.sum(), inputs, n_labels), outputs
        if self.args.loss_type != "nll":
            raise ConfigError(f"loss_type '{self.args.loss_type}' knows no weights and value tokens; leave it at nll")
        weights = inputs["weights"] if "shift_labels" in inputs else inputs["weights"][:, 1:]
        is_value = self._is_value(labels)
        self._log_value_nll(nll, is_value)
        total = vsl_total(nll, weights.view(nll.shape), is_value, value_coef=self.args.value_coef)
        return self._mean(total, inputs, n_labels), outputs

    def _mean(self, total: Tensor, inputs: dict[str, Any], n_labels: Tensor | int | None) -> Tensor:
        """Divide by the SID labels of all processes and accumulated batches, or of this batch where none are told."""
        if n_labels is None:
            labels = _predicted(inputs)
            return total / ((labels != IGNORED) & ~self._is_value(labels)).sum().clamp(min=1)
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


def _predicted(inputs: dict[str, Any]) -> Tensor:
    """Return the labels of places that predict one, as TRL's fused head scores them."""
    found: Tensor = inputs["shift_labels"] if "shift_labels" in inputs else inputs["labels"][:, 1:]
    return found
