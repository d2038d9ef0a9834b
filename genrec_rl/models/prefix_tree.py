"""Many continuations on one prompt in ONE forward.

A row is ``[prompt (left-padded to P) | branch 1 | ... | branch G]``. A branch is a continuation of C tokens of which
the last is never an input, so it takes C - 1 places, and its first token is predicted by the prompt's last place,
shared by all branches. A branch sees the prompt and itself; its positions go on from the prompt's end.

    B rows (one prompt each)   P prompt places   G branches   C tokens a branch   S = P + G (C - 1)   V vocabulary
"""

import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from genrec_rl.models.trunk import Branches, Trunk, unwrap

TRUNK, PADDING = -1, -2
"""Owners of a place that are no branch."""


def tree_positions(is_prompt_BP: Bool[Tensor, "B P"], *, n_branches: int, width: int) -> Int[Tensor, "B S"]:
    """Return position ids: each branch of ``width`` places goes on where its own prompt ends."""
    prompt = (is_prompt_BP.cumsum(1) - 1).clamp(min=0)
    branch = torch.arange(1, width + 1, device=prompt.device).repeat(n_branches)
    return torch.cat([prompt, prompt[:, -1:] + branch], dim=1)


def tree_layout(
    is_prompt_BP: Bool[Tensor, "B P"], *, n_branches: int, width: int
) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B S"]]:
    """Return owner and trunk limit (see ``tree_mask``) of branches that all hang at the prompt's end."""
    n_rows, n_prompt = is_prompt_BP.shape
    device = is_prompt_BP.device
    branches = torch.arange(n_branches, device=device).repeat_interleave(width)
    owner = torch.cat([torch.where(is_prompt_BP, TRUNK, PADDING), branches.expand(n_rows, -1)], dim=1)
    limit = torch.arange(1, n_prompt + 1, device=device)
    limit = torch.cat([limit, torch.full_like(branches, n_prompt)])
    return owner, limit.expand(n_rows, -1)


def tree_mask(
    owner_BS: Int[Tensor, "B S"], limit_BS: Int[Tensor, "B S"], start_BS: Int[Tensor, "B S"] | None = None
) -> Bool[Tensor, "B 1 S S"]:
    """Return who may look at whom (True = may): the trunk up to a limit, and a branch's own past.

    Every place looks at itself, padding too: one that saw nothing would be NaN in SDPA.

    Args:
        owner_BS: branch that a place belongs to, or TRUNK, or PADDING, which nobody sees. Of several trees in a
            row no two branches share a number.
        limit_BS: the place of the row before which a place may look, as far as there is trunk; for a trunk place,
            the one after itself.
        start_BS: the place of the row where a place's own tree begins; without it all rows are one tree each.
    """
    n_places = owner_BS.shape[1]
    # Row n is True at the first n places: looking rows up is faster than comparing places with limits.
    first = torch.ones(n_places + 1, n_places, dtype=torch.bool, device=owner_BS.device).tril(-1)
    key = owner_BS[:, None, :]
    sees_trunk = first[limit_BS.masked_fill(owner_BS == PADDING, 0)] & (key == TRUNK)
    if start_BS is not None:
        sees_trunk &= ~first[start_BS]
    sees_own = (owner_BS[:, :, None] == key) & (key >= 0) & first[1:]
    itself = torch.eye(n_places, dtype=torch.bool, device=owner_BS.device)
    return (sees_trunk | sees_own | itself).unsqueeze(1)


def use_tree_attention(model: Any) -> None:
    """Give a model whose attention takes no arbitrary mask (flash) SDPA instead, with a warning: the numbers stay."""
    kind = model.config._attn_implementation
    if kind not in ("sdpa", "eager"):
        warnings.warn(f"attn_implementation '{kind}' takes no tree mask; the model goes on with 'sdpa'", stacklevel=2)
        model.set_attn_implementation("sdpa")


def as_attention_mask(model: Any, mask: Bool[Tensor, "B 1 Q K"], dtype: torch.dtype) -> Tensor:
    """Write a boolean mask the way the model's attention reads it; call ``use_tree_attention`` before.

    Eager attention ADDS the mask: a boolean one would be silently wrong there.
    """
    if model.config._attn_implementation == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return mask


class BranchScores(NamedTuple):
    """Of every branch token: its log-probability (nats, full softmax), and the entropy of what it was chosen from."""

    log_probs_BGC: Float[Tensor, "B G C"]
    entropies_BGC: Float[Tensor, "B G C"]


def branch_log_probs(
    model: nn.Module,
    prompt_ids_BP: Int[Tensor, "B P"],
    is_prompt_BP: Bool[Tensor, "B P"],
    branches_BGC: Int[Tensor, "B G C"],
    *,
    temperature: float = 1.0,
    train_entropy: bool = False,
) -> BranchScores:
    """Score every branch token in one forward; entropies have a gradient only with ``train_entropy``.

    ``model`` may be wrapped for distributed training: it is called, never reached into, so that gradients
    are synchronised.
    """
    n_rows, n_branches, n_tokens = branches_BGC.shape
    n_prompt = prompt_ids_BP.shape[1]
    width = n_tokens - 1
    inputs = torch.cat([prompt_ids_BP, branches_BGC[:, :, :-1].reshape(n_rows, -1)], dim=1)
    places = torch.arange(inputs.numel(), device=inputs.device).view_as(inputs)
    network = unwrap(model)
    use_tree_attention(network)
    mask = tree_mask(*tree_layout(is_prompt_BP, n_branches=n_branches, width=width))
    logits = model(
        input_ids=inputs,
        attention_mask={"full_attention": as_attention_mask(network, mask, network.dtype)},
        position_ids=tree_positions(is_prompt_BP, n_branches=n_branches, width=width),
        kept_places=places[:, n_prompt - 1 :].flatten(),
        use_cache=False,
    ).logits.view(n_rows, 1 + n_branches * width, -1)
    return _score(logits[:, 0], logits[:, 1:], branches_BGC, temperature=temperature, train_entropy=train_entropy)


def attached_log_probs(
    model: nn.Module,
    trunk: Trunk,
    branches_BGC: Int[Tensor, "B G C"],
    *,
    temperature: float = 1.0,
    train_entropy: bool = False,
) -> BranchScores:
    """Score branches on prompts that were read already, and train through a trunk that has a gradient."""
    n_rows, n_branches, n_tokens = branches_BGC.shape
    if n_tokens == 1:  # the prompt predicts it all
        later = trunk.logits_BV.new_empty(n_rows, 0, trunk.logits_BV.shape[1])
    else:
        branches = Branches(trunk, n_branches=n_branches)
        later = branches.read(model, branches_BGC[:, :, :-1].flatten(1)).logits
    return _score(trunk.logits_BV, later, branches_BGC, temperature=temperature, train_entropy=train_entropy)


def _score(
    first_BV: Float[Tensor, "B V"],
    later_BNV: Float[Tensor, "B N V"],
    branches_BGC: Int[Tensor, "B G C"],
    *,
    temperature: float,
    train_entropy: bool,
) -> BranchScores:
    """Read the answers off the logits of the prompt's end, which all branches share, and of their own places."""
    n_branches, n_tokens = branches_BGC.shape[1:]
    log_probs = (torch.cat([first_BV[:, None], later_BNV], dim=1).float() / temperature).log_softmax(-1)
    with torch.set_grad_enabled(train_entropy and torch.is_grad_enabled()):
        entropy = -(log_probs.exp() * log_probs).sum(-1)
    first = log_probs[:, :1].expand(-1, n_branches, -1).gather(2, branches_BGC[:, :, 0, None])
    later = log_probs[:, 1:].unflatten(1, (n_branches, n_tokens - 1)).gather(3, branches_BGC[:, :, 1:, None])
    first_entropy = entropy[:, :1, None].expand(-1, n_branches, -1)
    return BranchScores(
        torch.cat([first, later.squeeze(3)], dim=2),
        torch.cat([first_entropy, entropy[:, 1:].unflatten(1, (n_branches, n_tokens - 1))], dim=2),
    )
