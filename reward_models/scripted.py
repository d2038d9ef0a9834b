"""Reward models with nothing learnt: for tests, ablations and as baselines beside a trained one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, Int
from typing_extensions import override

from genrec_rl.errors import ConfigError
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.types import Context
from reward_models.manifest import digest_of, read_files, write_files

_FILE = "config.json"


class Constant(RewardModel):
    """The same reward for every item: a group then carries no advantage at all."""

    def __init__(self, value: float = 0.5) -> None:
        if not 0 <= value <= 1:
            raise ConfigError(f"Constant: value {value} is outside [0, 1]; a reward lies in [0, 1]")
        self.value = value

    @property
    @override
    def fingerprint(self) -> str:
        return digest_of(self._files())

    @override
    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        return np.full(candidates.shape, self.value, dtype=np.float32)

    @override
    def save_pretrained(self, path: str | Path) -> None:
        write_files(path, self._files())

    @classmethod
    @override
    def from_pretrained(cls, path: str | Path) -> Self:
        return cls(**json.loads(read_files(path, (_FILE,))[_FILE]))

    def _files(self) -> dict[str, bytes]:
        return {_FILE: json.dumps({"value": self.value}).encode()}


class Popularity(RewardModel):
    """Reward log(1 + count) / log(1 + largest count), the same for every user.

    Args:
        counts: how often each catalogue row was clicked or ordered in training pages.
    """

    def __init__(self, counts: Sequence[int] | Int[np.ndarray, " n"]) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        if self.counts.ndim != 1 or not len(self.counts) or self.counts.min() < 0 or self.counts.max() == 0:
            raise ConfigError("Popularity: counts must be one number >= 0 per item, and not all 0")
        self._rewards: Float[np.ndarray, " n"] = (np.log1p(self.counts) / np.log1p(self.counts.max())).astype(
            np.float32
        )

    @property
    @override
    def fingerprint(self) -> str:
        return digest_of(self._files())

    @override
    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        return np.take(self._rewards, candidates)

    @override
    def save_pretrained(self, path: str | Path) -> None:
        write_files(path, self._files())

    @classmethod
    @override
    def from_pretrained(cls, path: str | Path) -> Self:
        return cls(**json.loads(read_files(path, (_FILE,))[_FILE]))

    def _files(self) -> dict[str, bytes]:
        return {_FILE: json.dumps({"counts": self.counts.tolist()}).encode()}
