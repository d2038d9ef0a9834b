"""What the benchmarks of the policy share: a market of random numbers, and the catalogue as ``generate`` reads it."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Qwen2Config

from benchmarks.harness import BenchmarkSettings
from genrec_rl.models.policy import BackboneSize, Policy, create_policy
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.sids.catalog import Catalog

LEVELS = 3
PLAIN = PromptGrammar(merge=False, separator="none", max_history=10_000)
"""Prompts without packed ids: rows that ``generate`` and TRL's own trainer read as well."""


class GroupedQueries(BackboneSize):
    """A backbone in which two heads share their keys and values, as in the larger Qwen2 models."""

    def config(self) -> Qwen2Config:
        """Return the configuration with half as many key-value heads."""
        config = super().config()
        config.num_key_value_heads = self.num_heads // 2
        return config


def make_catalog(n_items: int, *, codes: int, seed: int) -> Catalog:
    """Draw distinct SIDs of three levels."""
    drawn = np.random.default_rng(seed).choice(codes**LEVELS, size=n_items, replace=False)
    sids = np.stack(np.unravel_index(drawn, (codes,) * LEVELS), axis=1)
    return Catalog(
        codes=sids.astype(np.int32),
        codebook_sizes=(codes,) * LEVELS,
        item_ids=np.arange(n_items),
        vectors=np.ones((n_items, 1), np.float32),
        centroids=[],
        items_fingerprint="random",
        popularity=np.zeros(n_items, np.int64),
    )


def make_policy(catalog: Catalog, *, seed: int) -> Policy:
    """Make a policy of 4.1 M random weights (hidden 256, 4 layers, 4 heads), so large that few beams tie."""
    size = GroupedQueries(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024)
    policy = create_policy(catalog, grammar=PLAIN, backbone=size, seed=seed)
    with torch.no_grad():
        for weights in policy.model.parameters():
            weights.add_(torch.randn_like(weights) * 0.05)
    policy.model.generation_config.eos_token_id = None  # an item ends after its third token
    policy.model.eval()
    return policy


def random_prompts(
    policy: Policy, n_prompts: int, length: int, *, seed: int
) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Draw prompts of one length: SID tokens at random."""
    generator = torch.Generator().manual_seed(seed)
    tokens = (policy.vocab.sid_token_start, policy.vocab.sid_token_start + sum(policy.vocab.codebook_sizes))
    ids = torch.randint(*tokens, (n_prompts, length), generator=generator)
    return ids, torch.ones_like(ids, dtype=torch.bool)


def prefix_function(policy: Policy, catalog: Catalog, *, prompt_length: int) -> Callable[[int, Tensor], list[int]]:
    """Return a ``prefix_allowed_tokens_fn``: a look-up of the tokens so far in a dict of all prefixes."""
    children: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
    for sid in policy.vocab.token_ids(torch.from_numpy(catalog.codes).long()).tolist():
        for level in range(LEVELS):
            children[tuple(sid[:level])].add(sid[level])
    allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}

    def allowed_tokens(_: int, ids: Tensor) -> list[int]:
        return allowed[tuple(ids[prompt_length:].tolist())]

    return allowed_tokens


def has_default_sizes(settings: BenchmarkSettings, *names: str) -> bool:
    """Return whether these settings are the ones that the goals were set for."""
    default = type(settings)()
    return all(getattr(settings, name) == getattr(default, name) for name in names)
