"""A new policy that starts from a trained one: the same, or made LazyAR."""

import torch
from torch import Tensor

from genrec_rl.errors import ConfigError
from genrec_rl.models.policy import Policy

_SAME = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "tie_word_embeddings", "grammar", "embedding_scale", "n_known_items", "catalog_fingerprint"),
)
"""What two policies must have in common to share weights; dropout, softmax and lazy_layers may differ."""


def start_from(policy: Policy, start: Policy) -> None:
    """Copy a trained policy's weights into a new one, in place.

    A plain policy becomes a LazyAR one: its layers keep their weights, Fuse starts as ``m + s``, and a level's vector
    as the mean of the code vectors that the lower layers read in its place before.

    Raises:
        ConfigError: when the two are of another size, grammar or catalogue, or the start is LazyAR with other
            lazy_layers.
    """
    new, old = policy.model.config, start.model.config
    for name in _SAME:
        mine, others = getattr(new, name), getattr(old, name)
        if mine != others:
            raise ConfigError(f"init_from: {name} is {others} there and {mine} here; set this run as the start was")
    if old.is_lazy and old.lazy_layers != new.lazy_layers:
        raise ConfigError(
            f"init_from: lazy_layers is {old.lazy_layers} there and {new.lazy_layers or 0} here; only a plain policy "
            "can be split anew"
        )
    policy.model.load_state_dict(start.model.state_dict(), strict=old.is_lazy == new.is_lazy)
    if new.is_lazy and not old.is_lazy:
        policy.model.model.fuse.start_as_sum()
        with torch.no_grad():
            policy.model.model.level_embedding.weight.copy_(_mean_codes(policy))


def _mean_codes(policy: Policy) -> Tensor:
    """Return the mean code vector of each level but the last."""
    weight = policy.model.model.embed_tokens.weight
    spans = list(zip(policy.vocab.level_starts, policy.vocab.codebook_sizes, strict=True))[:-1]
    return torch.stack([weight[first : first + size].mean(0) for first, size in spans])
