"""What is logged of a batch of rollout groups: every stage of the reward, validity, and what collapses when hacked.

P   prompts        G   rollouts per prompt
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from genrec_rl.types import NO_ITEM, CalibratedRewards, Example, Rollouts

GROUP_TOTALS = ("gate_pass_rate", "fully_gated_share", "positive_in_group_rate", "zero_advantage_share", "group_std")
Pair = tuple[float, float]
"""A sum, and what it is divided by once both are added up over processes."""
TABLE_COLUMNS = ("user", "rank", "sid", "title", "is_valid", "reward", "passes_gate", "is_positive", "calibrated")


def group_totals(rewards: CalibratedRewards, rows_PG: Int[Tensor, "P G"]) -> dict[str, Pair]:
    """Sum what gate and anchor leave of whole groups, to be added up over processes and divided then.

    A group carries no advantage when all its rewards are equal; that is read off their range, since a float
    standard deviation of equal numbers need not be 0.
    """
    is_valid_PG, n = rows_PG != NO_ITEM, float(len(rows_PG))
    spread_P = rewards.calibrated_PG.amax(1) - rewards.calibrated_PG.amin(1)
    passes = float((rewards.is_relevant_PG & is_valid_PG).sum())
    sums = (
        (passes, float(is_valid_PG.sum())),
        (float((~rewards.is_relevant_PG).all(1).sum()), n),
        (float(rewards.is_positive_PG.any(1).sum()), n),
        (float((spread_P == 0).sum()), n),
        (float(rewards.calibrated_PG.std(1).sum()), n),
    )
    return dict(zip(GROUP_TOTALS, sums, strict=True))


def rollout_metrics(rewards: CalibratedRewards, rows_PG: Int[Tensor, "P G"], *, n_items: int) -> dict[str, float]:
    """Summarise whole groups."""
    is_valid_PG = rows_PG != NO_ITEM
    valid_rows, first = rows_PG[is_valid_PG], rows_PG[:, 0]
    of_groups = {name: total / max(n, 1.0) for name, (total, n) in group_totals(rewards, rows_PG).items()}
    return {
        "reward/raw": rewards.raw_PG.mean().item(),
        "reward/gated": rewards.gated_PG.mean().item(),
        "reward/anchored": rewards.calibrated_PG.mean().item(),
        "reward/best_in_group": rewards.gated_PG.amax(1).mean().item(),
        "reward/group_std": of_groups.pop("group_std"),
        "rollout/hallucination_rate": 1 - is_valid_PG.float().mean().item(),
        **{f"rollout/{name}": share for name, share in of_groups.items()},
        "rollout/coverage": len(valid_rows.unique()) / n_items,
        "rollout/distinct_at_1": len(first[first != NO_ITEM].unique()) / len(first),
    }


def rollout_table(
    examples: Sequence[Example],
    rollouts: Rollouts,
    rewards: CalibratedRewards,
    titles: Sequence[str],
    *,
    users: int = 4,
    ranks: int = 5,
) -> list[tuple[Any, ...]]:
    """Return a few rollouts of a few users as rows of ``TABLE_COLUMNS``.

    The rewards may belong to more groups than the rollouts (those of all processes); the first are ours on the
    main process, which is the one that logs.
    """
    return [
        (
            examples[p].context.user_id,
            g + 1,
            "-".join(str(int(code)) for code in rollouts.sids_PGL[p, g]),
            titles[int(rollouts.rows_PG[p, g])] if rollouts.is_valid_PG[p, g] else "(no such item)",
            bool(rollouts.is_valid_PG[p, g]),
            round(rewards.raw_PG[p, g].item(), 4),
            bool(rewards.is_relevant_PG[p, g]),
            bool(rewards.is_positive_PG[p, g]),
            round(rewards.calibrated_PG[p, g].item(), 4),
        )
        for p in range(min(users, len(examples)))
        for g in range(min(ranks, rollouts.rows_PG.shape[1]))
    ]
