"""The auxiliary loss of a LazyAR policy (GR4AD): each code predicted without the codes before it.

``L = L_NTP + lambda_mtp L_MTP``, ``L_MTP = -sum_t log p(s_t | X)``: what the lower layers made of a place goes
through the upper ones without Fuse (``models.lazy.append_unfused``). It teaches the layers that beams share to say
what they can say alone.

    N labels   V vocabulary   B rows   S places
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from genrec_rl.errors import ConfigError
from genrec_rl.models.prefix_tree import as_attention_mask, use_tree_attention
from genrec_rl.models.trunk import unwrap
from genrec_rl.sft.rows import IGNORED

DEFAULT_MTP_COEF = 0.3
"""GR4AD does not print lambda_mtp; this is ours."""


def mtp_weight(coef: float | None, *, is_lazy: bool, loss_type: str) -> float:
    """Return lambda_mtp: what was set or, for a LazyAR policy, the default.

    Raises:
        ConfigError: for a weight without a LazyAR policy, below 0 or no number, or beside another loss than the NLL.
    """
    if not is_lazy:
        if coef:
            raise ConfigError(f"mtp_coef {coef} is of LazyAR policies: set lazy_layers, or leave it out")
        return 0.0
    weight = DEFAULT_MTP_COEF if coef is None else coef
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"mtp_coef is {weight}; it must be 0 (no such loss) or a positive number")
    if weight and loss_type != "nll":
        raise ConfigError(f"mtp_coef {weight} stands beside loss_type nll, not {loss_type}; set one of them back")
    return weight


def labelled_places(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write a batch of rows as a batch of trees is: a mask of rank 4, and the places that predict a label.

    Rows are padded on the right, and a label stands at its own token, as TRL's collator has them.
    """
    network = unwrap(model)
    use_tree_attention(network)
    ids, is_token = inputs["input_ids"], inputs["attention_mask"].bool()
    n_places = ids.shape[1]
    itself = torch.eye(n_places, dtype=torch.bool, device=ids.device)
    past = torch.ones_like(itself).tril()
    mask = (past & is_token[:, None, None]) | itself
    labels = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
    places = (labels != IGNORED).nonzero().squeeze(1)
    weights = {}
    if "weights" in inputs:
        weights["weights"] = functional.pad(inputs["weights"][:, 1:], (0, 1)).flatten()[places].unsqueeze(0)
    return weights | {
        "input_ids": ids,
        "attention_mask": as_attention_mask(network, mask, network.dtype),
        "kept_places": places,
        "labels": labels[places].unsqueeze(0),
    }


def level_nll(
    logits_NV: Float[Tensor, "N V"], labels_N: Int[Tensor, " N"], *, starts: Sequence[int], sizes: Sequence[int]
) -> Float[Tensor, " N"]:
    """Return -log of each label's probability among all codes of its level.

    What L_MTP is under a softmax over children: which children they are would tell the codes before.
    """
    ends = torch.tensor([start + size for start, size in zip(starts, sizes, strict=True)], device=labels_N.device)
    level_N = torch.bucketize(labels_N, ends, right=True)
    nll = logits_NV.new_zeros(len(labels_N), dtype=torch.float32)
    for level, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        here = level_N == level
        of_level = logits_NV[here, start : start + size].float()
        nll = nll.masked_scatter(here, functional.cross_entropy(of_level, labels_N[here] - start, reduction="none"))
    return nll
