"""Advantages of rollout groups: TRL's formula, and choices that TRL does not have; pure functions.

    A_i = (r_i - baseline) / (std + 1e-4)

GenRec prints no formula; this is TRL's. Each choice is a field of ``Shaping``, and at its defaults the numbers are
TRL's own.

    P prompts   G rollouts   C tokens of a SID
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

STD_EPSILON = 1e-4
"""TRL's."""
Scale = Literal["group", "batch", "none"]


def reward_scale(
    rewards_PG: Float[Tensor, "P G"], is_counted_PG: Bool[Tensor, "P G"], *, scale: Scale, min_std: float = 0.0
) -> Float[Tensor, "P 1"]:
    """Return what advantages are divided by, at least ``min_std``; 1 for ``scale`` none.

    Args:
        rewards_PG: of whole groups, and for ``batch`` of all processes.
        is_counted_PG: rollouts that take part; of fewer than two, the deviation is ``min_std``.
        scale: deviation of the group, of all rewards, or none.
        min_std: a floor, so that tiny differences of a smooth reward are not blown up to +-1.
    """
    if scale == "none":
        return torch.ones_like(rewards_PG[:, :1])
    counts_P1 = is_counted_PG.sum(1, keepdim=True)
    if scale == "batch":
        counted = rewards_PG[is_counted_PG]
        std = counted.std() if len(counted) > 1 else rewards_PG.new_zeros(())
        return (std.clamp(min=min_std) + STD_EPSILON).expand(len(rewards_PG), 1)
    off_PG = (rewards_PG - _mean(rewards_PG, is_counted_PG)).where(is_counted_PG, 0.0)
    std_P1 = (off_PG.square().sum(1, keepdim=True) / (counts_P1 - 1).clamp(min=1)).sqrt()
    return std_P1.clamp(min=min_std) + STD_EPSILON


def policy_shares(log_probs_PG: Float[Tensor, "P G"], is_counted_PG: Bool[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Return q = softmax of log pi over the group (minimum risk training); 0 for what is not counted."""
    return log_probs_PG.masked_fill(~is_counted_PG, -torch.inf).softmax(1).nan_to_num(0.0)


def centred(
    rewards_PG: Float[Tensor, "P G"],
    is_counted_PG: Bool[Tensor, "P G"],
    *,
    shares_PG: Float[Tensor, "P G"] | None = None,
) -> Float[Tensor, "P G"]:
    """Return ``r_i - mean r``, or with shares ``G q_i (r_i - sum_j q_j r_j)``; 0 for what is not counted.

    The second is the gradient of the group's expected reward under q, with respect to log pi, times G, because
    the loss takes the mean over the group. Either sums to 0 over the group.
    """
    if shares_PG is None:
        return (rewards_PG - _mean(rewards_PG, is_counted_PG)).where(is_counted_PG, 0.0)
    baseline_P1 = (shares_PG * rewards_PG).sum(1, keepdim=True)
    return rewards_PG.shape[1] * shares_PG * (rewards_PG - baseline_P1)


def level_credit(
    rewards_PG: Float[Tensor, "P G"], is_counted_PG: Bool[Tensor, "P G"], tokens_PGC: Int[Tensor, "P G C"]
) -> Float[Tensor, "P G C"]:
    """Return ``C (V(o_1..t) - V(o_1..t-1))``, V the mean reward of the group's rollouts that share a prefix.

    A token earns what choosing it changed. The mean over a rollout's tokens is ``centred``, and a token that all
    rollouts of its prefix share earns 0. Ours; the paper gives every token the whole advantage.
    """
    n_rollouts, n_tokens = tokens_PGC.shape[1:]
    shares_prefix_PGG = is_counted_PG[:, None].expand(-1, n_rollouts, -1)
    values = [_mean(rewards_PG, is_counted_PG).expand_as(rewards_PG)]
    for level in range(n_tokens):
        last_PG1 = tokens_PGC[:, :, level, None]
        shares_prefix_PGG = shares_prefix_PGG & (last_PG1 == last_PG1.transpose(1, 2))
        total_PG = (shares_prefix_PGG * rewards_PG[:, None]).sum(2)
        values.append(total_PG / shares_prefix_PGG.sum(2).clamp(min=1))
    steps_PGC = torch.stack(values, dim=-1).diff(dim=-1)
    return n_tokens * steps_PGC.where(is_counted_PG[..., None], 0.0)


def draw_rollouts(n_rollouts: int, *, k: int, seeds: Sequence[Sequence[int]]) -> Bool[Tensor, "P G"]:
    """Draw k of a group's G rollouts for each prompt, each by its own seed, whichever process draws."""
    chosen = np.zeros((len(seeds), n_rollouts), bool)
    for row, seed in zip(chosen, seeds, strict=True):
        row[np.random.default_rng([*seed, 1]).choice(n_rollouts, size=k, replace=False)] = True
    return torch.from_numpy(chosen)


def format_advantages(is_valid_PG: Bool[Tensor, "P G"], is_drawn_PG: Bool[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Return OneRec's format reward: advantage 1 for a valid SID among the drawn rollouts, 0 for all others.

    Times G over the number drawn, so that the loss's mean over the group is a mean over the drawn.
    """
    n_drawn_P1 = is_drawn_PG.sum(1, keepdim=True).clamp(min=1)
    return (is_valid_PG & is_drawn_PG) * (is_valid_PG.shape[1] / n_drawn_P1)


@dataclass(frozen=True, slots=True)
class Shaping:
    """How a group's rewards become advantages; each field is a key of ``GRPOSRConfig``, where it is explained."""

    scale_rewards: Scale = "group"
    min_std: float = 0.0
    invalid_rollouts: Literal["zero", "drop"] = "zero"
    rollout_weights: Literal["uniform", "policy"] = "uniform"
    credit: Literal["sequence", "level"] = "sequence"
    format_coef: float = 0.0
    format_rollouts: int = 5

    @property
    def is_trls(self) -> bool:
        """Whether TRL's own advantages are the same."""
        return self == Shaping(self.scale_rewards, format_rollouts=self.format_rollouts)

    def counts(self, is_valid_PG: Bool[Tensor, "P G"]) -> Bool[Tensor, "P G"]:
        """Return which rollouts take part in baseline and deviation."""
        return is_valid_PG if self.invalid_rollouts == "drop" else torch.ones_like(is_valid_PG)

    def divisor(self, rewards_PG: Float[Tensor, "P G"], is_valid_PG: Bool[Tensor, "P G"]) -> Float[Tensor, "P 1"]:
        """Return ``reward_scale`` of whole groups of all processes."""
        return reward_scale(rewards_PG, self.counts(is_valid_PG), scale=self.scale_rewards, min_std=self.min_std)

    def advantages(
        self,
        rewards_PG: Float[Tensor, "P G"],
        is_valid_PG: Bool[Tensor, "P G"],
        *,
        divisor_P1: Float[Tensor, "P 1"],
        log_probs_PG: Float[Tensor, "P G"],
        tokens_PGC: Int[Tensor, "P G C"],
        seeds: Sequence[Sequence[int]],
    ) -> Float[Tensor, "P G"] | Float[Tensor, "P G C"]:
        """Return advantages of whole groups, one a rollout, or with ``credit: level`` one a token."""
        counted_PG = self.counts(is_valid_PG)
        if self.credit == "level":
            result = level_credit(rewards_PG, counted_PG, tokens_PGC) / divisor_P1[..., None]
        else:
            shares = policy_shares(log_probs_PG, counted_PG) if self.rollout_weights == "policy" else None
            result = centred(rewards_PG, counted_PG, shares_PG=shares) / divisor_P1
        if self.format_coef > 0:
            drawn_PG = draw_rollouts(rewards_PG.shape[1], k=self.format_rollouts, seeds=seeds)
            bonus_PG = self.format_coef * format_advantages(is_valid_PG, drawn_PG.to(is_valid_PG.device))
            result = result + (bonus_PG[..., None] if self.credit == "level" else bonus_PG)
        return result


def _mean(rewards_PG: Float[Tensor, "P G"], is_counted_PG: Bool[Tensor, "P G"]) -> Float[Tensor, "P 1"]:
    counts_P1 = is_counted_PG.sum(1, keepdim=True).clamp(min=1)
    return rewards_PG.where(is_counted_PG, 0.0).sum(1, keepdim=True) / counts_P1
