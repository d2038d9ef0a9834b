"""Turn raw preference scores into the rewards a rollout group is trained on.

Paper: GenRec (arXiv:2604.14878), section 2.3, equations 6 and 7. The order is fixed here: gate first, then anchor.

    P   prompts (one rollout group each)        G   rollouts per group
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from genrec_rl.errors import RewardError
from genrec_rl.types import CalibratedRewards

_EPSILON = 1e-6


def gate_rewards(raw_PG: Float[Tensor, "P G"], is_relevant_PG: Bool[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Keep the reward of relevant rollouts only: ``r_i = 1[s_i > tau] * r_pref_i`` (equation 6)."""
    return torch.where(is_relevant_PG, raw_PG, 0.0)


def anchor_positives(gated_PG: Float[Tensor, "P G"], is_positive_PG: Bool[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Give each rollout that hit a real click or order its group's best reward (equation 7).

    Rewards of other rollouts are unchanged, and the group's maximum never rises: where every gate is closed, a
    hit earns 0 too, and only the NLL term teaches it. Groups must be whole: call this after rewards were
    gathered, because a group split over two ranks has two maxima.
    """
    best_P1 = gated_PG.amax(dim=1, keepdim=True)
    return torch.where(is_positive_PG, best_P1, gated_PG)


def log_odds(rewards_PG: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Return log(r / (1 - r)) in float32, the scale on which a calibrated reward adds up evidence.

    Rewards are cut at 1e-6 from 0 and 1, so a reward of 0 (an invalid or gated rollout) has -13.8.
    """
    clipped = rewards_PG.double().clamp(_EPSILON, 1 - _EPSILON)
    return (clipped.log() - torch.log1p(-clipped)).float()


def calibrate_rewards(
    raw_PG: Float[Tensor, "P G"],
    is_relevant_PG: Bool[Tensor, "P G"],
    is_positive_PG: Bool[Tensor, "P G"],
    *,
    anchor: bool = True,
) -> CalibratedRewards:
    """Gate, then anchor whole groups; every stage is kept for the logs.

    Args:
        raw_PG: r_pref in [0, 1], 0 for an invalid SID.
        is_relevant_PG: whether the gate passed the rollout; False for an invalid SID.
        is_positive_PG: whether the rollout is one of the page's ordered or clicked items.
        anchor: False leaves equation 7 out (the paper's plain GRPO).

    Raises:
        RewardError: for a preference that is NaN or outside [0, 1], naming its position.
    """
    is_bad = ~((raw_PG >= 0) & (raw_PG <= 1))
    if is_bad.any():
        group, rollout = (int(i) for i in is_bad.nonzero()[0])
        raise RewardError(
            f"preference {raw_PG[group, rollout].item()} of rollout {rollout} in group {group} is outside [0, 1]; "
            "mend the reward model (rewards.scoring checks it at the source)"
        )
    gated_PG = gate_rewards(raw_PG, is_relevant_PG)
    return CalibratedRewards(
        raw_PG=raw_PG,
        is_relevant_PG=is_relevant_PG,
        gated_PG=gated_PG,
        is_positive_PG=is_positive_PG,
        calibrated_PG=anchor_positives(gated_PG, is_positive_PG) if anchor else gated_PG,
    )
