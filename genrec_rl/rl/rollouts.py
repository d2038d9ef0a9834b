"""Pages to RL prompts, and rollouts to rewards in all their stages.

P   prompts        G   rollouts per prompt        L   SID levels
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor

from genrec_rl.models.prompts import PromptEncoder
from genrec_rl.rewards.matching import match_positives
from genrec_rl.rewards.protocol import Gate, RewardModel
from genrec_rl.rewards.scoring import pass_gate, score_candidates
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Context, Example, Rollouts


def build_prompts(examples: Sequence[Example], encode: Callable[[Context], Int[np.ndarray, " S"]]) -> Dataset:
    """Return a dataset of ``prompt`` (ids) and ``page`` (index into ``examples``), encoded when a row is read.

    The page travels in the row, so that a reward can never be bound to another page with the same history.
    """

    def write(batch: dict[str, list[int]]) -> dict[str, list]:
        pages = batch["page"]
        return {"prompt": [encode(examples[p].context).tolist() for p in pages], "page": pages}

    return Dataset.from_dict({"page": np.arange(len(examples))}).with_transform(write)


@dataclass(frozen=True, slots=True, eq=False)
class RolloutScorer:
    """Asks the reward model and the gate about rollouts, and looks for the page's positives among them."""

    reward_model: RewardModel
    gate: Gate | None
    catalog: Catalog

    def score(
        self, examples: Sequence[Example], rollouts: Rollouts
    ) -> tuple[Float[Tensor, "P G"], Bool[Tensor, "P G"], Bool[Tensor, "P G"]]:
        """Return r_pref, whether the gate passed, and whether the rollout is in D+.

        Raises:
            RewardError: when the reward model or the gate returns what is no reward.
        """
        contexts = [example.context for example in examples]
        positives = [example.positives for example in examples]
        rows_PG = rollouts.rows_PG.cpu().numpy()
        raw_PG = score_candidates(self.reward_model, contexts, rows_PG)
        is_relevant_PG = pass_gate(self.gate, contexts, rows_PG, positives)
        named = [self.catalog.rows_of(self.catalog.codes[rows]) for rows in positives]
        is_positive_PG = match_positives(rollouts.rows_PG, named)
        return torch.from_numpy(raw_PG), torch.from_numpy(is_relevant_PG), is_positive_PG.cpu()


def sample_positives(
    examples: Sequence[Example], prompts: PromptEncoder, *, limit: int, seeds: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "P M L"], Bool[Tensor, "P M"]]:
    """Write each page's positives as token ids, M = the most that a page has; True where one is real.

    A page with more than ``limit`` gives a random sample, not its first ones, which are its most intense. Each
    page has its own seed, so that the draw does not depend on which process draws.
    """
    chosen = []
    for example, seed in zip(examples, seeds, strict=True):
        rows = example.positives
        if len(rows) > limit:
            rows = np.random.default_rng(list(seed)).choice(rows, size=limit, replace=False)
        chosen.append(rows)
    width = max(1, *map(len, chosen))
    n_levels = prompts.vocab.n_levels
    tokens = np.tile(prompts.answer(np.array([0])), (len(examples), width, 1))  # (a real SID where there is none)
    is_positive = np.zeros((len(examples), width), bool)
    for page, rows in enumerate(chosen):
        tokens[page, : len(rows)] = prompts.answer(rows).reshape(-1, n_levels)
        is_positive[page, : len(rows)] = True
    return torch.from_numpy(tokens), torch.from_numpy(is_positive)
