"""Answers drawn from the policy independently, token by token: the rollouts that a policy gradient is written for.

``gumbel`` beams (``decoding.beam_search``) are the same draws with only new ones kept until W are found; here a
likely answer may come several times, so that the mean over draws is an expectation under the policy.

    B prompts   W draws   L levels   K tokens looked at
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from genrec_rl.decoding.beam_search import BeamPlan, Beams, next_log_probs, over_children
from genrec_rl.errors import ConfigError, RolloutError
from genrec_rl.models.trunk import Branches, Trunk
from genrec_rl.sids.trie import SidTrie
from genrec_rl.sids.vocab import SidVocab


@torch.no_grad()
def sample_from(
    model: Any,
    trunk: Trunk,
    *,
    vocab: SidVocab,
    plan: BeamPlan,
    generator: torch.Generator,
    trie: SidTrie | None = None,
) -> Beams:
    """Draw W answers a prompt, with repeats, in the order of their drawing.

    Args:
        model: the causal model that read the trunk.
        trunk: the prompts.
        vocab: where the levels' tokens lie.
        plan: W = the one width of all levels; and over what probabilities sum to 1.
        generator: source of chance.
        trie: draws, level by level, among real children alone, by their probabilities divided by their sum.

    Returns:
        tokens, and their log-probabilities as ``search_from`` gives them.

    Raises:
        RolloutError: when the model returns NaN.
        ConfigError: for widths that differ, or are not one a level.
    """
    width = plan.widths[-1]
    if plan.widths != (width,) * vocab.n_levels:
        raise ConfigError(f"widths {list(plan.widths)}: draws have one width at each of {vocab.n_levels} levels")
    by_level = plan.normalisation != "vocabulary"
    tokens = torch.empty(len(trunk.logits_BV), width, 0, dtype=torch.long, device=trunk.logits_BV.device)
    scores = torch.zeros(tokens.shape[:2], device=tokens.device)
    nodes = torch.zeros_like(scores, dtype=torch.long)
    branches = Branches(trunk, n_branches=width)
    stay = torch.arange(width, device=tokens.device).expand_as(nodes)
    for level, (start, size) in enumerate(zip(vocab.level_starts, vocab.codebook_sizes, strict=True)):
        rows = slice(start, start + size) if by_level or trie is not None else slice(None)
        if level == 0:
            logits = trunk.logits_BV[:, None].float()
            log_probs = logits[..., rows].log_softmax(-1) if by_level else logits.log_softmax(-1)[..., rows]
            log_probs = log_probs.expand(-1, width, -1)
        else:
            branches = branches if level == 1 else branches.follow(stay)
            hidden = branches.read(model.model, tokens[:, :, -1], depth=level - 1).last_hidden_state
            log_probs = next_log_probs(model.get_output_embeddings(), hidden, rows=rows, by_level=by_level)
        if torch.isnan(log_probs).any():
            raise RolloutError(f"NaN log-probabilities at SID level {level}; the policy's weights are broken")
        if trie is not None and plan.normalisation == "children":
            log_probs = over_children(trie, level, nodes, log_probs)
        chances = log_probs if trie is None else _of_children(trie, level, nodes, log_probs)
        drawn = _draw(chances, generator=generator)
        if trie is not None:
            nodes = _child(trie, level, nodes, drawn)
        scores = scores + log_probs.gather(2, drawn[..., None])[..., 0]
        tokens = torch.cat([tokens, drawn[..., None] + (rows.start or 0)], dim=2)
    return Beams(tokens, scores)


def _draw(log_probs_BWK: Float[Tensor, "B W K"], *, generator: torch.Generator) -> Int[Tensor, "B W"]:
    """Draw one token a row: the largest after Gumbel noise."""
    noise = torch.empty_like(log_probs_BWK).exponential_(generator=generator)
    return (log_probs_BWK - noise.log()).argmax(-1)


def _of_children(
    trie: SidTrie, level: int, nodes_BW: Int[Tensor, "B W"], log_probs_BWK: Float[Tensor, "B W K"]
) -> Float[Tensor, "B W K"]:
    """Put -inf where a code does not go on to an item."""
    codes_BM, _, parents_BM, is_child_BM = trie.children(level, nodes_BW)
    n_codes = log_probs_BWK.shape[2]
    is_open = torch.zeros(len(nodes_BW), nodes_BW.shape[1] * n_codes, dtype=torch.int8, device=nodes_BW.device)
    is_open.scatter_add_(1, parents_BM * n_codes + codes_BM, is_child_BM.to(torch.int8))
    return log_probs_BWK.masked_fill(is_open.view_as(log_probs_BWK) == 0, -torch.inf)


def _child(
    trie: SidTrie, level: int, nodes_BW: Int[Tensor, "B W"], codes_BW: Int[Tensor, "B W"]
) -> Int[Tensor, "B W"]:
    """Return the node that a drawn code leads to."""
    codes_BM, children_BM, parents_BM, is_child_BM = trie.children(level, nodes_BW)
    is_drawn_BM = is_child_BM & (codes_BM == codes_BW.gather(1, parents_BM))
    found = torch.zeros_like(nodes_BW)
    return found.scatter_add(1, parents_BM, children_BM * is_drawn_BM)
