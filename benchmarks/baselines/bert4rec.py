"""BERT4Rec: a bidirectional transformer that fills masked items, on transformers' BertModel.

Paper: Sun et al. 2019 (arXiv:1904.06690). Positions count from the newest item, so that the mask which stands
for the next item is position 0 in every sequence, in training and when recommending.

    B   batch        T   positions        D   dimensions        N   catalogue items
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

from benchmarks.baselines.losses import softmax_loss
from benchmarks.baselines.next_item import INITIAL_STD, FullRanker, use_cheap_dropout
from benchmarks.baselines.sequences import Batch, Sequences, training_sequences
from benchmarks.baselines.training import FitSettings, OnEpoch, fit
from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.sids.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Bert4RecSettings(FitSettings):
    """Sizes, and the masks of training: of a share ``last_only`` of the sequences the last item alone is masked,
    of the others each item with probability ``mask_share``, and at least one.
    """  # noqa: D205

    dim: int = 128
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    mask_share: float = 0.2
    last_only: float = 0.25

    def __post_init__(self) -> None:
        FitSettings.__post_init__(self)
        for name in ("mask_share", "last_only"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in 0..1")


DEFAULTS = Bert4RecSettings(epochs=20, evaluate_every=4, patience=3, schedule="cosine", warmup_steps=300, bf16=True)


class Bert4Rec(FullRanker):
    """BertModel with BERT's prediction head, tied to the item embeddings; token N is the mask."""

    def __init__(self, sequences: Sequences, codes: np.ndarray, settings: Bert4RecSettings) -> None:
        super().__init__(sequences, codes, settings)
        self.settings: Bert4RecSettings = settings
        self.mask_token = len(codes)
        config = BertConfig(
            vocab_size=len(codes) + 1,
            hidden_size=settings.dim,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=4 * settings.dim,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
            max_position_embeddings=settings.max_history + 1,
            type_vocab_size=1,
            initializer_range=INITIAL_STD,
            pad_token_id=None,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        dense = nn.Linear(settings.dim, settings.dim)
        self.transform = nn.Sequential(dense, nn.GELU(), nn.LayerNorm(settings.dim))
        nn.init.normal_(dense.weight, std=INITIAL_STD)
        nn.init.zeros_(dense.bias)
        use_cheap_dropout(self)

    @property
    def item_weight(self) -> Float[Tensor, "N D"]:
        """Embeddings of the items, without the mask's."""
        return self.bert.embeddings.word_embeddings.weight[: self.mask_token]

    def states(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """Return what each position says of the item that stands there."""
        place_T = torch.arange(batch.items_BT.shape[1], device=self.device)
        from_newest_BT = (batch.lengths_B.unsqueeze(1) - 1 - place_T).clamp(min=0)
        output = self.bert(
            input_ids=batch.items_BT, attention_mask=batch.is_item_BT.long(), position_ids=from_newest_BT
        )
        return self.transform(output.last_hidden_state)

    def loss(self, batch: Batch, rng: np.random.Generator) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the masked items against all items."""
        is_masked_BT = draw_masks(batch, self.settings, rng)
        hidden = replace(batch, items_BT=batch.items_BT.masked_fill(is_masked_BT, self.mask_token))
        states_nD = self.states(hidden)[is_masked_BT]
        return softmax_loss(states_nD, self.item_weight, batch.items_BT[is_masked_BT], bf16=self.settings.bf16)

    def scores(self, batch: Batch) -> Float[Tensor, "B N"]:
        """Append a mask to each history, and return every item's score for its place."""
        asked = with_mask(batch, self.mask_token)
        rows = torch.arange(len(asked.items_BT), device=self.device)
        return self.states(asked)[rows, batch.lengths_B] @ self.item_weight.T


def with_mask(batch: Batch, mask_token: int) -> Batch:
    """Put the mask behind each sequence's newest item, at that item's time."""
    end_B1 = batch.lengths_B.unsqueeze(1)
    items_BT = functional.pad(batch.items_BT, (0, 1)).scatter(1, end_B1, mask_token)
    times_BT = functional.pad(batch.times_BT, (0, 1)).scatter(1, end_B1, batch.times_BT.gather(1, end_B1 - 1))
    return Batch(items_BT, times_BT, batch.lengths_B + 1)


def draw_masks(batch: Batch, settings: Bert4RecSettings, rng: np.random.Generator) -> Bool[Tensor, "B T"]:
    """Draw which items are hidden; every sequence has at least one, the last where no other was drawn."""
    is_item_BT, device = batch.is_item_BT, batch.items_BT.device
    draws_BT = torch.from_numpy(rng.random(is_item_BT.shape)).to(device)
    last_only_B1 = torch.from_numpy(rng.random((len(is_item_BT), 1))).to(device) < settings.last_only
    is_masked_BT = (draws_BT < settings.mask_share) & is_item_BT & ~last_only_B1
    is_last_BT = torch.arange(is_item_BT.shape[1], device=device) == batch.lengths_B.unsqueeze(1) - 1
    return is_masked_BT | (is_last_BT & ~is_masked_BT.any(1, keepdim=True))


def fit_bert4rec(
    dataset: Dataset, catalog: Catalog, *, settings: Bert4RecSettings, seed: int, on_epoch: OnEpoch = None
) -> Bert4Rec:
    """Train BERT4Rec on the training pages, stopped by the validation pages."""
    torch.manual_seed(seed)
    model = Bert4Rec(training_sequences(dataset), catalog.codes, settings)
    valid = dataset.examples("valid", max_history=settings.max_history)
    return fit(model, valid, seed=seed, on_epoch=on_epoch)
