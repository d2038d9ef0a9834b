"""General search unit (GSU): which of a user's behaviours matter for a candidate (SIM, arXiv:2006.05639).

The functions return masks over the whole history, so that the attention after them needs no gathering and no
copy of the history per candidate. Padding is -inf before the top-k: at 0 it would beat real negative scores.

    P   requests        G   candidates        N   behaviours, oldest first, padding in front        D   dimensions
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def hard_search(
    keys_PN: Int[Tensor, "P N"],
    candidate_keys_PG: Int[Tensor, "P G"],
    is_real_PN: Bool[Tensor, "P N"],
    *,
    top_k: int,
) -> Bool[Tensor, "P G N"]:
    """Keep the most recent ``top_k`` behaviours whose key (category, or first code of the SID) is the candidate's."""
    is_same_PGN = keys_PN[:, None] == candidate_keys_PG[..., None]
    recency_N = torch.arange(keys_PN.shape[1], device=keys_PN.device, dtype=torch.float32)
    return keep_top_k(recency_N.expand(is_same_PGN.shape), is_same_PGN & is_real_PN[:, None], top_k=top_k)


def soft_search(
    relevance_PGN: Float[Tensor, "P G N"], is_real_PN: Bool[Tensor, "P N"], *, top_k: int
) -> Bool[Tensor, "P G N"]:
    """Keep the ``top_k`` most relevant behaviours: r_i = (W_b e_i) . (W_a e_a), of either sign."""
    return keep_top_k(relevance_PGN, is_real_PN[:, None].expand(relevance_PGN.shape), top_k=top_k)


def keep_top_k(
    scores: Float[Tensor, "... N"], is_eligible: Bool[Tensor, "... N"], *, top_k: int
) -> Bool[Tensor, "... N"]:
    """Mark the ``top_k`` highest scores among the eligible; fewer where fewer are eligible."""
    if top_k >= scores.shape[-1]:
        return is_eligible
    ranked = scores.masked_fill(~is_eligible, -torch.inf)
    chosen = ranked.topk(top_k, dim=-1, sorted=False).indices
    return torch.zeros_like(is_eligible).scatter_(-1, chosen, value=True) & is_eligible
