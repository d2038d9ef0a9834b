"""Recommendation metrics of a policy while it trains: what the best checkpoint is chosen by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from genrec_rl import metrics
from genrec_rl.decoding.beam_search import BeamRecommender
from genrec_rl.errors import ConfigError
from genrec_rl.types import Example


class Validation:
    """Recommends for held-out pages, on every process its share, and averages over all.

    Args:
        examples: held-out pages; never the test split.
        recommender: the policy under training.
        beams: items recommended per page, at least 10.
        batch_size: pages decoded at once on a process.
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
        batch_size: int = 64,
        measure_hallucination: bool = True,
    ) -> None:
        if beams < 10:
            raise ConfigError(f"eval_beams is {beams}; HR@10 and NDCG@10 need at least 10")
        self.examples = examples
        self.recommender = recommender
        self.beams = beams
        self.batch_size = batch_size
        self.measure_hallucination = measure_hallucination

    def measure(self, accelerator: Accelerator) -> dict[str, float]:
        """Return HR@10, NDCG@10 (constrained beams) and HaR@10 (free beams), means over all examples."""
        mine = range(accelerator.process_index, len(self.examples), accelerator.num_processes)
        totals = {"hr@10": 0.0, "ndcg@10": 0.0}
        if self.measure_hallucination:
            totals["har@10"] = 0.0
        for start in range(0, len(mine), self.batch_size):
            batch = [self.examples[i] for i in mine[start : start + self.batch_size]]
            for name, value in self._measure_batch(batch).items():
                totals[name] += float(value.sum())
        sums: Any = torch.tensor([*totals.values(), len(mine)], dtype=torch.float32, device=accelerator.device)
        *values, count = accelerator.reduce(sums, reduction="sum").tolist()
        return {name: value / max(count, 1) for name, value in zip(totals, values, strict=True)}

    def _measure_batch(self, batch: Sequence[Example]) -> dict[str, np.ndarray]:
        contexts = [example.context for example in batch]
        positives = [example.positives for example in batch]
        rows_PK = self.recommender.recommend(contexts, k=self.beams, constrained=True).rows_PG.numpy()
        result = {
            "hr@10": metrics.hit_rate(rows_PK, positives, k=10),
            "ndcg@10": metrics.ndcg(rows_PK, positives, k=10),
        }
        if self.measure_hallucination:
            free_PK = self.recommender.recommend(contexts, k=self.beams, constrained=False).rows_PG.numpy()
            result["har@10"] = metrics.hallucination_rate(free_PK, k=10)
        return result
