"""Listwise KL: fit the optimum of KL-regularised reward maximisation as a target, in place of a policy gradient.

    pi*(y | x)  ~  pi_ref(y | x) exp(w m(y))      for y in the group: its mass under pi_ref is shared out anew
    pi*(y | x)  =  pi_ref(y | x)                  elsewhere
    loss        =  the part of KL(pi* || pi) that lies along the group's prefixes

The first line is the optimum of ``max E[m] - KL(pi || pi_ref) / w`` (REPS, AWR, MPO) restricted to the group. The
forward KL is taken token by token along the group's prefixes: at a prefix, the target of the next token is
pi_ref's joint probability plus what the group's rollouts gain or lose behind it. Prefixes outside the group, where
the target is pi_ref itself, are left out. Ours, not in GenRec; measured beside equation 8 in benchmarks/README.md.

A group of which pi_ref is unsure holds little of its probability, and so little of this loss: where SFT knows the
answer by heart it holds most. Divided by that mass, prompts count alike.

    P prompts   G rollouts   C tokens of a SID   V vocabulary
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from genrec_rl.models.prefix_tree import BranchLogits, score_branches

LEAST_MASS = 1e-3
"""What a group's mass counts at least where a loss is divided by it."""


def share_out(
    log_probs_PG: Float[Tensor, "P G"], margins_PG: Float[Tensor, "P G"], *, weight: float
) -> Float[Tensor, "P G"]:
    """Return the target's probabilities of a group's rollouts: their mass stays, its shares go by exp(weight m).

    Args:
        log_probs_PG: of whole rollouts under the reference, distinct within a group.
        margins_PG: what each is worth, in nats: log-odds of its reward. A gated rollout (reward 0) has -13.8, so its
            share of the target is next to nothing.
        weight: w; 0 gives the reference back.
    """
    shares_PG = (log_probs_PG + weight * margins_PG).softmax(1)
    return shares_PG * log_probs_PG.exp().sum(1, keepdim=True)


def listwise_kl(
    policy: BranchLogits,
    reference: BranchLogits,
    rollouts_PGC: Int[Tensor, "P G C"],
    margins_PG: Float[Tensor, "P G"],
    *,
    weight: float,
    per_mass: bool = False,
) -> Float[Tensor, " P"]:
    """Return each prompt's KL(pi* || pi) in nats, as far as it lies along the group's prefixes.

    Args:
        policy: log-softmaxes along the rollouts, with gradient.
        reference: the same of pi_ref, without.
        rollouts_PGC: distinct rollouts of a prompt.
        margins_PG: what each is worth.
        weight: w, how far the target leaves the reference.
        per_mass: divide by the group's probability under the reference (at least ``LEAST_MASS``).
    """
    log_probs_PG = score_branches(reference, rollouts_PGC).log_probs_BGC.sum(-1)
    gains_PG = share_out(log_probs_PG, margins_PG, weight=weight) - log_probs_PG.exp()
    root_PV = _target(reference.first_BV.exp(), rollouts_PGC[..., 0], gains_PG)
    loss_P = _weighed_kl(root_PV, policy.first_BV)
    prefix_log_prob_PG = torch.zeros_like(gains_PG)
    shares_prefix_PGG = torch.ones_like(gains_PG, dtype=torch.bool)[:, :, None].expand(-1, -1, gains_PG.shape[1])
    for level in range(1, rollouts_PGC.shape[2]):
        before = reference.first_BV[:, None] if level == 1 else reference.later_BGWV[:, :, level - 2]
        last_PG1 = rollouts_PGC[:, :, level - 1, None]
        prefix_log_prob_PG = prefix_log_prob_PG + before.expand(*gains_PG.shape, -1).gather(2, last_PG1)[..., 0]
        shares_prefix_PGG = shares_prefix_PGG & (last_PG1 == last_PG1.transpose(1, 2))
        joint_PGV = (prefix_log_prob_PG[..., None] + reference.later_BGWV[:, :, level - 1]).exp()
        target_PGV = _joint_targets(joint_PGV, rollouts_PGC[..., level], gains_PG, shares_prefix_PGG)
        once_PG = 1 / shares_prefix_PGG.sum(-1)  # each prefix counts once, however many rollouts go through it
        kl_PG = _weighed_kl(target_PGV, policy.later_BGWV[:, :, level - 1])
        loss_P = loss_P + (kl_PG * once_PG).sum(1)
    if per_mass:
        return loss_P / log_probs_PG.exp().sum(1).clamp(min=LEAST_MASS)
    return loss_P


def _target(
    joint_PV: Float[Tensor, "P V"], tokens_PG: Int[Tensor, "P G"], gains_PG: Float[Tensor, "P G"]
) -> Float[Tensor, "P V"]:
    """Add what rollouts gain or lose to the joint probability of the token that they go on with."""
    return joint_PV.scatter_add(1, tokens_PG, gains_PG).clamp(min=0)


def _joint_targets(
    joint_PGV: Float[Tensor, "P G V"],
    tokens_PG: Int[Tensor, "P G"],
    gains_PG: Float[Tensor, "P G"],
    shares_prefix_PGG: Bool[Tensor, "P G G"],
) -> Float[Tensor, "P G V"]:
    """Return the target's joint probability of each rollout's prefix and the next token."""
    n_rollouts = gains_PG.shape[1]
    gains_PGG = torch.where(shares_prefix_PGG, gains_PG[:, None], 0.0)
    tokens_PGG = tokens_PG[:, None].expand(-1, n_rollouts, -1)
    return joint_PGV.scatter_add(2, tokens_PGG, gains_PGG).clamp(min=0)


def _weighed_kl(joint: Float[Tensor, "*b V"], log_probs: Float[Tensor, "*b V"]) -> Float[Tensor, "*b"]:
    """Return mass * KL(joint / mass || policy), mass the sum of ``joint``; a target of 0 costs nothing."""
    mass = joint.sum(-1)
    has_target = joint > 0
    entropy = torch.special.entr(joint).sum(-1) + mass * mass.clamp(min=1e-30).log()
    return -entropy - (joint * log_probs.masked_fill(~has_target, 0.0)).sum(-1)
