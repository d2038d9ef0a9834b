"""One training loop for all neural baselines: AdamW, warm-up, early stopping on all validation users."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import get_scheduler

from genrec_rl import metrics
from genrec_rl.errors import ConfigError
from genrec_rl.types import Context, Example, Rollouts

SELECTED_AT = 10
REQUESTS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """How a baseline is trained; each baseline adds its own sizes and defaults.

    Attributes:
        epochs: at most.
        evaluate_every: epochs between two validations.
        patience: validations without a better NDCG@10 after which training ends.
        batch_size: sequences (TIGER: targets) a step.
        learning_rate: peak, reached after ``warmup_steps``.
        schedule: after the warm-up; ``cosine`` reaches 0 after ``epochs``.
        weight_decay: AdamW's, on matrices and embeddings alone.
        max_gradient: norm at which gradients are clipped.
        max_history: newest items that are read.
        bf16: round the inputs of the large matrix products.
    """

    epochs: int = 100
    evaluate_every: int = 1
    patience: int = 5
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: Literal["constant_with_warmup", "cosine"] = "constant_with_warmup"
    warmup_steps: int = 100
    weight_decay: float = 0.0
    max_gradient: float = 1.0
    max_history: int = 50
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "evaluate_every", "patience", "batch_size", "max_history"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1; raise it")


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch did; the metrics are None where it was not validated."""

    epoch: int
    loss: float
    seconds: float
    recall: float | None
    ndcg: float | None
    is_best: bool


OnEpoch = Callable[[EpochRecord], None] | None


class Baseline(nn.Module):
    """A model that the loop can train: it yields its own losses, and recommends.

    Args:
        settings: of its training.
        n_batches: of an epoch.
    """

    def __init__(self, settings: FitSettings, *, n_batches: int) -> None:
        super().__init__()
        self.settings, self.n_batches = settings, n_batches

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield the loss of each of an epoch's batches; ``rng`` draws order, masks and negatives."""
        raise NotImplementedError

    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool = True) -> Rollouts:
        """Return the k best items of each context."""
        raise NotImplementedError


B = TypeVar("B", bound=Baseline)


def fit(
    model: B,
    valid: Sequence[Example],
    *,
    seed: int,
    on_epoch: OnEpoch = None,
) -> B:
    """Train a model in place and return it, in evaluation mode, with the weights of its best validation.

    On the GPU where there is one, and there it stays.

    The caller seeds torch before it makes the model; here ``seed`` draws the batches, and torch's generator
    goes on with dropout, so that two fits with one seed are equal.
    """
    settings = model.settings
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(_groups(model, settings.weight_decay), lr=settings.learning_rate)
    scheduler = get_scheduler(settings.schedule, optimizer, settings.warmup_steps, settings.epochs * model.n_batches)
    best, best_weights, since_best = -1.0, copy.deepcopy(model.state_dict()), 0
    with _progress() as progress:
        task = progress.add_task(type(model).__name__, total=settings.epochs * model.n_batches)
        for epoch in range(1, settings.epochs + 1):
            begun = time.perf_counter()
            total = 0.0
            model.train()
            for loss in model.losses(rng):
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient, error_if_nonfinite=True)
                optimizer.step()
                scheduler.step()
                total += loss.item()
                progress.advance(task)
            recall = ndcg = None
            if epoch % settings.evaluate_every == 0 or epoch == settings.epochs:
                recall, ndcg = validate(model.eval(), valid)
                since_best += 1
                if ndcg > best:
                    best, best_weights, since_best = ndcg, copy.deepcopy(model.state_dict()), 0
                progress.update(task, description=f"{type(model).__name__} NDCG@10 {ndcg:.4f} best {best:.4f}")
            if on_epoch is not None:
                is_best = ndcg is not None and since_best == 0
                seconds = time.perf_counter() - begun
                on_epoch(EpochRecord(epoch, total / model.n_batches, seconds, recall, ndcg, is_best))
            if since_best >= settings.patience:
                break
    model.load_state_dict(best_weights)
    return model.eval()


def validate(model: Baseline, examples: Sequence[Example]) -> tuple[float, float]:
    """Return Recall@10 and NDCG@10 over all examples."""
    k = SELECTED_AT
    rows_PK = np.concatenate(
        [
            model.recommend([e.context for e in examples[i : i + REQUESTS_AT_ONCE]], k=k).rows_PG.numpy()
            for i in range(0, len(examples), REQUESTS_AT_ONCE)
        ]
    )
    positives = [example.positives for example in examples]
    recall, ndcg = metrics.recall(rows_PK, positives, k=k), metrics.ndcg(rows_PK, positives, k=k)
    return float(recall.mean()), float(ndcg.mean())


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    weights = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
