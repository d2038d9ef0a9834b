"""A prompt read once, and continuations attached to what was kept of it.

    trunk       <|history|> item item ...            keys and values of P places, kept once a prompt
    branches    N continuations of W places each     a place sees the trunk, and its own branch up to itself

A branch's softmax runs over two pieces, trunk and own past, so the trunk is never copied, whatever N is. It works
beside every attention implementation, which only the trunk is read with. A trunk that was read with gradient is
trained through. Threads that share a model take turns: its attention is exchanged while branches are read.

    B prompts   P prompt places   N branches   W new places of a branch   T past and new places of a branch
    Q distinct prefixes of a prompt's branches   A query heads   K key heads   D head size   V vocabulary
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache
from typing_extensions import override

from genrec_rl.errors import ConfigError
from genrec_rl.models.prefixes import Prefixes
from genrec_rl.models.prompts import lazy_ids

ATTENTION = "genrec_branches"
Layers = tuple[tuple[Tensor, Tensor], ...]
Past = dict[int, tuple[Tensor, Tensor]]
_FORWARD = RLock()


@dataclass(frozen=True, slots=True, eq=False)
class Trunk:
    """Prompts that were read: each layer's keys and values (B K P D), and what they predict next."""

    layers: Layers
    logits_BV: Float[Tensor, "B V"]
    is_prompt_BP: Bool[Tensor, "B P"]
    next_position_B1: Int[Tensor, "B 1"]

    def padding_bias(self) -> Float[Tensor, "B 1 1 P"] | None:
        """Return what is added to scores so that no branch sees padding; None where there is none."""
        if self.is_prompt_BP.all():
            return None
        keys = self.layers[0][0]
        bias = torch.zeros(self.is_prompt_BP.shape, dtype=keys.dtype, device=keys.device)
        return bias.masked_fill_(~self.is_prompt_BP, torch.finfo(keys.dtype).min)[:, None, None]


def read_trunk(
    model: nn.Module, prompt_ids_BP: Int[Tensor, "B P"], is_prompt_BP: Bool[Tensor, "B P"], *, length_groups: int = 1
) -> Trunk:
    """Read left-padded prompts; with gradient where autograd is on.

    ``model`` may be wrapped for distributed training: it is called, never reached into, so that gradients
    are synchronised.

    Args:
        model: the causal model.
        prompt_ids_BP: prompts.
        is_prompt_BP: False where they are padding.
        length_groups: forwards, each of prompts of like length, so that little padding is read. Their number is this
            (or B) whatever the lengths: processes that train together call the model equally often.

    Raises:
        ConfigError: when the model keeps nothing, as under activation checkpointing.
    """
    if length_groups == 1:
        return _read_together(model, prompt_ids_BP, is_prompt_BP)
    lengths = is_prompt_BP.sum(1)
    order = lengths.argsort(stable=True)
    parts, sizes = [], lengths[order].tolist()  # (one wait for the device, whatever the groups)
    for places in torch.arange(len(sizes)).tensor_split(min(length_groups, len(sizes))):
        rows, longest = order[places[0] : places[-1] + 1], sizes[places[-1]]
        newest = slice(-max(longest, 1), None)
        parts.append(_read_together(model, prompt_ids_BP[rows, newest], is_prompt_BP[rows, newest]))
    back, n_places = order.argsort(), prompt_ids_BP.shape[1]

    def rejoin(states: Iterable[Tensor]) -> Tensor:
        return torch.cat([functional.pad(x, (0, 0, n_places - x.shape[2], 0)) for x in states])[back]

    layers = tuple(
        (rejoin(keys for keys, _ in layer), rejoin(values for _, values in layer))
        for layer in zip(*(part.layers for part in parts), strict=True)
    )
    return Trunk(layers, torch.cat([part.logits_BV for part in parts])[back], is_prompt_BP, lengths[:, None])


def _read_together(model: nn.Module, prompt_ids_BP: Int[Tensor, "B P"], is_prompt_BP: Bool[Tensor, "B P"]) -> Trunk:
    cache = DynamicCache(config=unwrap(model).config)
    positions = (is_prompt_BP.cumsum(1) - 1).clamp(min=0)
    n_rows, n_places = prompt_ids_BP.shape
    with _FORWARD:
        output = model(
            input_ids=prompt_ids_BP,
            attention_mask=None if is_prompt_BP.all() else is_prompt_BP.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            kept_places=torch.arange(1, n_rows + 1, device=prompt_ids_BP.device) * n_places - 1,
        )
    if cache.get_seq_length() != n_places:
        raise ConfigError("the model kept no keys and values of the prompt: switch activation checkpointing off")
    layers = tuple((layer.keys, layer.values) for layer in cache.layers)
    return Trunk(layers, output.logits[0].float(), is_prompt_BP, positions[:, -1:] + 1)


class Attached:
    """Places that hang on a trunk, as attention reads them: the trunk, and what ``take`` returns of their own."""

    def __init__(self, trunk: Trunk) -> None:
        self.trunk = trunk
        self.bias = trunk.padding_bias()
        self.sees_own: Bool[Tensor, "B N T"] | None = None

    def take(self, layer: int, keys_BKQD: Tensor, values_BKQD: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's new keys and values, and return all that each place may see beside the trunk (B K N T D)."""
        raise NotImplementedError

    def _read(self, model: nn.Module, ids_BQ: Int[Tensor, "B Q"], steps: Int[Tensor, "*b Q"], **kwargs: Any) -> Any:
        """Run a causal model, or its backbone, over tokens so many steps behind the trunk."""
        if unwrap(model).config.is_lazy:
            ids_BQ = lazy_ids(ids_BQ, steps)
        with _attending_branches(model):
            return model(
                input_ids=ids_BQ,
                attention_mask={"full_attention": None},
                position_ids=self.trunk.next_position_B1 + steps,
                use_cache=False,
                branches=self,
                **kwargs,
            )


class Branches(Attached):
    """N branches on a trunk, and the keys and values of the places that they have taken so far.

    Args:
        trunk: what they hang on.
        n_branches: N.
        past: keys and values (B K N T D) of earlier places, by layer; none for new branches.
        lower: what a LazyAR policy's lower layers give at each depth, which ``share_lower`` reads once.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        n_branches: int,
        past: Past | None = None,
        lower: Float[Tensor, "B T H"] | None = None,
    ) -> None:
        super().__init__(trunk)
        self.n_branches = n_branches
        self.past = past
        self.lower = lower
        self._taken: Past = {}

    def share_lower(self, backbone: nn.Module, *, n_places: int) -> None:
        """Run a LazyAR backbone's lower layers over the places to come, once for all branches.

        They know a place's depth, and no code. A plain policy shares nothing beyond the trunk.
        """
        if unwrap(backbone).config.is_lazy:
            one = Branches(self.trunk, n_branches=1)
            unknown = self.trunk.next_position_B1.new_zeros(len(self.trunk.logits_BV), n_places)
            self.lower = one.read(backbone, unknown, stops_at_fuse=True).last_hidden_state

    def read(self, model: nn.Module, ids_BN: Int[Tensor, "B N*W"], *, depth: int = 0, **kwargs: Any) -> Any:
        """Run a causal model, or its backbone, over the branches' next W tokens, the first at ``depth``."""
        width = ids_BN.shape[1] // self.n_branches
        steps = torch.arange(depth, depth + width, device=ids_BN.device).repeat(self.n_branches)
        if self.lower is not None:
            kwargs["lower_states"] = self.lower[:, steps]
        self._taken = {}
        return self._read(model, ids_BN, steps, **kwargs)

    def follow(self, parents_BU: Int[Tensor, "B U"]) -> "Branches":
        """Return U branches of which each goes on from one of the N that were read."""
        index = parents_BU[:, None, :, None, None]

        def take(states: Tensor) -> Tensor:
            return states.gather(2, index.expand(-1, states.shape[1], -1, *states.shape[3:]))

        past = {layer: (take(keys), take(values)) for layer, (keys, values) in self._taken.items()}
        return Branches(self.trunk, n_branches=parents_BU.shape[1], past=past, lower=self.lower)

    @override
    def take(self, layer: int, keys_BKQD: Tensor, values_BKQD: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's new keys and values, and return all of the branches' own (B K N T D)."""
        keys, values = (x.unflatten(2, (self.n_branches, -1)) for x in (keys_BKQD, values_BKQD))
        if self.past is not None:
            old_keys, old_values = self.past[layer]
            keys, values = torch.cat([old_keys, keys], dim=3), torch.cat([old_values, values], dim=3)
        self._taken[layer] = (keys, values)
        return keys, values


class PrefixBranches(Attached):
    """Distinct prefixes on a trunk: a place sees the trunk, the prefixes that its own begins with, and itself."""

    def __init__(self, trunk: Trunk, prefixes: Prefixes) -> None:
        super().__init__(trunk)
        self.prefixes = prefixes
        width = prefixes.line_BQW.shape[2]
        self.sees_own = torch.arange(width, device=prefixes.depth_BQ.device) <= prefixes.depth_BQ[..., None]

    def read(self, model: nn.Module) -> Any:
        """Run a causal model over every prefix."""
        return self._read(model, self.prefixes.tokens_BQ, self.prefixes.depth_BQ)

    @override
    def take(self, layer: int, keys_BKQD: Tensor, values_BKQD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of each place's line (B K Q W D)."""
        line_BQW = self.prefixes.line_BQW
        index = line_BQW.flatten(1)[:, None, :, None]

        def along(states: Tensor) -> Tensor:
            every = index.expand(-1, states.shape[1], -1, states.shape[3])
            return states.gather(2, every).unflatten(2, line_BQW.shape[1:])

        return along(keys_BKQD), along(values_BKQD)


def branch_attention(
    queries_BAQD: Float[Tensor, "B A Q D"],
    trunk_BKPD: tuple[Float[Tensor, "B K P D"], Float[Tensor, "B K P D"]],
    own_BKNTD: tuple[Float[Tensor, "B K N T D"], Float[Tensor, "B K N T D"]],
    *,
    bias: Float[Tensor, "B 1 1 P"] | None,
    scaling: float,
    sees_own_BNT: Bool[Tensor, "B N T"] | None = None,
) -> Float[Tensor, "B A Q D"]:
    """Return softmax(q [trunk keys, own keys]) [trunk values, own values] for the N W = Q newest places.

    A place sees its branch's places up to itself, or with W = 1 those of ``sees_own``.
    """
    n_rows, n_heads, n_places, size = queries_BAQD.shape
    (trunk_keys, trunk_values), (own_keys, own_values) = trunk_BKPD, own_BKNTD
    n_keys, n_branches, n_own = own_keys.shape[1:4]
    width = n_places // n_branches
    queries = (queries_BAQD * scaling).view(n_rows, n_keys, n_heads // n_keys, n_branches, width, size)
    far = queries.flatten(2, 4) @ trunk_keys.transpose(-1, -2)
    if bias is not None:
        far = far + bias
    near = (queries.unsqueeze(-2) * own_keys[:, :, None, :, None]).sum(-1)
    if sees_own_BNT is not None:
        near = near.masked_fill(~sees_own_BNT[:, None, None, :, None], torch.finfo(near.dtype).min)
    elif width > 1:
        sees = torch.ones(width, n_own, dtype=torch.bool, device=near.device).tril(n_own - width)
        near = near.masked_fill(~sees, torch.finfo(near.dtype).min)
    weights = torch.cat([far, near.flatten(2, 4)], dim=-1).softmax(-1, dtype=torch.float32).to(far.dtype)
    far_weights, near_weights = weights.split([trunk_keys.shape[2], n_own], dim=-1)
    near_weights = near_weights.reshape(*near.shape, 1)
    mixed = far_weights @ trunk_values
    mixed = mixed + (near_weights * own_values[:, :, None, :, None]).sum(-2).flatten(2, 4)
    return mixed.view(n_rows, n_heads, n_places, size)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _: None,
    *,
    scaling: float,
    dropout: float,
    branches: Attached,
    **__: Any,
) -> tuple[Tensor, None]:
    if dropout > 0:
        raise ConfigError(f"attention_dropout is {dropout}: branches have none; set it to 0 in the policy's config")
    own = branches.take(module.layer_idx, key, value)
    trunk, bias, sees_own = branches.trunk.layers[module.layer_idx], branches.bias, branches.sees_own
    mixed = branch_attention(query, trunk, own, bias=bias, scaling=scaling, sees_own_BNT=sees_own)
    return mixed.transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attend)


@contextmanager
def _attending_branches(model: nn.Module) -> Iterator[None]:
    config = unwrap(model).config
    with _FORWARD:
        usual = config._attn_implementation
        config._attn_implementation = ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = usual


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while, and give the mode back whatever happens."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def unwrap(model: Any) -> Any:
    """Return the transformers model, or what PEFT makes of it, inside wrappers: DDP's, or DeepSpeed's engine.

    An engine has a ``config`` of its own, so that only what wraps nothing is the model.
    """
    while hasattr(model, "module"):
        model = model.module
    return model
