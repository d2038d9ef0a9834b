"""Users' training sequences and histories as padded batches, and full rankings as rollouts.

Batches are padded on the RIGHT: position 0 is a window's oldest item, so a causal model needs no mask for the
padding, which lies behind every item. Padding repeats row 0; ``is_item_BT`` says what is real.

    U   sequences        M   items of all of them        B   batch        T   positions, newest last
    N   catalogue items        D   dimensions        P   requests        K   candidates
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.types import Context, Rollouts

BATCHES_SORTED_TOGETHER = 20
"""Batches among which sequences are sorted by length: little padding, and still a random order."""


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Item sequences end to end, oldest first: sequence u lies from ``offsets[u]`` to ``offsets[u + 1]``."""

    items: Int64[np.ndarray, " M"]
    times: Int64[np.ndarray, " M"]
    offsets: Int64[np.ndarray, " U+1"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " U"]:
        """Items of each sequence."""
        return np.diff(self.offsets)

    def windows(self, size: int) -> Self:
        """Cut each sequence of at least 2 items into windows of at most ``size``, the newest ones full.

        Neighbouring windows share one item, so that every item but a sequence's first is predicted once.
        """
        if size < 2:
            raise ConfigError(f"windows of {size} items predict nothing; at least 2 are needed, raise max_history")
        parts = [
            (max(begin, end - size), end)
            for begin, last in zip(self.offsets[:-1], self.offsets[1:], strict=True)
            for end in range(last, begin + 1, 1 - size)
        ]
        places = np.concatenate([np.arange(begin, end) for begin, end in parts])
        offsets = np.cumsum([0, *(end - begin for begin, end in parts)])
        return type(self)(self.items[places], self.times[places], offsets)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Right-padded sequences; ``lengths_B`` are at least 1."""

    items_BT: Int64[Tensor, "B T"]
    times_BT: Int64[Tensor, "B T"]
    lengths_B: Int64[Tensor, " B"]

    @property
    def is_item_BT(self) -> Bool[Tensor, "B T"]:
        """Whether a position holds an item, not padding."""
        place_T = torch.arange(self.items_BT.shape[1], device=self.items_BT.device)
        return place_T < self.lengths_B.unsqueeze(1)

    @property
    def inputs(self) -> "Batch":
        """All but each sequence's last item: what a causal model reads to predict the next ones."""
        return Batch(self.items_BT[:, :-1], self.times_BT[:, :-1], self.lengths_B - 1)

    @property
    def next_items(self) -> Int64[Tensor, " targets"]:
        """What follows each item of ``inputs``, row after row."""
        return self.items_BT[:, 1:][self.is_item_BT[:, 1:]]

    def to(self, device: torch.device) -> "Batch":
        """Return the same on a device."""
        return Batch(self.items_BT.to(device), self.times_BT.to(device), self.lengths_B.to(device))


def training_sequences(dataset: Dataset) -> Sequences:
    """Return each user's clicked and ordered items on TRAINING pages, in time order.

    Raises:
        DataError: when no user has two.
    """
    pages = dataset.pages
    is_train = np.zeros(len(pages), dtype=bool)
    is_train[dataset.split.train] = True
    kept = is_train[pages.history_pages]
    users = (np.cumsum(pages.starts_user) - 1)[pages.history_pages[kept]]
    lengths = np.bincount(users)
    if not (lengths > 1).any():
        raise DataError(
            f"the longest of {len(lengths)} training sequences has {lengths.max(initial=0)} items, "
            "at least 2 are needed; bring a longer log or choose another split"
        )
    offsets = np.cumsum([0, *lengths[lengths > 0]])
    return Sequences(pages.history_items[kept].astype(np.int64), pages.history_times[kept], offsets)


def shuffled_batches(
    lengths: Int64[np.ndarray, " U"], *, batch_size: int, rng: np.random.Generator
) -> Iterator[Int64[np.ndarray, " B"]]:
    """Yield all indices once, in random batches of similar lengths."""
    order = rng.permutation(len(lengths))
    together = batch_size * BATCHES_SORTED_TOGETHER
    order = np.concatenate(
        [
            chunk[np.argsort(lengths[chunk], kind="stable")]
            for chunk in np.split(order, range(together, len(order), together))
        ]
    )
    batches = np.split(order, range(batch_size, len(order), batch_size))
    for i in rng.permutation(len(batches)):
        yield batches[i]


def gather(sequences: Sequences, begins: Int64[np.ndarray, " B"], ends: Int64[np.ndarray, " B"]) -> Batch:
    """Pad the stretches of ``sequences.items`` from ``begins`` to ``ends``."""
    lengths = ends - begins
    place = np.arange(lengths.max())
    is_item = place < lengths[:, None]
    at = np.where(is_item, begins[:, None] + place, begins[:, None])
    items = np.where(is_item, sequences.items[at], 0)
    return Batch(torch.from_numpy(items), torch.from_numpy(sequences.times[at]), torch.from_numpy(lengths))


def context_batch(contexts: Sequence[Context], *, max_history: int) -> Batch:
    """Pad the newest ``max_history`` items of each history.

    Raises:
        DataError: for a user without history, whom these models cannot answer.
    """
    empty = next((c.user_id for c in contexts if not len(c.history)), None)
    if empty is not None:
        raise DataError(
            f"user {empty} has a history of 0 items, at least 1 is needed; leave such requests to popularity"
        )
    histories = [c.history[-max_history:].astype(np.int64) for c in contexts]
    times = [c.history_times[-max_history:].astype(np.int64) for c in contexts]
    offsets = np.cumsum([0, *map(len, histories)])
    return gather(Sequences(np.concatenate(histories), np.concatenate(times), offsets), offsets[:-1], offsets[1:])


def by_length(contexts: Sequence[Context], *, batch_size: int) -> list[Int64[np.ndarray, " B"]]:
    """Return the requests' places in batches of similar history lengths."""
    order = np.argsort([len(c.history) for c in contexts], kind="stable")
    return np.split(order, range(batch_size, len(order), batch_size))


def full_ranking(scores_PN: Float[Tensor, "P N"], codes_NL: Int64[Tensor, "N L"], *, k: int) -> Rollouts:
    """Return each request's k best items, with the log of the softmax over all items, on the CPU.

    Raises:
        ConfigError: for more candidates than items.
    """
    if k > scores_PN.shape[1]:
        raise ConfigError(f"{k} candidates asked of {scores_PN.shape[1]} catalogue items; lower beams")
    best_PK, rows_PK = scores_PN.topk(k, dim=1)
    log_probs_PK = best_PK - scores_PN.logsumexp(dim=1, keepdim=True)
    rows_PK, log_probs_PK = rows_PK.cpu(), log_probs_PK.cpu()
    return Rollouts(sids_PGL=codes_NL[rows_PK], rows_PG=rows_PK, log_probs_PG=log_probs_PK)
