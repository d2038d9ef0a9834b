"""What the sequence models minimise.

n   predicted positions        N   catalogue items        D   dimensions
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

POSITIONS_AT_ONCE = 256
"""Rows of logits that are held at once; 256 x 12,101 of them are 12 MB and stay near the processor."""


def softmax_loss(
    states_nD: Float[Tensor, "n D"],
    weight_ND: Float[Tensor, "N D"],
    targets_n: Int64[Tensor, " n"],
    *,
    bf16: bool = False,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of ``softmax(states @ weight.T)``, all items being candidates.

    The same as ``functional.cross_entropy`` on the logits, which are never held whole: gradients are made in the
    forward pass, chunk by chunk. ``bf16`` rounds the three matrix products' inputs.
    """
    return _SoftmaxLoss.apply(states_nD, weight_ND, targets_n, torch.bfloat16 if bf16 else torch.float32)


def sampled_bce_loss(
    states_nD: Float[Tensor, "n D"],
    weight_ND: Float[Tensor, "N D"],
    targets_n: Int64[Tensor, " n"],
    negatives_n: Int64[Tensor, " n"],
) -> Float[Tensor, ""]:
    """Return the mean of -log sigmoid(r+) - log(1 - sigmoid(r-)), one negative a position (SASRec, eq. 6)."""
    positive_n = (states_nD * functional.embedding(targets_n, weight_ND)).sum(1)
    negative_n = (states_nD * functional.embedding(negatives_n, weight_ND)).sum(1)
    return (functional.softplus(-positive_n) + functional.softplus(negative_n)).mean()


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        lowered, lowered_weight = states.to(dtype), weight.to(dtype)
        d_states, d_weight = -weight[targets], torch.zeros_like(weight)
        total = states.new_zeros(())
        for begin in range(0, len(states), POSITIONS_AT_ONCE):
            chunk = slice(begin, begin + POSITIONS_AT_ONCE)
            logits = (lowered[chunk] @ lowered_weight.T).float()
            target_logit = logits.gather(1, targets[chunk].unsqueeze(1))
            top = logits.amax(1, keepdim=True)
            raised = logits.sub_(top).exp_()
            norm = raised.sum(1, keepdim=True)
            total += (norm.log() + top - target_logit).sum()
            # Probabilities are raised / norm; dividing rows of D numbers is cheaper than rows of N.
            raised = raised.to(dtype)
            d_states[chunk] += (raised @ lowered_weight).float() / norm
            d_weight += (raised.T @ (states[chunk] / norm).to(dtype)).float()
        d_weight.index_add_(0, targets, states, alpha=-1)
        ctx.save_for_backward(d_states, d_weight)
        ctx.scale = 1 / len(states)
        return total * ctx.scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_states, d_weight = (grad * (grads[0] * ctx.scale) for grad in ctx.saved_tensors)
        return d_states, d_weight, None, None
