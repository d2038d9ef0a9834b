"""LazyAR (GR4AD, arXiv:2602.22732): lower layers that never see the previous code, so that all beams share them.

    prompt                       places of an item's codes 2, 3, ...
    item <|sep|> item <|sep|>    p_2     p_3        layers 1..K know the place's level, not the codes
                                  |       |
                        code 1 - Fuse    Fuse - code 2
                                  |       |
                                 ...     ...        layers K+1.. go on as in a plain policy

The first code is predicted by the prompt's last place through all layers, as in a plain policy; it needs no place
and no Fuse of its own. Ids say which places are lazy: see ``models.prompts.lazy_ids``.

    B rows   S places   N lazy places (of a row, or of all)   H hidden
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from genrec_rl.errors import ConfigError
from genrec_rl.models.prompts import LAZY, LAZY_DEPTH_SHIFT, PACKED


def check_lazy_layers(lazy_layers: int | None, *, n_layers: int, n_levels: int) -> None:
    """Refuse a split that leaves no layer above it, or SIDs that have no second code.

    Raises:
        ConfigError: naming the limit.
    """
    if lazy_layers is None:
        return
    if not 0 <= lazy_layers < n_layers:
        raise ConfigError(
            f"lazy_layers {lazy_layers}: of {n_layers} layers at most {n_layers - 1} can lie below the codes; "
            "GR4AD has two thirds there"
        )
    if n_levels < 2:
        raise ConfigError("lazy_layers: SIDs of one code have no previous code to leave out; leave it out")


class LazyPlaces(NamedTuple):
    """What ids say: which places are lazy and, of those, how many codes stand before them, and the previous code."""

    is_lazy_BS: Bool[Tensor, "B S"]
    depths_BS: Int[Tensor, "B S"]
    tokens_BS: Int[Tensor, "B S"]


def read_lazy(ids_BS: Int[Tensor, "B S"]) -> LazyPlaces:
    """Read ids apart; the inverse of ``lazy_ids``. Depth and token of other places mean nothing."""
    below = ids_BS & (LAZY - 1)
    is_lazy = (ids_BS >= LAZY) & (ids_BS < PACKED)
    return LazyPlaces(is_lazy, below >> LAZY_DEPTH_SHIFT, below & ((1 << LAZY_DEPTH_SHIFT) - 1))


class Fuse(nn.Module):
    """``Fuse(m, s) = W_f [m * (W_g s + b_g); s]``: the previous code enters what the lower layers made of a place.

    ``b_g`` is ours, at 0 this is GR4AD's. It lets training start as ``m + s``: W_f = [I I], W_g = 0, b_g = 1.
    Parameters lie here, not in Linears: transformers initialises only modules that own parameters.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.gate_bias = nn.Parameter(torch.empty(hidden_size))
        self.mix = nn.Parameter(torch.empty(hidden_size, 2 * hidden_size))

    def forward(self, m_NH: Float[Tensor, "N H"], s_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N H"]:
        """Fuse N places with the vectors of the codes before them."""
        gated = m_NH * functional.linear(s_NH, self.gate, self.gate_bias)
        return functional.linear(torch.cat([gated, s_NH], dim=-1), self.mix)

    def start_as_sum(self) -> None:
        """Begin as ``m + s``: as a residual stream to which the code is added late."""
        initialization.zeros_(self.gate)
        initialization.ones_(self.gate_bias)
        identity = torch.eye(len(self.mix), dtype=self.mix.dtype, device=self.mix.device)
        initialization.copy_(self.mix, identity.repeat(1, 2))


def read_lazily(
    backbone: Any,
    embeds_BSH: Float[Tensor, "B S H"],
    codes_NH: Float[Tensor, "N H"],
    places: LazyPlaces,
    *,
    attention_mask: Any = None,
    position_ids: Int[Tensor, "B S"] | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = None,
    kept_places: Int[Tensor, " N"] | None = None,
    lower_states: Float[Tensor, "B S H"] | None = None,
    stops_at_fuse: bool = False,
    mtp: bool = False,
    **kwargs: Any,
) -> BaseModelOutputWithPast:
    """Run a LazyAR backbone.

    Args:
        backbone: its layers, Fuse and norm.
        embeds_BSH: what the first layer reads: of a lazy place its level's vector.
        codes_NH: vectors of the previous codes, of all rows' lazy places.
        places: which those are.
        attention_mask: as in transformers.
        position_ids: ditto; without them places count from 0.
        past_key_values: ditto; it is filled.
        use_cache: ditto; None is no.
        kept_places: see ``GenRecQwen2Model.forward``.
        lower_states: what the lower layers gave before, in place of running them.
        stops_at_fuse: return what the lower layers give.
        mtp: return the kept places twice: as they are, and once more as they would be if no place of the item had
            been fused (GR4AD's L_MTP). Needs ``kept_places`` and a mask of rank 4.
        **kwargs: for the layers.
    """
    if position_ids is None:
        position_ids = torch.arange(embeds_BSH.shape[1], device=embeds_BSH.device).unsqueeze(0)
    masks = attention_mask
    if not isinstance(masks, dict):
        masks = {"full_attention": create_causal_mask(
            config=backbone.config, inputs_embeds=embeds_BSH, attention_mask=attention_mask,
            past_key_values=past_key_values, position_ids=position_ids,
        )}  # fmt: skip

    def run(states: Tensor, layers: range, **given: Any) -> Tensor:
        embedded = backbone.rotary_emb(states, position_ids)
        for i in layers:
            mask = masks[backbone.config.layer_types[i]]
            states = backbone.layers[i](states, attention_mask=mask, position_embeddings=embedded,
                                        position_ids=position_ids, past_key_values=past_key_values,
                                        use_cache=bool(use_cache), **given, **kwargs)  # fmt: skip
        return states

    split = backbone.config.lazy_layers
    states = run(embeds_BSH, range(split)) if lower_states is None else lower_states
    if stops_at_fuse:
        return BaseModelOutputWithPast(last_hidden_state=states)
    fused = backbone.fuse(states[places.is_lazy_BS], codes_NH)
    unfused, states = states, states.masked_scatter(places.is_lazy_BS.unsqueeze(-1), fused.to(states.dtype))
    if mtp:
        assert kept_places is not None
        twice = append_unfused(places, masks["full_attention"], position_ids, kept_places)
        states = torch.cat([states, unfused.gather(1, twice.at_BN.unsqueeze(2).expand(-1, -1, states.shape[2]))], 1)
        masks, position_ids, kept_places = {"full_attention": twice.mask}, twice.position_ids, twice.kept_places
    states = run(states, range(split, len(backbone.layers)), kept_places=kept_places)
    return BaseModelOutputWithPast(
        last_hidden_state=backbone.norm(states), past_key_values=past_key_values if use_cache else None
    )


class Unfused(NamedTuple):
    """Copies of lazy places behind a row's own S: which, and mask, positions and kept places of all S + N."""

    at_BN: Int[Tensor, "B N"]
    mask: Tensor
    position_ids: Int[Tensor, "B S+N"]
    kept_places: Int[Tensor, " 2*kept"]


def append_unfused(
    places: LazyPlaces, mask: Tensor, position_ids: Int[Tensor, "B S"], kept_places: Int[Tensor, " kept"]
) -> Unfused:
    """Lay a copy of every lazy place behind its row, which sees what the place sees, but its own item's copies only.

    No place sees a copy, so the places' own states stay as they are. A kept place that is not lazy has no copy: it
    is kept twice itself. ``mask`` is boolean or additive, of rank 4.
    """
    is_lazy, device = places.is_lazy_BS, mask.device
    n_rows, n_places = is_lazy.shape
    n = int(is_lazy.sum(1).max())
    # Rows with fewer end with copies of other places, which are no item's, so that nobody sees or reads them.
    at = is_lazy.byte().argsort(dim=1, descending=True, stable=True)[:, :n]
    position_ids = position_ids.expand(n_rows, -1)
    item = position_ids - places.depths_BS  # equal at places of one item, among those that see each other
    no, yes = (False, True) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
    sees = mask[:, 0].gather(1, at.unsqueeze(2).expand(-1, -1, n_places))
    is_own = (item.gather(1, at).unsqueeze(2) == item.unsqueeze(1)) & is_lazy.unsqueeze(1)
    copies = sees.masked_fill(~is_own, no).gather(2, at.unsqueeze(1).expand(-1, n, -1))
    copies = copies.masked_fill(torch.eye(n, dtype=torch.bool, device=device), yes)
    above = torch.cat([mask[:, 0], torch.full_like(sees, no).transpose(1, 2)], dim=2)
    below = torch.cat([sees.masked_fill(is_own, no), copies], dim=2)
    row, place = kept_places // n_places, kept_places % n_places
    first = row * (n_places + n)
    copy = n_places + is_lazy.cumsum(1)[row, place] - 1
    kept = torch.cat([first + place, first + torch.where(is_lazy[row, place], copy, place)])
    positions = torch.cat([position_ids, position_ids.gather(1, at)], dim=1)
    return Unfused(at, torch.cat([above, below], dim=1).unsqueeze(1), positions, kept)
