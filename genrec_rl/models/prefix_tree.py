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

from genrec_rl.models.prefixes import Prefixes
from genrec_rl.models.prompts import lazy_ids
from genrec_rl.models.trunk import Branches, PrefixBranches, Trunk, unwrap

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


class BranchLogits(NamedTuple):
    """What follows a prompt (all branches share it), and each place of each branch but its last token's."""

    first_BV: Float[Tensor, "B V"]
    later_BGWV: Float[Tensor, "B G C-1 V"]

    def log_probs(
        self, *, temperature: float = 1.0, allowed_BGCV: Bool[Tensor, "B G C U"] | None = None
    ) -> "BranchLogits":
        """Return log-softmaxes (nats, float32): over the vocabulary, or over ``allowed`` tokens, of the first U."""
        if allowed_BGCV is None:
            return BranchLogits(*((logits.float() / temperature).log_softmax(-1) for logits in self))
        size = allowed_BGCV.shape[-1]
        masks = (allowed_BGCV[:, 0, 0], allowed_BGCV[:, :, 1:])
        masked = (
            (logits[..., :size].float() / temperature).masked_fill(~mask, -torch.inf)
            for logits, mask in zip(self, masks, strict=True)
        )
        return BranchLogits(*(logits.log_softmax(-1) for logits in masked))


def branch_logits(
    model: nn.Module,
    prompt_ids_BP: Int[Tensor, "B P"],
    is_prompt_BP: Bool[Tensor, "B P"],
    branches_BGC: Int[Tensor, "B G C"],
) -> BranchLogits:
    """Read prompts and branches in one forward.

    ``model`` may be wrapped for distributed training: it is called, never reached into, so that gradients
    are synchronised.
    """
    n_rows, n_branches, n_tokens = branches_BGC.shape
    n_prompt = prompt_ids_BP.shape[1]
    width = n_tokens - 1
    network = unwrap(model)
    answers = branches_BGC[:, :, :-1]
    if network.config.is_lazy:
        answers = lazy_ids(answers, torch.arange(width, device=answers.device))
    inputs = torch.cat([prompt_ids_BP, answers.reshape(n_rows, -1)], dim=1)
    places = torch.arange(inputs.numel(), device=inputs.device).view_as(inputs)
    use_tree_attention(network)
    mask = tree_mask(*tree_layout(is_prompt_BP, n_branches=n_branches, width=width))
    logits = model(
        input_ids=inputs,
        attention_mask={"full_attention": as_attention_mask(network, mask, network.dtype)},
        position_ids=tree_positions(is_prompt_BP, n_branches=n_branches, width=width),
        kept_places=places[:, n_prompt - 1 :].flatten(),
        use_cache=False,
    ).logits.view(n_rows, 1 + n_branches * width, -1)
    return BranchLogits(logits[:, 0], logits[:, 1:].unflatten(1, (n_branches, width)))


def attached_logits(
    model: nn.Module,
    trunk: Trunk,
    branches_BGC: Int[Tensor, "B G C"],
    *,
    is_asked_BGC: Bool[Tensor, "B G C"] | None = None,
) -> BranchLogits:
    """Read branches on prompts that were read already, and train through a trunk that has a gradient.

    A prefix that several branches share is read once.

    Args:
        model: the causal model, which may be wrapped.
        trunk: the prompts.
        branches_BGC: token ids.
        is_asked_BGC: False where nobody asks for a token's logits, as where it is certain: what is returned of them
            is finite and means nothing.
    """
    n_rows, n_branches, n_tokens = branches_BGC.shape
    if n_tokens == 1:  # the prompt predicts it all
        empty = trunk.logits_BV.new_empty(n_rows, n_branches, 0, trunk.logits_BV.shape[1])
        return BranchLogits(trunk.logits_BV, empty)
    answers_BGW = branches_BGC[:, :, :-1]
    if n_branches == 1:  # it shares nothing, and may be a long page
        later = Branches(trunk, n_branches=1).read(model, answers_BGW.flatten(1)).logits
        return BranchLogits(trunk.logits_BV, later.unsqueeze(1))
    prefixes = Prefixes.of(answers_BGW, None if is_asked_BGC is None else is_asked_BGC[:, :, 1:])
    return BranchLogits(trunk.logits_BV, prefixes.spread(PrefixBranches(trunk, prefixes).read(model).logits))


class BranchScores(NamedTuple):
    """Of every branch token: its log-probability (nats), and the entropy of what it was chosen from."""

    log_probs_BGC: Float[Tensor, "B G C"]
    entropies_BGC: Float[Tensor, "B G C"]


def score_branches(
    log_probs: BranchLogits, branches_BGC: Int[Tensor, "B G C"], *, train_entropy: bool = False
) -> BranchScores:
    """Read each branch token off the log-softmaxes; entropies have a gradient only with ``train_entropy``."""
    n_branches = branches_BGC.shape[1]
    with torch.set_grad_enabled(train_entropy and torch.is_grad_enabled()):
        # (0 log 0 = 0: a token that is not allowed has log-probability -inf)
        first_entropy, later_entropy = (-(x.exp() * x.masked_fill(x == -torch.inf, 0)).sum(-1) for x in log_probs)
    first = log_probs.first_BV[:, None].expand(-1, n_branches, -1).gather(2, branches_BGC[:, :, 0, None])
    later = log_probs.later_BGWV.gather(3, branches_BGC[:, :, 1:, None]).squeeze(3)
    return BranchScores(
        torch.cat([first, later], dim=2),
        torch.cat([first_entropy[:, None, None].expand(-1, n_branches, -1), later_entropy], dim=2),
    )


def branch_log_probs(
    model: nn.Module,
    prompt_ids_BP: Int[Tensor, "B P"],
    is_prompt_BP: Bool[Tensor, "B P"],
    branches_BGC: Int[Tensor, "B G C"],
    *,
    temperature: float = 1.0,
    train_entropy: bool = False,
) -> BranchScores:
    """Score every branch token under the full softmax in one forward."""
    logits = branch_logits(model, prompt_ids_BP, is_prompt_BP, branches_BGC)
    return score_branches(logits.log_probs(temperature=temperature), branches_BGC, train_entropy=train_entropy)
