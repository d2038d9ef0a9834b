"""Gumbel top-k over a tree: a sample of leaves without replacement, one level at a time (Kool et al. 2019).

The k largest of ``log p + Gumbel noise`` over all leaves are a sample of k leaves without replacement. The noise of
a leaf need not be drawn before its level is reached: a node's perturbed score is the largest among its leaves, so a
child's noise is drawn on the condition that the largest child has exactly its parent's score.

    B rows   W parents   M children
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def perturb_children(
    perturbed_BW: Float[Tensor, "B W"],
    log_probs_BM: Float[Tensor, "B M"],
    parents_BM: Int[Tensor, "B M"],
    *,
    generator: torch.Generator,
) -> Float[Tensor, "B M"]:
    """Return the children's perturbed log-probabilities, whose maximum among siblings is the parent's.

    Arxiv:1903.06059, section 4.1 and, for the form that does not lose precision, appendix B.3.

    Args:
        perturbed_BW: perturbed log-probability of each parent.
        log_probs_BM: log-probability of the whole path to each child; -inf for what is no child.
        parents_BM: each child's parent.
        generator: source of the noise.
    """
    uniform = torch.empty_like(log_probs_BM).exponential_(generator=generator)
    free = log_probs_BM - uniform.log()
    largest = torch.full_like(perturbed_BW, -torch.inf).scatter_reduce(1, parents_BM, free, "amax")
    parent = perturbed_BW.gather(1, parents_BM)
    log_share = torch.log1p(-(free - largest.gather(1, parents_BM)).exp())
    v = parent - free + log_share
    tied = parent - v.clamp(min=0) - torch.log1p((-v.abs()).exp())
    return tied.masked_fill(log_probs_BM == -torch.inf, -torch.inf)
