"""The terms of GRPO-SR that TRL does not have (GenRec, eq. 8); pure functions of log-probabilities.

P   prompts        M   positives per prompt, padded        C   tokens of a SID
"""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor


def positive_nll(
    log_probs_PMC: Float[Tensor, "P M C"],
    is_positive_PM: Bool[Tensor, "P M"],
    *,
    reduction: Literal["sum", "mean"] = "sum",
    weights_PM: Float[Tensor, "P M"] | None = None,
) -> Float[Tensor, ""]:
    """Return ``-E_{v ~ D+}[ sum_t log pi(v_t | S_u, v_<t) ]``, the supervised term of equation 8, in nats.

    The expectation is the mean over prompts of the mean over each prompt's own positives. A prompt without
    positives counts as 0, not left out: so micro-batches and ranks of equal size average to the same number.

    Args:
        log_probs_PMC: log-probability of each token of each positive.
        is_positive_PM: False where a prompt has fewer than M positives.
        reduction: over a SID's tokens: ``sum`` as in the paper, or ``mean`` as in the policy term.
        weights_PM: how much each positive counts (``rl.unified``); without them each counts 1, as in the paper.
    """
    nll_PM = -log_probs_PMC.sum(-1) if reduction == "sum" else -log_probs_PMC.mean(-1)
    if weights_PM is not None:
        nll_PM = nll_PM * weights_PM
    counts_P = is_positive_PM.sum(-1).clamp(min=1)
    return (nll_PM.where(is_positive_PM, 0.0).sum(-1) / counts_P).mean()
