"""Columns that trees can see beside ``FEATURES``: another reward model's opinion, and what an item is by name.

The other model was fitted to the same training pages, where it looks better than it is: the trees may trust it too
much. Its worth shows on held-out pages alone.

    P   requests        G   candidates per request        X   columns
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float32, Int

from genrec_rl.rewards.calibration import log_odds
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.rewards.scoring import score_candidates
from genrec_rl.types import Context
from reward_models.xgb.features import NO_CATEGORY, ItemTables


@dataclass(frozen=True, slots=True, eq=False)
class KnownNames:
    """Values of the named columns that trees learnt from, sorted: any other is missing to them."""

    categories: Int[np.ndarray, " K"]
    first_codes: Int[np.ndarray, " C"]

    @classmethod
    def of(cls, items: ItemTables, rows: Int[np.ndarray, " n"]) -> Self:
        """Collect the values of the items that were learnt from."""
        categories = np.unique(items.categories[rows])
        return cls(categories[categories != NO_CATEGORY], np.unique(items.codes[rows, 0]))

    def columns(self, items: ItemTables, rows_PG: Int[np.ndarray, "P G"]) -> Float32[np.ndarray, "P G X"]:
        """Number each candidate's category and first SID code; NaN for one that was not learnt."""
        asked = ((self.categories, items.categories[rows_PG]), (self.first_codes, items.codes[rows_PG, 0]))
        return np.stack([_number(known, values_PG) for known, values_PG in asked], axis=-1)


@dataclass(frozen=True, slots=True, eq=False)
class Extras:
    """Optional columns; without any, trees see ``FEATURES`` alone."""

    scorer: RewardModel | None = None
    names: KnownNames | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        scored = () if self.scorer is None else ("scorer_log_odds",)
        return scored if self.names is None else (*scored, "category", "first_code")

    @property
    def types(self) -> list[str]:
        """XGBoost's types of the columns: q for quantities, c for names."""
        return ["q" if name == "scorer_log_odds" else "c" for name in self.columns]

    def append_to(
        self,
        features_PGF: Float32[np.ndarray, "P G F"],
        items: ItemTables,
        contexts: Sequence[Context],
        rows_PG: Int[np.ndarray, "P G"],
    ) -> Float32[np.ndarray, "P G F+X"]:
        """Return the features with the optional columns behind them."""
        parts = [features_PGF]
        if self.scorer is not None:
            scores_PG = torch.from_numpy(score_candidates(self.scorer, contexts, rows_PG))
            parts.append(log_odds(scores_PG).numpy()[..., None])
        if self.names is not None:
            parts.append(self.names.columns(items, rows_PG))
        return np.concatenate(parts, axis=-1) if len(parts) > 1 else features_PGF


def _number(known: Int[np.ndarray, " K"], values_PG: Int[np.ndarray, "P G"]) -> Float32[np.ndarray, "P G"]:
    places_PG = np.searchsorted(known, values_PG)
    is_known_PG = np.isin(values_PG, known)
    return np.where(is_known_PG, places_PG, np.nan).astype(np.float32)
