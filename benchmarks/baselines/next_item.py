"""What SASRec and HSTU share: read a sequence causally, predict the next item at each position.

B   batch        T   positions        D   dimensions        N   catalogue items        n   predicted positions
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from benchmarks.baselines.losses import softmax_loss
from benchmarks.baselines.sequences import (
    Batch,
    Sequences,
    by_length,
    context_batch,
    full_ranking,
    gather,
    shuffled_batches,
)
from benchmarks.baselines.training import Baseline, FitSettings
from genrec_rl.models.dropout import ByteDropout
from genrec_rl.types import Context, Rollouts

INITIAL_STD = 0.02
RANKED_AT_ONCE = 128


class FullRanker(Baseline):
    """Trained on windows of users' sequences, it scores every item of the catalogue for a history.

    Args:
        sequences: what it is trained on.
        codes: SID of each item, for the answers.
        settings: of the training.
    """

    def __init__(self, sequences: Sequences, codes: np.ndarray, settings: FitSettings) -> None:
        windows = sequences.windows(settings.max_history + 1)
        super().__init__(settings, n_batches=-(-len(windows) // settings.batch_size))
        self._windows = windows
        self._codes_NL = torch.from_numpy(codes.astype(np.int64))

    def losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield the mean loss over what each batch of windows predicts."""
        windows = self._windows
        for chosen in shuffled_batches(windows.lengths, batch_size=self.settings.batch_size, rng=rng):
            batch = gather(windows, windows.offsets[chosen], windows.offsets[chosen + 1])
            yield self.loss(batch.to(self.device), rng)

    def loss(self, batch: Batch, rng: np.random.Generator) -> Float[Tensor, ""]:
        """Return the mean loss of a batch of windows."""
        raise NotImplementedError

    def scores(self, batch: Batch) -> Float[Tensor, "B N"]:
        """Return the score of every item as the next one."""
        raise NotImplementedError

    @torch.inference_mode()
    def recommend(self, contexts: Sequence[Context], *, k: int, constrained: bool = True) -> Rollouts:  # noqa: ARG002
        """Return the k items with the highest scores; they are items, so the constraint holds anyway."""
        groups = by_length(contexts, batch_size=RANKED_AT_ONCE)
        parts = []
        for group in groups:
            batch = context_batch([contexts[i] for i in group], max_history=self.settings.max_history)
            parts.append(full_ranking(self.scores(batch.to(self.device)), self._codes_NL, k=k))
        return in_order(parts, groups)


class NextItemModel(FullRanker):
    """A causal model with tied item embeddings; a subclass says how ``states`` come about.

    Args:
        sequences: what it is trained on.
        codes: SID of each item, for the answers.
        dim: of the item embeddings.
        settings: of the training.
    """

    def __init__(self, sequences: Sequences, codes: np.ndarray, *, dim: int, settings: FitSettings) -> None:
        super().__init__(sequences, codes, settings)
        self.items = nn.Embedding(len(codes), dim)

    def states(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """Return what each position says of the next item; position t depends on the items up to t alone."""
        raise NotImplementedError

    def embed(self, items_BT: Int64[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return the item embeddings times sqrt(D), as in the authors' code of both models."""
        return self.items(items_BT) * self.items.embedding_dim**0.5

    def loss(self, batch: Batch, rng: np.random.Generator) -> Float[Tensor, ""]:  # noqa: ARG002
        """Return the cross-entropy of each next item against all items."""
        inputs = batch.inputs
        states_nD = self.states(inputs)[inputs.is_item_BT]
        return softmax_loss(states_nD, self.items.weight, batch.next_items, bf16=self.settings.bf16)

    def scores(self, batch: Batch) -> Float[Tensor, "B N"]:
        """Return the score of every item as the next one."""
        states_BTD = self.states(batch)
        rows_B = torch.arange(len(states_BTD), device=states_BTD.device)
        last_BD = states_BTD[rows_B, batch.lengths_B - 1]
        return last_BD @ self.items.weight.T


def in_order(parts: Sequence[Rollouts], groups: Sequence[np.ndarray]) -> Rollouts:
    """Put answers to groups of requests back into the requests' order."""
    back = torch.from_numpy(np.argsort(np.concatenate(groups), kind="stable"))
    return Rollouts(
        sids_PGL=torch.cat([p.sids_PGL for p in parts])[back],
        rows_PG=torch.cat([p.rows_PG for p in parts])[back],
        log_probs_PG=torch.cat([p.log_probs_PG for p in parts])[back],
    )


def use_cheap_dropout(model: nn.Module) -> None:
    """Replace every ``nn.Dropout`` inside by ``ByteDropout``, which is the same to within 1/256 of its rate."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, ByteDropout(child.p))


def initialise(model: nn.Module) -> None:
    """Draw matrices and embeddings from N(0, .02^2), and set biases to 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_weight, std=INITIAL_STD)
