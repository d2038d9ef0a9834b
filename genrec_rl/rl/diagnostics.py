"""What collapses, drifts or is exploited when a reward is hacked, measured at every evaluation.

Of each validation request's first ten items: the proxy (r_pref, ungated) beside a gold model that trains nothing, and
how recommendations concentrate. Of its beams, decoded as rollouts are: what gate and anchor leave of the reward in a
group, which is smaller than training's where evaluation asks for fewer beams. Of its free beams: the level at which
SIDs become illegal. Along the
prefixes of one of its positives: KL to the start, entropy, log pi (``rl.start``). Numbers of all processes.

    P requests   K ranks   L SID levels   N items
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor

from genrec_rl.decoding.validation import Proposals
from genrec_rl.errors import ConfigError
from genrec_rl.rewards.calibration import calibrate_rewards
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.rewards.scoring import score_candidates
from genrec_rl.rl.rollouts import RolloutScorer
from genrec_rl.rl.start import StartProbe
from genrec_rl.rl.telemetry import GROUP_TOTALS, Pair, group_totals
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import NO_ITEM, Rollouts

TOP = 10
MAGNETS = 20
MAGNET_COLUMNS = ("rank", "item_id", "title", "share", "popularity", "reward", "gold")


def first_illegal_level(sids_PKL: Int[Tensor, "P K L"], catalog: Catalog) -> Int[Tensor, "P K"]:
    """Return the level, from 1, whose code makes a SID's prefix one of no item; 0 for a valid SID."""
    illegal_from = torch.zeros(sids_PKL.shape[:2], dtype=torch.long)
    keys, known = torch.zeros_like(illegal_from), np.zeros(catalog.n_items, np.int64)
    for level, size in enumerate(catalog.codebook_sizes):
        codes = sids_PKL[..., level].cpu()
        keys, known = keys * size + codes, known * size + catalog.codes[:, level]
        is_prefix = torch.isin(keys, torch.from_numpy(np.unique(known))) & (codes >= 0) & (codes < size)
        illegal_from[(illegal_from == 0) & ~is_prefix] = level + 1
    return illegal_from


def concentration(
    first_N: Float[np.ndarray, " N"], top_N: Float[np.ndarray, " N"], popularity_N: Int[np.ndarray, " N"]
) -> dict[str, float]:
    """Return how recommendations gather on few items: from how often each stands first, and among the first ten.

    Mean popularity is over recommendations, in clicks and orders of training pages; 0 where nothing is recommended.
    """
    total = max(float(top_N.sum()), 1.0)
    return {
        f"coverage@{TOP}": float((top_N > 0).mean()),
        "distinct@1": float((first_N > 0).sum()),
        f"top_item_share@{TOP}": float(top_N.max()) / total,
        f"mean_popularity@{TOP}": float(top_N @ popularity_N) / total,
    }


class HackingWatch:
    """Looks at an evaluation's proposals; ``magnets`` then lists the most recommended items.

    Args:
        scorer: the reward that trains.
        popularity: of each item on training pages.
        group_size: G.
        anchor: as in training.
        constrained: rollouts are, so that groups are taken of constrained beams.
        gold_model: judges, and trains nothing.

    Raises:
        ConfigError: for popularity of other items.
    """

    def __init__(
        self,
        scorer: RolloutScorer,
        *,
        popularity: Int[np.ndarray, " N"],
        group_size: int,
        anchor: bool = True,
        constrained: bool = False,
        gold_model: RewardModel | None = None,
    ) -> None:
        if len(popularity) != scorer.catalog.n_items:
            raise ConfigError(
                f"popularity of {len(popularity)} items, but the catalogue has {scorer.catalog.n_items}"
            )
        self.scorer = scorer
        self.popularity = np.asarray(popularity)
        self.group_size = group_size
        self.anchor = anchor
        self.constrained = constrained
        self.gold_model = gold_model
        self.probe: StartProbe | None = None
        """Set by the trainer, which can read the policy."""
        self._of_items: dict[str, Float[np.ndarray, " N"]] = {}

    def __call__(self, proposals: Proposals | None, accelerator: Accelerator) -> dict[str, float]:
        """Measure on all processes; one without pages takes part with nothing; what nobody measured is left out."""
        totals = dict.fromkeys(self._names, (0.0, 0.0))
        of_items = {name: np.zeros(self.scorer.catalog.n_items) for name in ("first", "top", "reward", "gold")}
        if proposals is not None:
            totals |= self._of_requests(proposals, of_items) | self._of_groups(proposals)
        if self.probe is not None:
            totals |= dict.fromkeys(self.probe.names, (0.0, 0.0))
            totals |= {name: (float(x.sum()), float(len(x))) for name, x in self.probe.columns().items()}
        flat = np.concatenate([np.array(list(totals.values())).reshape(-1), *of_items.values()])
        reduced: Any = torch.from_numpy(flat).float().to(accelerator.device)
        summed = accelerator.reduce(reduced, reduction="sum").cpu().double().numpy()
        pairs, vectors = summed[: 2 * len(totals)].reshape(-1, 2), summed[2 * len(totals) :].reshape(4, -1)
        self._of_items = dict(zip(of_items, vectors, strict=True))
        found = {name: float(of / n) for name, (of, n) in zip(totals, pairs, strict=True) if n > 0}
        return found | concentration(self._of_items["first"], self._of_items["top"], self.popularity)

    @property
    def _names(self) -> list[str]:
        judges = ("R", "gold") if self.gold_model is not None else ("R",)
        of_requests = [f"{judge}{suffix}" for judge in judges for suffix in ("@1", f"_mean@{TOP}")]
        levels = [f"har@{TOP}_level_{level + 1}" for level in range(self.scorer.catalog.n_levels)]
        return [*of_requests, *levels, *GROUP_TOTALS]

    def _of_requests(self, proposals: Proposals, of_items: dict[str, Float[np.ndarray, " N"]]) -> dict[str, Pair]:
        """Score the first ten of each request, and count them item by item."""
        contexts = [example.context for example in proposals.examples]
        rows_PK = proposals.constrained.rows_PG[:, :TOP].numpy()
        is_item = rows_PK != NO_ITEM
        np.add.at(of_items["top"], rows_PK[is_item], 1)
        np.add.at(of_items["first"], rows_PK[:, :1][is_item[:, :1]], 1)
        totals = {}
        for judge, name, model in (("R", "reward", self.scorer.reward_model), ("gold", "gold", self.gold_model)):
            if model is not None:
                scores_PK = score_candidates(model, contexts, rows_PK).astype(np.float64)
                np.add.at(of_items[name], rows_PK[is_item], scores_PK[is_item])
                totals[f"{judge}@1"] = (float(scores_PK[:, 0].sum()), float(len(rows_PK)))
                totals[f"{judge}_mean@{TOP}"] = (float(scores_PK.mean(1).sum()), float(len(rows_PK)))
        if proposals.free is not None:
            levels_PK = first_illegal_level(proposals.free.sids_PGL[:, :TOP], self.scorer.catalog)
            for level in range(1, self.scorer.catalog.n_levels + 1):
                totals[f"har@{TOP}_level_{level}"] = (float((levels_PK == level).sum()), float(levels_PK.numel()))
        return totals

    def _of_groups(self, proposals: Proposals) -> dict[str, Pair]:
        """Reward beams as training would reward rollouts, the page's positives in the gate's reference included."""
        beams = proposals.constrained if proposals.free is None or self.constrained else proposals.free
        parts = (beams.sids_PGL, beams.rows_PG, beams.log_probs_PG)
        group = Rollouts(*(part[:, : self.group_size] for part in parts))
        scored = self.scorer.score(proposals.examples, group)
        return group_totals(calibrate_rewards(*scored, anchor=self.anchor), group.rows_PG)

    def magnets(self, titles: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return the items recommended most, as rows of ``MAGNET_COLUMNS``: share of recommendations, mean scores."""
        if not self._of_items:
            return []
        top_N = self._of_items["top"]
        order = np.argsort(-top_N, kind="stable")[:MAGNETS]
        has_gold = self.gold_model is not None
        return [
            (
                rank + 1,
                str(self.scorer.catalog.item_ids[row]),
                titles[row],
                round(float(top_N[row] / top_N.sum()), 5),
                int(self.popularity[row]),
                round(float(self._of_items["reward"][row] / top_N[row]), 4),
                round(float(self._of_items["gold"][row] / top_N[row]), 4) if has_gold else None,
            )
            for rank, row in enumerate(order.tolist())
            if top_N[row] > 0
        ]
