"""General search unit (GSU): which of a user's behaviours matter for a candidate (SIM, arXiv:2006.05639).

Training asks for masks over the padded history: an attention over all of a short history costs less than gathering,
forward and backward. Scoring asks for places: what is kept of a long history is gathered. There a user's behaviours
lie in groups, by item (soft search) or by search key (hard search), oldest first in a group.

    P   requests        G   candidates        N   behaviours (in masks: oldest first, padding in front)
    Q   groups, padding behind                K   behaviours that are kept
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CHUNK, _LONG_ROW = 8, 1_500
"""Members of a chunk, and the length from which chunks pay: measured with k = 50 and 100."""


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
    # padding is -inf: at 0 it would beat real negative scores
    ranked = scores.masked_fill(~is_eligible, -torch.inf)
    chosen = top_k_indices(ranked.detach(), top_k=top_k)
    return torch.zeros_like(is_eligible).scatter_(-1, chosen, value=True) & is_eligible


def latest_of_key(
    candidate_keys_PG: Int[Tensor, "P G"],
    group_keys_PQ: Int[Tensor, "P Q"],
    group_sizes_PQ: Int[Tensor, "P Q"],
    *,
    top_k: int,
) -> tuple[Int[Tensor, "P G K"], Bool[Tensor, "P G K"]]:
    """Hard search by pointer: O(log Q + k) a candidate, whatever the history's length.

    Args:
        candidate_keys_PG: search key of each candidate.
        group_keys_PQ: search keys of each user's groups, ascending; padding is larger than any key.
        group_sizes_PQ: behaviours in each group, 0 in padding.
        top_k: behaviours to keep.

    Returns:
        Places of the latest ``top_k`` behaviours of a candidate's key, the latest first, and which places count.
        The others are 0.
    """
    group_PG = torch.searchsorted(group_keys_PQ, candidate_keys_PG).clamp(max=group_keys_PQ.shape[1] - 1)
    is_found_PG = group_keys_PQ.gather(1, group_PG) == candidate_keys_PG
    sizes_PG = group_sizes_PQ.gather(1, group_PG) * is_found_PG
    lasts_PG = group_sizes_PQ.cumsum(dim=1).gather(1, group_PG) - 1
    slots_K = torch.arange(top_k, device=candidate_keys_PG.device)
    is_kept_PGK = slots_K < sizes_PG[..., None]
    return (lasts_PG[..., None] - slots_K) * is_kept_PGK, is_kept_PGK


def most_relevant(
    relevance_PGQ: Float[Tensor, "P G Q"], group_sizes_PQ: Int[Tensor, "P Q"], *, top_k: int
) -> tuple[Int[Tensor, "P G K"], Bool[Tensor, "P G K"]]:
    """Soft search by item: the ``top_k`` most relevant behaviours, or all where there are fewer.

    An item's behaviours are equally relevant: where not all of them fit, the latest are taken. (The masks of
    training leave it to chance which.)

    Args:
        relevance_PGQ: relevance of each user's distinct items, -inf in padding.
        group_sizes_PQ: behaviours with each item, 0 in padding.
        top_k: behaviours to keep.

    Returns:
        Places of behaviours, and which of them count.
    """
    n_groups = relevance_PGQ.shape[2]
    groups_PGR = top_k_indices(relevance_PGQ, top_k=min(top_k, n_groups))
    n_behaviours_P11 = group_sizes_PQ.sum(dim=1)[:, None, None]
    if group_sizes_PQ.max() == 1:
        return groups_PGR, groups_PGR < n_behaviours_P11
    by_relevance_PGR = relevance_PGQ.gather(2, groups_PGR).argsort(dim=2, descending=True)
    groups_PGR = groups_PGR.gather(2, by_relevance_PGR)
    sizes_PGR = group_sizes_PQ[:, None].expand(relevance_PGQ.shape).gather(2, groups_PGR)
    taken_PGR = sizes_PGR.cumsum(dim=2)
    # the group of rank r fills the slots below taken[r], with its latest behaviour first
    slots_K = torch.arange(top_k, device=relevance_PGQ.device)
    slots_PGK = slots_K.expand(*relevance_PGQ.shape[:2], top_k).contiguous()
    rank_PGK = torch.searchsorted(taken_PGR, slots_PGK, right=True).clamp(max=groups_PGR.shape[2] - 1)
    starts_PQ = group_sizes_PQ.cumsum(dim=1) - group_sizes_PQ
    starts_PGR = starts_PQ[:, None].expand(relevance_PGQ.shape).gather(2, groups_PGR)
    places_PGK = (starts_PGR + taken_PGR - 1).gather(2, rank_PGK) - slots_K
    is_kept_PGK = (slots_K < n_behaviours_P11).expand(places_PGK.shape)
    return places_PGK * is_kept_PGK, is_kept_PGK


def top_k_indices(scores: Float[Tensor, "... N"], *, top_k: int) -> Int[Tensor, "... K"]:
    """Return where the ``top_k`` highest of each row are, in no order.

    On CPU numpy finds them: its selection is vectorised and takes 40 % of the time of torch's. A long row is first
    cut into chunks, whose largest are cheap to find: the top k lie in the k chunks with the highest ones.
    """
    if scores.device.type != "cpu":
        return scores.topk(top_k, dim=-1, sorted=False).indices
    n, width = scores.shape[-1], scores.shape[-1] // _CHUNK
    if n < _LONG_ROW or width < 2 * top_k:
        first = n - top_k
        return torch.from_numpy(np.argpartition(scores.numpy(), first, axis=-1)[..., first:])
    # a chunk is a column of rows laid below each other, so that the maximum runs over whole rows
    highest = scores[..., : width * _CHUNK].unflatten(-1, (_CHUNK, width)).amax(dim=-2)
    chunks = top_k_indices(highest, top_k=top_k)
    members = (chunks[..., None, :] + width * torch.arange(_CHUNK)[:, None]).flatten(start_dim=-2)
    rest = torch.arange(width * _CHUNK, n).expand(*scores.shape[:-1], -1)
    places = torch.cat([members, rest], dim=-1)
    return places.gather(-1, top_k_indices(scores.gather(-1, places), top_k=top_k))
