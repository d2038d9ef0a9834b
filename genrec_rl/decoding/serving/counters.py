"""What a service has done since it started: counts, and the latencies of its latest answers."""

import math
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

KEPT_LATENCIES = 2048


class Counters:
    """Counts of one process. A count is changed by one thread alone.

    ``requests`` that were understood are ``answered`` (some from the cache: ``cache_hits``), refused for lack of
    room (``refused_queue_full``, ``refused_deadline``, ``refused_closing``: 503) or failed (``failed``: 500);
    ``rejected`` were not understood (4xx). ``shed`` answers were searched narrower than the base width.
    ``searched_again`` ones found fewer items than were asked for at first.
    """

    names = (
        "requests", "answered", "rejected", "failed", "refused_queue_full", "refused_deadline", "refused_closing",
        "cache_hits", "shed", "searches", "searched", "searched_again", "unknown_items",
    )  # fmt: skip

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._seconds: deque[float] = deque(maxlen=KEPT_LATENCIES)

    def add(self, name: str, n: int = 1) -> None:
        """Count something."""
        if name not in self.names:
            raise KeyError(f"no count '{name}'; there are {', '.join(self.names)}")
        self._counts[name] += n

    def took(self, seconds: float) -> None:
        """Count an answer, and remember how long it took."""
        self.add("answered")
        self._seconds.append(seconds)

    def snapshot(self) -> dict[str, int | float | None]:
        """Return all counts, and the latest answers' latencies."""
        counts: dict[str, int | float | None] = {name: self._counts[name] for name in self.names}
        p50, p99 = percentiles_ms(list(self._seconds), (50, 99))
        searches = self._counts["searches"]
        return counts | {
            "mean_batch": self._counts["searched"] / searches if searches else None,
            "latency_p50_ms": p50,
            "latency_p99_ms": p99,
        }


def percentiles_ms(seconds: Sequence[float], percents: Sequence[float]) -> list[float | None]:
    """Return percentiles in milliseconds, None where there is nothing to take them of."""
    finite = [second for second in seconds if math.isfinite(second)]
    if not finite:
        return [None] * len(percents)
    return [round(float(value) * 1000, 3) for value in np.percentile(finite, percents)]
