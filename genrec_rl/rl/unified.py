"""Unified supervised and preference learning, weighed sample by sample (GR4AD, arXiv:2602.22732).

    A_i = |rank by model - rank by value| / (n - 1)
    w_VSL_i = w0 (1 + v_i)^A_i        w_RL_i = w0 Z_max (1 - A_i)        L = E[ w_VSL L_VSL + w_RL L_RSPO ]

Where model and value disagree on a sample's place, it is imitated; where they agree, its value is optimised. The list
that ranks are taken in holds a prompt's rollouts and those of its positives that no rollout found. L_RSPO is of all
of them. L_VSL is the positives' NLL, times ``nll_coef`` (1 is the equation): without value tokens and the weights by
user and behaviour, which are SFT's. It is of the positives alone, found or not: w0 weighs what a user did, which
rollouts lack, and as (1 + v)^A is at least 1 it would teach a policy its own invalid and worthless rollouts. Ours, as
Z_max = 1 is: the source defines neither.

    P   prompts        G   rollouts        M   positives, padded        N   = G + M        C   tokens of a SID
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from genrec_rl.rl.preference import mean_ranks


class CandidateList(NamedTuple):
    """Rollouts, then positives. What is padding, or stands in the list before, is no candidate and has value 0."""

    values_PN: Float[Tensor, "P N"]
    is_candidate_PN: Bool[Tensor, "P N"]
    first_PN: Int[Tensor, "P N"]
    """The place at which the same SID stands first."""


def candidate_list(
    rollouts_PGC: Int[Tensor, "P G C"],
    values_PG: Float[Tensor, "P G"],
    positives_PMC: Int[Tensor, "P M C"],
    is_positive_PM: Bool[Tensor, "P M"],
) -> CandidateList:
    """Join distinct rollouts and positives to one list; a positive is worth its group's best reward, as in eq. 7."""
    tokens_PNC = torch.cat([rollouts_PGC, positives_PMC], dim=1)
    first_PN = (tokens_PNC[:, :, None] == tokens_PNC[:, None]).all(-1).int().argmax(-1)
    is_listed_PN = torch.cat([torch.ones_like(rollouts_PGC[..., 0], dtype=torch.bool), is_positive_PM], dim=1)
    is_candidate_PN = is_listed_PN & (first_PN == torch.arange(tokens_PNC.shape[1], device=first_PN.device))
    best_PM = values_PG.amax(1, keepdim=True).expand(is_positive_PM.shape)
    values_PN = torch.cat([values_PG, best_PM], dim=1)
    return CandidateList(torch.where(is_candidate_PN, values_PN, 0.0), is_candidate_PN, first_PN)


def rank_disagreement(log_probs_PN: Float[Tensor, "P N"], listed: CandidateList) -> Float[Tensor, "P N"]:
    """Return A in [0, 1], without gradient: how far a candidate's place by model is from that by value.

    Equal values share the mean of their ranks. A list of one candidate agrees. What is no candidate means nothing.
    """
    outside_PN = ~listed.is_candidate_PN
    scores = (scores.masked_fill(outside_PN, -torch.inf) for scores in (log_probs_PN.detach(), listed.values_PN))
    by_model_PN, by_value_PN = (mean_ranks(scores_PN) for scores_PN in scores)
    n_others_P1 = (listed.is_candidate_PN.sum(1, keepdim=True) - 1).clamp(min=1)
    return (by_model_PN - by_value_PN).abs() / n_others_P1


def imitation_weights(values_PN: Float[Tensor, "P N"], disagreement_PN: Float[Tensor, "P N"]) -> Float[Tensor, "P N"]:
    """Return w_VSL for w0 = 1; ``values`` are at least 0 and of the order of 1 (scale an eCPM before)."""
    return (disagreement_PN * values_PN.log1p()).exp()


def preference_weights(disagreement_PN: Float[Tensor, "P N"], *, z_max: float) -> Float[Tensor, "P N"]:
    """Return w_RL for w0 = 1; the source leaves ``z_max`` undefined."""
    return z_max * (1 - disagreement_PN)


def unified_weights(
    log_probs_PN: Float[Tensor, "P N"], listed: CandidateList, *, z_max: float
) -> tuple[Float[Tensor, "P N"], Float[Tensor, "P N"]]:
    """Return w_RL and w_VSL of a list, w0 = 1; an SID that stands in it twice has the w_VSL of its first place."""
    disagreement_PN = rank_disagreement(log_probs_PN, listed)
    imitation_PN = imitation_weights(listed.values_PN, disagreement_PN).gather(1, listed.first_PN)
    return preference_weights(disagreement_PN, z_max=z_max), imitation_PN
