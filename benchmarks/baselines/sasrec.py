"""SASRec: a causal transformer over items, with learned positions.

Paper: Kang and McAuley 2018 (arXiv:1808.09781). ``loss="bce"`` is the paper's, with one sampled negative a
position; ``"ce"`` is the softmax over all items, the stronger variant of later audits (Klenitskiy and Vasilev
2023, arXiv:2309.07602; Petrov and Macdonald 2023, arXiv:2308.07192).

    B   batch        T   positions        D   dimensions        n   predicted positions
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from benchmarks.baselines.losses import sampled_bce_loss
from benchmarks.baselines.next_item import NextItemModel, initialise, use_cheap_dropout
from benchmarks.baselines.sequences import Batch, Sequences, training_sequences
from benchmarks.baselines.training import FitSettings, OnEpoch, fit
from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.sids.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class SasRecSettings(FitSettings):
    """Sizes of the transformer, and the loss."""

    loss: Literal["bce", "ce"]
    dim: int = 128
    layers: int = 2
    heads: int = 2
    dropout: float = 0.5

    def __post_init__(self) -> None:
        FitSettings.__post_init__(self)
        if self.loss not in ("bce", "ce"):
            raise ConfigError(f"loss '{self.loss}' is neither bce nor ce")


CE = SasRecSettings(loss="ce", epochs=12, patience=3, schedule="cosine", bf16=True, dropout=0.2)
BCE = SasRecSettings(loss="bce", epochs=100, evaluate_every=5, patience=3, dim=64)


class SasRec(NextItemModel):
    """Pre-norm transformer layers with a feed-forward of D units, over item plus position embeddings."""

    def __init__(self, sequences: Sequences, codes: np.ndarray, settings: SasRecSettings) -> None:
        super().__init__(sequences, codes, dim=settings.dim, settings=settings)
        self.settings: SasRecSettings = settings
        self.positions = nn.Embedding(settings.max_history, settings.dim)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                settings.dim,
                settings.heads,
                dim_feedforward=settings.dim,
                dropout=settings.dropout,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(settings.dim)
        initialise(self)
        use_cheap_dropout(self)

    def states(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """Return the last layer's output, normalised."""
        n_positions = batch.items_BT.shape[1]
        x_BTD = self.dropout(self.embed(batch.items_BT) + self.positions.weight[:n_positions])
        causal_TT = nn.Transformer.generate_square_subsequent_mask(n_positions, device=x_BTD.device)
        for block in self.blocks:
            x_BTD = block(x_BTD, src_mask=causal_TT, is_causal=True)
        return self.norm(x_BTD)

    def loss(self, batch: Batch, rng: np.random.Generator) -> Float[Tensor, ""]:
        """Return the loss that the settings name."""
        if self.settings.loss == "ce":
            return super().loss(batch, rng)
        inputs = batch.inputs
        negatives_n = draw_negatives(batch, n_items=self.items.num_embeddings, rng=rng)
        states_nD = self.states(inputs)[inputs.is_item_BT]
        return sampled_bce_loss(states_nD, self.items.weight, batch.next_items, negatives_n)


def draw_negatives(batch: Batch, *, n_items: int, rng: np.random.Generator) -> Int64[Tensor, " n"]:
    """Draw an item for each predicted position, uniform over those that do not occur in its window.

    Raises:
        ConfigError: when a window may hold the whole catalogue.
    """
    items_BT, device = batch.items_BT, batch.items_BT.device
    if items_BT.shape[1] >= n_items:
        raise ConfigError(f"a window of {items_BT.shape[1]} may hold all {n_items} items; lower max_history")
    is_next_BT = batch.is_item_BT[:, 1:]
    rows_n = torch.arange(len(items_BT), device=device).unsqueeze(1).expand_as(is_next_BT)[is_next_BT]
    # A padded place repeats the window's first item: row 0, which pads, may be drawn.
    known_BT = torch.where(batch.is_item_BT, items_BT, items_BT[:, :1])
    negatives_n = torch.from_numpy(rng.integers(n_items, size=len(rows_n))).to(device)
    while len(clashes := (known_BT[rows_n] == negatives_n.unsqueeze(1)).any(1).nonzero().squeeze(1)):
        negatives_n[clashes] = torch.from_numpy(rng.integers(n_items, size=len(clashes))).to(device)
    return negatives_n


def fit_sasrec(
    dataset: Dataset, catalog: Catalog, *, settings: SasRecSettings, seed: int, on_epoch: OnEpoch = None
) -> SasRec:
    """Train SASRec on the training pages, stopped by the validation pages."""
    torch.manual_seed(seed)
    model = SasRec(training_sequences(dataset), catalog.codes, settings)
    valid = dataset.examples("valid", max_history=settings.max_history)
    return fit(model, valid, seed=seed, on_epoch=on_epoch)
