"""Many continuations on one prompt in ONE forward.

A row is ``[prompt (left-padded to P) | branch 1 | ... | branch G]``. A branch is a continuation of C tokens of which
the last is never an input, so it takes C - 1 places, and its first token is predicted by the prompt's last place,
shared by all branches. A branch sees the prompt and itself; its positions go on from the prompt's end.

    B rows (one prompt each)   P prompt places   G branches   C tokens a branch   S = P + G (C - 1)   V vocabulary
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from genrec_rl.errors import ConfigError


def tree_positions(is_prompt_BP: Bool[Tensor, "B P"], *, n_branches: int, width: int) -> Int[Tensor, "B S"]:
    """Return position ids: each branch of ``width`` places goes on where its own prompt ends."""
    prompt = (is_prompt_BP.cumsum(1) - 1).clamp(min=0)
    branch = torch.arange(1, width + 1, device=prompt.device).repeat(n_branches)
    return torch.cat([prompt, prompt[:, -1:] + branch], dim=1)


def tree_mask(is_prompt_BP: Bool[Tensor, "B P"], *, n_branches: int, width: int) -> Bool[Tensor, "B 1 S S"]:
    """Return who may look at whom (True = may): the prompt's real places so far, and a branch's own past.

    The diagonal is always True: a padded place that sees nothing would be NaN in SDPA.
    """
    n_prompt = is_prompt_BP.shape[1]
    total = n_prompt + n_branches * width
    place = torch.arange(total, device=is_prompt_BP.device)
    owner = torch.where(place < n_prompt, -1, (place - n_prompt) // max(width, 1))
    shares = (owner[None, :] == -1) | (owner[:, None] == owner[None, :])
    allowed = shares & (place[:, None] >= place[None, :])
    is_real = torch.cat([is_prompt_BP, is_prompt_BP.new_ones(len(is_prompt_BP), total - n_prompt)], dim=1)
    mask = allowed[None] & is_real[:, None, :]
    return (mask | torch.eye(total, dtype=torch.bool, device=place.device)).unsqueeze(1)


def as_attention_mask(model: Any, mask: Bool[Tensor, "B 1 Q K"], dtype: torch.dtype) -> Tensor:
    """Write a boolean mask the way the model's attention reads it.

    Eager attention ADDS the mask: a boolean one would be silently wrong there.

    Raises:
        ConfigError: for an attention that takes no arbitrary mask.
    """
    kind = model.config._attn_implementation
    if kind == "sdpa":
        return mask
    if kind == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    raise ConfigError(f"attn_implementation '{kind}' takes no tree mask; set `attn_implementation: sdpa` (or eager)")


def branch_log_probs(
    model: nn.Module,
    prompt_ids_BP: Int[Tensor, "B P"],
    is_prompt_BP: Bool[Tensor, "B P"],
    branches_BGC: Int[Tensor, "B G C"],
    *,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "B G C"], Float[Tensor, "B G C"]]:
    """Return log-probabilities (nats, full softmax) and entropies of every branch token in one forward.

    ``model`` may be wrapped for distributed training: it is called, never reached into, so that gradients
    are synchronised.
    """
    n_rows, n_branches, n_tokens = branches_BGC.shape
    n_prompt = prompt_ids_BP.shape[1]
    width = n_tokens - 1
    inputs = torch.cat([prompt_ids_BP, branches_BGC[:, :, :-1].reshape(n_rows, -1)], dim=1)
    network = unwrap(model)
    mask = tree_mask(is_prompt_BP, n_branches=n_branches, width=width)
    logits = model(
        input_ids=inputs,
        attention_mask={"full_attention": as_attention_mask(network, mask, network.dtype)},
        position_ids=tree_positions(is_prompt_BP, n_branches=n_branches, width=width),
        logits_to_keep=torch.arange(n_prompt - 1, inputs.shape[1], device=inputs.device),
        use_cache=False,
    ).logits
    log_probs = (logits.float() / temperature).log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    first = log_probs[:, :1].expand(-1, n_branches, -1).gather(2, branches_BGC[:, :, 0, None])
    later = log_probs[:, 1:].unflatten(1, (n_branches, width)).gather(3, branches_BGC[:, :, 1:, None])
    first_entropy = entropy[:, :1, None].expand(-1, n_branches, -1)
    return (
        torch.cat([first, later.squeeze(3)], dim=2),
        torch.cat([first_entropy, entropy[:, 1:].unflatten(1, (n_branches, width))], dim=2),
    )


def unwrap(model: Any) -> Any:
    """Return the transformers model inside DDP's and PEFT's wrappers."""
    while not hasattr(model, "config") or not hasattr(model, "dtype"):
        model = model.module
    return model
