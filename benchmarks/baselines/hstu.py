"""HSTU: pointwise attention without softmax, gated, with relative position and time bias.

Paper: Zhai et al. 2024 (arXiv:2402.17152), equations 1 to 3. Where we leave it: the softmax runs over all
items, not over sampled ones, and the query's time is its own item's, not the next request's, so that the time
of what is to be predicted stays unknown.

    B   batch        T   positions        D   dimensions        H   heads        d   dimensions of a head
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.baselines.next_item import INITIAL_STD, NextItemModel, use_cheap_dropout
from benchmarks.baselines.sequences import Batch, Sequences, training_sequences
from benchmarks.baselines.training import FitSettings, OnEpoch, fit
from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.sids.catalog import Catalog

TIME_BUCKETS = 96
TIME_BUCKET_WIDTH = 0.301
"""Of the natural logarithm of seconds, as in the authors' code: 96 buckets reach past any log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HstuSettings(FitSettings):
    """Sizes; a head's queries and values have ``dim / heads`` dimensions."""

    dim: int = 128
    layers: int = 2
    heads: int = 2
    dropout: float = 0.5

    def __post_init__(self) -> None:
        FitSettings.__post_init__(self)
        if self.dim % self.heads:
            raise ConfigError(f"dim {self.dim} must be a multiple of {self.heads} heads; change one of them")


DEFAULTS = HstuSettings(epochs=16, patience=3, schedule="cosine", bf16=True)


class HstuLayer(nn.Module):
    """One layer: ``x + f2(norm(A V) * U)`` with ``A = silu(Q K^T + bias) / n`` (equations 1 to 3).

    There is no feed-forward: the gate U stands for it.
    """

    def __init__(self, settings: HstuSettings) -> None:
        super().__init__()
        dim = settings.dim
        self.heads, self.n = settings.heads, settings.max_history
        self.norm_in, self.norm_out = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.f1, self.f2 = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(dim, dim)
        self.position_bias = nn.Parameter(torch.randn(settings.heads, settings.max_history) * INITIAL_STD)
        self.time_bias = nn.Parameter(torch.randn(settings.heads, TIME_BUCKETS) * INITIAL_STD)
        self.dropout = nn.Dropout(settings.dropout)
        nn.init.xavier_uniform_(self.f1.weight)
        nn.init.xavier_uniform_(self.f2.weight)
        nn.init.zeros_(self.f2.bias)

    def forward(self, x_BTD: Float[Tensor, "B T D"], buckets_BTT: Int64[Tensor, "B T T"]) -> Float[Tensor, "B T D"]:
        """Return the layer's output; ``buckets_BTT`` holds the time from key to query."""
        u_BTD, values_BTD, queries_BTD, keys_BTD = functional.silu(self.f1(self.norm_in(x_BTD))).chunk(4, dim=2)
        values, queries, keys = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (values_BTD, queries_BTD, keys_BTD)
        )
        position = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        distance_TT = position.unsqueeze(1) - position
        bias = self.position_bias[:, distance_TT.clamp(min=0)] + self.time_bias[:, buckets_BTT].transpose(0, 1)
        attention = functional.silu(queries @ keys.transpose(2, 3) + bias).masked_fill(distance_TT < 0, 0) / self.n
        mixed_BTD = (attention @ values).transpose(1, 2).flatten(2)
        return x_BTD + self.f2(self.dropout(self.norm_out(mixed_BTD) * u_BTD))


class Hstu(NextItemModel):
    """HSTU layers over item embeddings with learned positions."""

    def __init__(self, sequences: Sequences, codes: np.ndarray, settings: HstuSettings) -> None:
        super().__init__(sequences, codes, dim=settings.dim, settings=settings)
        self.positions = nn.Embedding(settings.max_history, settings.dim)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(HstuLayer(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.dim)
        nn.init.normal_(self.items.weight, std=INITIAL_STD)
        nn.init.normal_(self.positions.weight, std=INITIAL_STD)
        use_cheap_dropout(self)

    def states(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """Return the last layer's output, normalised."""
        x_BTD = self.dropout(self.embed(batch.items_BT) + self.positions.weight[: batch.items_BT.shape[1]])
        buckets_BTT = time_buckets(batch.times_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, buckets_BTT)
        return self.norm(x_BTD)


def time_buckets(times_BT: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T T"]:
    """Return floor(ln(seconds from key to query) / .301), 0 below a second."""
    seconds = (times_BT.unsqueeze(2) - times_BT.unsqueeze(1)).clamp(min=1)
    return (seconds.float().log() / TIME_BUCKET_WIDTH).long().clamp(max=TIME_BUCKETS - 1)


def fit_hstu(
    dataset: Dataset, catalog: Catalog, *, settings: HstuSettings, seed: int, on_epoch: OnEpoch = None
) -> Hstu:
    """Train HSTU on the training pages, stopped by the validation pages."""
    torch.manual_seed(seed)
    model = Hstu(training_sequences(dataset), catalog.codes, settings)
    valid = dataset.examples("valid", max_history=settings.max_history)
    return fit(model, valid, seed=seed, on_epoch=on_epoch)
