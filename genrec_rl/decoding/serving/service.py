"""Answers batches of requests with a policy: as wide as the load allows, valid items only, as many as asked for."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.rerank import check_weight, rerank
from genrec_rl.decoding.serving.counters import Counters
from genrec_rl.decoding.serving.load import WidthPlan, largest_capacity, level_widths, start, step
from genrec_rl.decoding.serving.requests import Ask
from genrec_rl.errors import ConfigError
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.types import NO_ITEM, Context

Found = list[tuple[int, float]]
"""Catalogue rows and scores, best first."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is recommended, best first: rows and scores; and how wide the search was."""

    items: tuple[tuple[int, float], ...]
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Reranking:
    """A reward model's say in the order, see ``decoding.rerank``."""

    reward_model: RewardModel
    weight: float

    def __post_init__(self) -> None:
        check_weight(self.weight)


class SearchService:
    """Searches batches, and keeps the width that the load asks for. For one thread.

    Args:
        recommender: the policy.
        plan: widths, and how they follow the load.
        growing_widths: double the beams from level to level, see ``level_widths``; else all levels are equal.
        reranking: reward model and weight, or None for the policy's own order.
        counters: where searches are counted.
        clock: seconds of a clock that does not go back.
    """

    def __init__(
        self,
        recommender: BeamRecommender,
        *,
        plan: WidthPlan,
        growing_widths: bool = True,
        reranking: Reranking | None = None,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recommender = recommender
        self.plan = plan
        self.growing_widths = growing_widths
        self.reranking = reranking
        self.counters = counters or Counters()
        self._clock = clock
        self._load = start(plan, now=clock())

    @property
    def max_k(self) -> int:
        """Items that may be asked for: as many as the narrowest search answers."""
        return min(self.plan.floor, self.recommender.catalog.trie.n_sids)

    @property
    def width(self) -> int:
        """Final width of the last search."""
        return self._load.width

    def fit_capacity(self, contexts: Sequence[Context], *, within_s: float, max_queue: int) -> None:
        """Set the plan's capacity to the requests that are searched ``base`` wide within a time, at least 1.

        Measured on this machine as it is now: contexts are searched together twice, and the second time counts. It
        is never so large that the line would be full before the width has come down to the floor.

        Raises:
            ConfigError: without contexts.
        """
        if not contexts:
            raise ConfigError("no validation request to measure the capacity with; set capacity")
        asks = [Ask(context, 1, frozenset(), 0, None) for context in contexts]
        widths = level_widths(self.plan.base, self.recommender.catalog.n_levels, growing=self.growing_widths)
        self._search(asks, widths)
        begun = self._clock()
        self._search(asks, widths)
        seconds = max(self._clock() - begun, 1e-6)
        measured = max(within_s * len(asks) / seconds, 1.0)
        self.plan = replace(self.plan, capacity=min(measured, largest_capacity(self.plan, max_queue=max_queue)))

    def answer(self, asks: list[Ask], load: int) -> list[Answer]:
        """Return each request's k best items of the beams that the load allows.

        Where narrow early levels, or items that may not be recommended, leave fewer than k, the request is searched
        again with k beams on every level and one more for each excluded item: then only a catalogue with fewer
        other items gives fewer.

        Args:
            asks: a batch.
            load: requests in the service, these among them.
        """
        self._load = step(self.plan, self._load, load=load, now=self._clock())
        n_levels = self.recommender.catalog.n_levels
        found = self._search(asks, level_widths(self.width, n_levels, growing=self.growing_widths))
        short = [i for i, ask in enumerate(asks) if len(found[i]) < ask.k]
        for i in short:  # each by itself: one that excludes much must not widen the others
            (found[i],) = self._search([asks[i]], (asks[i].k + len(asks[i].excluded),) * n_levels)
        self.counters.add("searches")
        self.counters.add("searched", len(asks))
        self.counters.add("searched_again", len(short))
        self.counters.add("shed", len(asks) * (self.width < self.plan.base))
        return [Answer(tuple(items), self.width) for items in found]

    def _search(self, asks: Sequence[Ask], widths: tuple[int, ...]) -> list[Found]:
        contexts = [ask.context for ask in asks]
        proposed = self.recommender.propose(contexts, widths=widths, constrained=True)
        if self.reranking is not None:
            proposed = rerank(proposed, self.reranking.reward_model, contexts, weight=self.reranking.weight)
        rows_PG, scores_PG = proposed.rows_PG.numpy(), proposed.log_probs_PG.numpy()
        return [best_allowed(ask, rows, scores) for ask, rows, scores in zip(asks, rows_PG, scores_PG, strict=True)]


def best_allowed(ask: Ask, rows_G: np.ndarray, scores_G: np.ndarray) -> Found:
    """Return the first k proposals that are items and not excluded."""
    pairs = zip(rows_G.tolist(), scores_G.tolist(), strict=True)
    return [(row, score) for row, score in pairs if row != NO_ITEM and row not in ask.excluded][: ask.k]
