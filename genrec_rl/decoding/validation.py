"""Recommendation metrics of a policy while it trains: what the best checkpoint is chosen by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from genrec_rl import metrics
from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.rerank import rerank
from genrec_rl.errors import ConfigError
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.rewards.scoring import GatedReward
from genrec_rl.types import Example, Rollouts

RERANKED = "reranked_ndcg@10"
GAIN_ERROR = "reranked_gain_error"
"""Standard error of what re-ranking gains on NDCG@10, over requests."""
_GAIN_SQUARED = "reranked_gain_squared"
VALUE = "value@10"
_HAS_VALUE = "requests_with_value"
HELD_OUT = "ndcg@10_held_out"
_IS_HELD_OUT = "requests_held_out"


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """What was recommended for this process's share of the pages: within the catalogue and, if measured, freely."""

    examples: Sequence[Example]
    constrained: Rollouts
    free: Rollouts | None


Watch = Callable[[Proposals | None, Accelerator], dict[str, float]]
"""Measures more of an evaluation's proposals, on all processes together; None where a process has no page."""


class Validation:
    """Recommends for held-out pages, on every process its share, and averages over all.

    Args:
        examples: held-out pages; never the test split.
        recommender: the policy under training.
        beams: items recommended per page, at least 10.
        measure_hallucination: also decode without the catalogue's trie and count invalid SIDs.
        reward_model: also re-rank the constrained beams by it, see ``decoding.rerank``.
        rerank_weight: of its log-odds.
        is_held_out: whether training saw nothing of a request, not even its context; NDCG@10 is also given of those.
        watch: measures more of what was recommended.

    Raises:
        ConfigError: for fewer than 10 beams.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        recommender: BeamRecommender,
        *,
        beams: int = 20,
        measure_hallucination: bool = True,
        reward_model: RewardModel | GatedReward | None = None,
        rerank_weight: float = 1.0,
        is_held_out: Callable[[Example], bool] | None = None,
        watch: Watch | None = None,
    ) -> None:
        if beams < 10:
            raise ConfigError(f"eval_beams is {beams}; HR@10 and NDCG@10 need at least 10")
        self.examples = examples
        self.recommender = recommender
        self.beams = beams
        self.measure_hallucination = measure_hallucination
        self.reward_model = reward_model
        self.rerank_weight = rerank_weight
        self.has_values = any(example.positive_values.any() for example in examples)
        self.is_held_out = is_held_out if is_held_out is not None and any(map(is_held_out, examples)) else None
        self.watch = watch
        self._newest: Proposals | None = None

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the metrics."""
        free = ("har@10",) if self.measure_hallucination else ()
        of_some = [name for share in self._shares.items() for name in share]
        reranked = (RERANKED, _GAIN_SQUARED) if self.reward_model is not None else ()
        return ("hr@10", "ndcg@10", "seen@10", *of_some, *free, *reranked)

    @property
    def _shares(self) -> dict[str, str]:
        """Metrics that say nothing of some requests, and the name under which the others are counted."""
        shares = {VALUE: _HAS_VALUE} if self.has_values else {}
        return shares | ({HELD_OUT: _IS_HELD_OUT} if self.is_held_out is not None else {})

    def measure(self, accelerator: Accelerator) -> dict[str, float]:
        """Return means: HR@10, NDCG@10 (also re-ranked), seen@10 of constrained beams, HaR@10 of free ones.

        Where examples have values, also value@10, over the requests that are worth something.
        """
        mine = range(accelerator.process_index, len(self.examples), accelerator.num_processes)
        totals = dict.fromkeys(self.measured, 0.0)
        if len(mine):
            totals |= {n: float(v.sum()) for n, v in self._measure([self.examples[i] for i in mine]).items()}
        reduced: Any = torch.tensor([*totals.values(), len(mine)], dtype=torch.float32, device=accelerator.device)
        *sums, count = accelerator.reduce(reduced, reduction="sum").tolist()
        means = {name: total / max(count, 1) for name, total in zip(totals, sums, strict=True)}
        for name, counted in self._shares.items():
            means[name] /= max(means.pop(counted), 1e-12)
        if self.reward_model is not None:
            gain, squared = means[RERANKED] - means["ndcg@10"], means.pop(_GAIN_SQUARED)
            means[GAIN_ERROR] = (max(squared - gain**2, 0.0) / max(count, 1)) ** 0.5
        if self.watch is not None:
            newest, self._newest = self._newest, None
            means |= self.watch(newest, accelerator)
        return means

    def _measure(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        contexts = [example.context for example in examples]
        positives = [example.positives for example in examples]
        proposed = self.recommender.recommend(contexts, k=self.beams, constrained=True)
        rows_PK = proposed.rows_PG.numpy()
        result = {
            "hr@10": metrics.hit_rate(rows_PK, positives, k=10),
            "ndcg@10": metrics.ndcg(rows_PK, positives, k=10),
            "seen@10": metrics.seen_share(rows_PK, [context.seen for context in contexts], k=10),
        }
        if self.has_values:
            found = metrics.value_recall(rows_PK, positives, [example.positive_values for example in examples], k=10)
            result |= {VALUE: np.nan_to_num(found), _HAS_VALUE: np.isfinite(found).astype(float)}
        if self.is_held_out is not None:
            held_out = np.array([self.is_held_out(example) for example in examples], float)
            result |= {HELD_OUT: result["ndcg@10"] * held_out, _IS_HELD_OUT: held_out}
        free = None
        if self.measure_hallucination:
            free = self.recommender.recommend(contexts, k=self.beams, constrained=False)
            result["har@10"] = metrics.hallucination_rate(free.rows_PG.numpy(), k=10)
        self._newest = Proposals(examples, proposed, free)
        if self.reward_model is not None:
            reranked = rerank(proposed, self.reward_model, contexts, weight=self.rerank_weight)
            result[RERANKED] = metrics.ndcg(reranked.rows_PG.numpy(), positives, k=10)
            result[_GAIN_SQUARED] = (result[RERANKED] - result["ndcg@10"]) ** 2
        return result
