"""RSPO: ranking-guided softmax preference optimisation (GR4AD, arXiv:2602.22732); S-DPO and DPO are special cases.

    L_i   = -log2 sigmoid( -log sum_{j in E_i} M_ij exp(g_j - g_i) )  =  log2( 1 + sum_j M_ij exp(g_j - g_i) )
    g_k   = beta ( log pi(y_k) - C_i log pi_ref(y_k) )        E_i = candidates of a lower value than i
    M_ij  = ( 1/D_|i-j| - 1/D_(|i-j|+1) ) |G_i - G_j|         D_k = log2(1 + k), G = gain / maxDCG (LambdaLoss)
    C_i   = 1 if the mean of log(pi / pi_ref) over E_i and i is below delta, else 0

M = 1, C = 1 and the natural logarithm give S-DPO (arXiv:2406.09215); one pair of candidates with these gives DPO
(arXiv:2305.18290). Log-probabilities are of whole SIDs (sums over tokens) in nats. M and C carry no gradient.

    P   prompts        G   candidates of a prompt; in PGG the first is the winner i, the second the loser j
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Gain = Literal["linear", "log1p"]
RankBy = Literal["reward", "model"]


def mean_ranks(scores_PG: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Return ranks from 1 (the largest score) to G; equal scores share the mean of their ranks."""
    above_PG = (scores_PG[:, None] > scores_PG[:, :, None]).sum(-1)
    equal_PG = (scores_PG[:, None] == scores_PG[:, :, None]).sum(-1)
    return above_PG + (equal_PG + 1) / 2


def lower_valued(
    values_PG: Float[Tensor, "P G"], is_candidate_PG: Bool[Tensor, "P G"] | None = None
) -> Bool[Tensor, "P G G"]:
    """Return E: whether j is worth strictly less than i; what is no candidate neither wins nor loses."""
    is_lower_PGG = values_PG[:, None] < values_PG[:, :, None]
    if is_candidate_PG is None:
        return is_lower_PGG
    return is_lower_PGG & is_candidate_PG[:, None] & is_candidate_PG[:, :, None]


def normalised_gains(values_PG: Float[Tensor, "P G"], *, gain: Gain) -> Float[Tensor, "P G"]:
    """Return each candidate's gain over the DCG of the ideal order; zeros where nothing is worth anything.

    Args:
        values_PG: at least 0.
        gain: the value itself, or log(1 + value) for values with a heavy tail. (2^value would overflow there.)
    """
    gains_PG = values_PG.log1p() if gain == "log1p" else values_PG
    places = torch.arange(1, gains_PG.shape[1] + 1, device=gains_PG.device)
    best_P1 = (gains_PG.sort(1, descending=True).values / torch.log2(1.0 + places)).sum(1, keepdim=True)
    return torch.where(best_P1 > 0, gains_PG / best_P1, 0.0)


def lambda_weights(
    gains_PG: Float[Tensor, "P G"], ranks_PG: Float[Tensor, "P G"], is_lower_PGG: Bool[Tensor, "P G G"]
) -> Float[Tensor, "P G G"]:
    """Return M, the weights of LambdaLoss's NDCG-Loss2: 0 outside E, and a winner's sum to 1 at most.

    By reward the sum is below 1 by itself. By the model's order it can exceed 1, and the loss would no longer bound
    the NDCG cost (Jensen): such a row is divided by its sum. Candidates of equal rank count as neighbours.
    """
    distance_PGG = (ranks_PG[:, :, None] - ranks_PG[:, None]).abs().clamp(min=1)
    discount_PGG = 1 / torch.log2(1 + distance_PGG) - 1 / torch.log2(2 + distance_PGG)
    weights_PGG = discount_PGG * (gains_PG[:, :, None] - gains_PG[:, None]).abs()
    weights_PGG = torch.where(is_lower_PGG, weights_PGG, 0.0)
    return weights_PGG / weights_PGG.sum(-1, keepdim=True).clamp(min=1)


def keeps_reference(
    log_ratios_PG: Float[Tensor, "P G"], is_lower_PGG: Bool[Tensor, "P G G"], *, delta: float
) -> Bool[Tensor, "P G"]:
    """Return C: whether i's list is still compared with the reference.

    It is not where the policy gives i and E_i much more mass than the reference does: their mean log-ratio, in
    nats a sequence, has reached ``delta``. Infinity keeps the reference always, minus infinity never.
    """
    is_lower_PGG = is_lower_PGG.to(log_ratios_PG.dtype)
    sums_PG = (is_lower_PGG @ log_ratios_PG[..., None])[..., 0] + log_ratios_PG
    return sums_PG / (is_lower_PGG.sum(-1) + 1) < delta


def softmax_preference(
    log_probs_PG: Float[Tensor, "P G"],
    reference_PG: Float[Tensor, "P G"],
    weights_PGG: Float[Tensor, "P G G"],
    keeps_reference_PG: Bool[Tensor, "P G"],
    *,
    beta: float,
) -> Float[Tensor, "P G"]:
    """Return ``-log sigmoid(-log sum_j M_ij exp(g_j - g_i))`` of each candidate in nats, 0 where no M_ij is above 0.

    Computed as ``softplus(logsumexp_j(log M_ij + g_j - g_i))``, which neither overflows nor divides by 0.
    """
    policy_PGG = log_probs_PG[:, None] - log_probs_PG[:, :, None]
    start_PGG = reference_PG[:, None] - reference_PG[:, :, None]
    margins_PGG = beta * (policy_PGG - torch.where(keeps_reference_PG[..., None], start_PGG, 0.0))
    is_winner_PG = (weights_PGG > 0).any(-1)
    logits_PGG = (weights_PGG.log() + margins_PGG).masked_fill(weights_PGG <= 0, -torch.inf)
    return torch.where(is_winner_PG, F.softplus(logits_PGG.logsumexp(-1)), 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class PreferenceLoss:
    """What each candidate costs as a winner, and the M and C that went into it."""

    loss_PG: Float[Tensor, "P G"]
    weights_PGG: Float[Tensor, "P G G"]
    keeps_reference_PG: Bool[Tensor, "P G"]

    @property
    def is_winner_PG(self) -> Bool[Tensor, "P G"]:
        """Whether a candidate is preferred to another; the others cost nothing."""
        return (self.weights_PGG > 0).any(-1)

    def mean(self, scale_PG: Float[Tensor, "P G"] | None = None) -> Float[Tensor, ""]:
        """Return the mean over prompts of the mean over each prompt's winners, of ``scale`` times the loss.

        A prompt whose candidates are all worth the same counts as 0, not left out: so micro-batches and ranks of
        equal size average to the same number.
        """
        loss_PG = self.loss_PG if scale_PG is None else self.loss_PG * scale_PG
        return (loss_PG.sum(1) / self.is_winner_PG.sum(1).clamp(min=1)).mean()


def rspo(
    log_probs_PG: Float[Tensor, "P G"],
    reference_PG: Float[Tensor, "P G"],
    values_PG: Float[Tensor, "P G"],
    *,
    beta: float,
    delta: float,
    rank_by: RankBy,
    gain: Gain,
    is_candidate_PG: Bool[Tensor, "P G"] | None = None,
) -> PreferenceLoss:
    """Return L_i in bits; see the top of this module.

    Args:
        log_probs_PG: of the policy, with gradient.
        reference_PG: of the start.
        values_PG: what candidates are worth, at least 0.
        beta: how much a nat of log-ratio counts.
        delta: mean log-ratio in nats from which the reference is left out.
        rank_by: whose order the i and j of M are, by value or by the policy's own probability.
        gain: see ``normalised_gains``.
        is_candidate_PG: False where a shorter list is padded; the values there are 0.
    """
    now_PG = log_probs_PG.detach()
    is_lower_PGG = lower_valued(values_PG, is_candidate_PG)
    order_PG = values_PG if rank_by == "reward" else now_PG
    if is_candidate_PG is not None:
        order_PG = order_PG.masked_fill(~is_candidate_PG, -torch.inf)
    weights_PGG = lambda_weights(normalised_gains(values_PG, gain=gain), mean_ranks(order_PG), is_lower_PGG)
    keeps_PG = keeps_reference(now_PG - reference_PG, is_lower_PGG, delta=delta)
    loss_PG = softmax_preference(log_probs_PG, reference_PG, weights_PGG, keeps_PG, beta=beta) / math.log(2)
    return PreferenceLoss(loss_PG, weights_PGG, keeps_PG)


def s_dpo(
    log_probs_PG: Float[Tensor, "P G"],
    reference_PG: Float[Tensor, "P G"],
    values_PG: Float[Tensor, "P G"],
    *,
    beta: float,
) -> PreferenceLoss:
    """Return S-DPO's loss in nats: a prompt's best candidate against all that are worth less.

    Of several best the policy's most probable one is taken.
    """
    is_best_PG = _most_probable(log_probs_PG, values_PG == values_PG.amax(1, keepdim=True))
    pairs_PGG = is_best_PG[..., None] & lower_valued(values_PG)
    return _against_reference(log_probs_PG, reference_PG, pairs_PGG, beta=beta)


def dpo(
    log_probs_PG: Float[Tensor, "P G"],
    reference_PG: Float[Tensor, "P G"],
    values_PG: Float[Tensor, "P G"],
    *,
    beta: float,
) -> PreferenceLoss:
    """Return DPO's loss in nats of a prompt's best candidate against its worst.

    Of several best, and of several worst, the policy's most probable one is taken.
    """
    is_best_PG = _most_probable(log_probs_PG, values_PG == values_PG.amax(1, keepdim=True))
    is_worst_PG = _most_probable(log_probs_PG, values_PG == values_PG.amin(1, keepdim=True))
    pairs_PGG = is_best_PG[..., None] & is_worst_PG[:, None] & lower_valued(values_PG)
    return _against_reference(log_probs_PG, reference_PG, pairs_PGG, beta=beta)


def _most_probable(log_probs_PG: Float[Tensor, "P G"], is_choice_PG: Bool[Tensor, "P G"]) -> Bool[Tensor, "P G"]:
    chosen_P: Int[Tensor, " P"] = log_probs_PG.detach().masked_fill(~is_choice_PG, -torch.inf).argmax(1)
    return F.one_hot(chosen_P, is_choice_PG.shape[1]).bool()


def _against_reference(
    log_probs_PG: Float[Tensor, "P G"],
    reference_PG: Float[Tensor, "P G"],
    pairs_PGG: Bool[Tensor, "P G G"],
    *,
    beta: float,
) -> PreferenceLoss:
    """M = 1 on the pairs, C = 1, natural logarithm."""
    weights_PGG = pairs_PGG.to(log_probs_PG.dtype)
    keeps_PG = torch.ones_like(log_probs_PG, dtype=torch.bool)
    loss_PG = softmax_preference(log_probs_PG, reference_PG, weights_PGG, keeps_PG, beta=beta)
    return PreferenceLoss(loss_PG, weights_PGG, keeps_PG)


def pair_statistics(found: PreferenceLoss, log_probs_PG: Float[Tensor, "P G"]) -> Float[Tensor, "P 4"]:
    """Count in each group: 1 if it has no pair; pairs that the policy orders right; pairs; winners' mean of C."""
    is_pair_PGG = found.weights_PGG > 0
    is_right_PGG = is_pair_PGG & (log_probs_PG[:, :, None] > log_probs_PG[:, None])
    winners_P = found.is_winner_PG.sum(1)
    kept_P = (found.keeps_reference_PG & found.is_winner_PG).sum(1) / winners_P.clamp(min=1)
    columns = (winners_P == 0, is_right_PGG.sum((1, 2)), is_pair_PGG.sum((1, 2)), kept_P)
    return torch.stack([column.float() for column in columns], dim=1)


def preference_metrics(statistics_P4: Float[Tensor, "P 4"]) -> dict[str, float]:
    """Summarise ``pair_statistics`` of all processes' groups."""
    n_groups = len(statistics_P4)
    tied, right, pairs, kept = statistics_P4.sum(0).tolist()
    return {
        "preference/tied_group_share": tied / n_groups,
        "preference/ordered_pair_share": right / max(pairs, 1.0),
        "preference/reference_share": kept / max(n_groups - tied, 1.0),
    }
