"""Answers that are given again for a while (GR4AD keeps results one minute: 27.8 % of requests hit)."""

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import TTLCache

from genrec_rl.errors import ConfigError

A = TypeVar("A")


class AnswerCache(Generic[A]):
    """Keeps the latest answers; the least recently used go first where there is no room. Not for several threads.

    Args:
        size: answers kept; 0 keeps none.
        ttl_s: seconds that an answer lives; 0 keeps none.
        clock: seconds of a clock that does not go back.

    Raises:
        ConfigError: for a negative size or time.
    """

    def __init__(self, *, size: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        if size < 0:
            raise ConfigError(f"cache_size is {size}; at least 0, which keeps no answers")
        if not ttl_s >= 0:
            raise ConfigError(f"cache_ttl_s is {ttl_s}; at least 0 seconds, which keeps no answers")
        self._kept: TTLCache[Hashable, A] = TTLCache(maxsize=size, ttl=ttl_s, timer=clock)

    def get(self, key: Hashable) -> A | None:
        """Return the answer kept under a key, or None."""
        return self._kept.get(key)

    def keep(self, key: Hashable, answer: A) -> None:
        """Keep an answer, which lives from now on."""
        if self._kept.maxsize:
            self._kept[key] = answer

    def __len__(self) -> int:
        self._kept.expire()
        return len(self._kept)
