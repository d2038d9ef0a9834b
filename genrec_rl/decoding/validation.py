"""Recommendation metrics of a policy while it trains: what the best checkpoint is chosen by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from genrec_rl import metrics
from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.errors import ConfigError
from genrec_rl.types import Example


class Validation:
    """Recommends for held-out pages, on every process its share, and averages over all.

    Args:
        examples: held-out pages; never the test split.
        recommender: the policy under training.
        beams: items recommended per page, at least 10.
        measure_hallucination: also decode without the catalogue's trie and count invalid SIDs.

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
    ) -> None:
        if beams < 10:
            raise ConfigError(f"eval_beams is {beams}; HR@10 and NDCG@10 need at least 10")
        self.examples = examples
        self.recommender = recommender
        self.beams = beams
        self.measure_hallucination = measure_hallucination

    def measure(self, accelerator: Accelerator) -> dict[str, float]:
        """Return HR@10, NDCG@10 (constrained beams) and HaR@10 (free beams), means over all examples."""
        mine = range(accelerator.process_index, len(self.examples), accelerator.num_processes)
        totals = dict.fromkeys(("hr@10", "ndcg@10", *(["har@10"] if self.measure_hallucination else [])), 0.0)
        if len(mine):
            totals |= {n: float(v.sum()) for n, v in self._measure([self.examples[i] for i in mine]).items()}
        reduced: Any = torch.tensor([*totals.values(), len(mine)], dtype=torch.float32, device=accelerator.device)
        *sums, count = accelerator.reduce(reduced, reduction="sum").tolist()
        return {name: total / max(count, 1) for name, total in zip(totals, sums, strict=True)}

    def _measure(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        contexts = [example.context for example in examples]
        positives = [example.positives for example in examples]
        rows_PK = self.recommender.recommend(contexts, k=self.beams, constrained=True).rows_PG.numpy()
        result = {
            "hr@10": metrics.hit_rate(rows_PK, positives, k=10),
            "ndcg@10": metrics.ndcg(rows_PK, positives, k=10),
        }
        if self.measure_hallucination:
            free_PK = self.recommender.recommend(contexts, k=self.beams, constrained=False).rows_PG.numpy()
            result["har@10"] = metrics.hallucination_rate(free_PK, k=10)
        return result
