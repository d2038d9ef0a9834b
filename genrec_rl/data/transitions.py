"""What followed what in pages: the pairs that co-occurrence recommenders and reward models count."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from genrec_rl.types import Example


@dataclass(frozen=True, slots=True, eq=False)
class Transitions:
    """Occurrences of pairs, page after page: ``weights`` is decay^(steps - 1), ``pages`` the page's place."""

    before: Int64[np.ndarray, " n"]
    after: Int64[np.ndarray, " n"]
    weights: Float64[np.ndarray, " n"]
    pages: Int64[np.ndarray, " n"]


def list_transitions(examples: Sequence[Example], *, n_last: int, decay: float) -> Transitions:
    """Pair every clicked or ordered item of a page with the ``n_last`` items before it.

    Those are the earlier ones of its page, in target order, and before them the history. Pairs inside a history are
    left out: the page that they come from tells of them.
    """
    before, after, weights, pages = ([np.zeros(0, np.int64)] for _ in range(4))
    for place, example in enumerate(examples):
        known = example.context.history[-n_last:]
        items = np.concatenate([known, example.positives]).astype(np.int64)
        for step in range(1, min(n_last, len(items) - 1) + 1):
            first = max(len(known), step)
            before.append(items[first - step : len(items) - step])
            after.append(items[first:])
            weights.append(np.full(len(items) - first, decay ** (step - 1)))
            pages.append(np.full(len(items) - first, place))
    joined = (np.concatenate(column) for column in (before, after, weights, pages))
    return Transitions(*joined)
