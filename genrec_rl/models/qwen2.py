"""Qwen2 that reads packed SIDs: the Token Merger lies inside the backbone.

TRL computes its losses from the backbone and the LM head and never calls the causal model's own forward, so a
merger placed in ``ForCausalLM.forward`` would be bypassed in training.
"""

from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from genrec_rl.errors import ConfigError
from genrec_rl.models.dropout import ByteDropout
from genrec_rl.models.item_embedding import ItemEmbedding
from genrec_rl.models.lazy import Fuse, read_lazily, read_lazy
from genrec_rl.models.prompts import PACKED, unpack_sids
from genrec_rl.models.token_merger import TokenMerger
from genrec_rl.sids.vocab import SidVocab


class GenRecQwen2Config(Qwen2Config):
    """A Qwen2 configuration that also says how items are written.

    Attributes:
        sid_codebook_sizes: codes of each SID level.
        sid_token_start: token id of the first code of the first level.
        grammar: fields of ``PromptGrammar``.
        grammar_hash: its digest, checked on load.
        catalog_fingerprint: the catalogue that the policy was trained on, checked on load.
        embedding_dropout: share of the input vectors' elements dropped in training.
        residual_dropout: the same for the output of each attention and MLP block.
        embedding_scale: what input vectors are multiplied with; sqrt(hidden_size) lets a small model that starts from
            scratch learn items faster (Vaswani et al. 2017, section 3.4), 1 is what pre-trained backbones know.
        n_known_items: items of the prompt with a vector of their own beside their codes'; 0 for none.
        item_dropout: share of these vectors' elements dropped in training.
        softmax: what its probabilities are learnt over: the ``vocabulary``, or in each place the ``children``, which
            are the codes that go on to a real item.
        target: what it was taught, ``sft.targets``' name for it; empty where that is not known.
        value_edges: edges of the value buckets (``ValueBuckets``) whose tokens it writes behind items; None for none.
        value_means: their mean training values.
        lazy_layers: layers below the previous code (LazyAR, see ``models.lazy``); None for a plain policy, 0 for one
            whose codes are fused in front of the first layer.
    """

    model_type = "genrec_qwen2"
    auto_map = {}  # type: ignore[var-annotated]  # noqa: RUF012  (TRL reads it of any class outside transformers; unannotated: no field)

    sid_codebook_sizes: list[int] | None = None
    sid_token_start: int = 0
    grammar: dict[str, Any] | None = None
    grammar_hash: str = ""
    catalog_fingerprint: str = ""
    embedding_dropout: float = 0.0
    residual_dropout: float = 0.0
    embedding_scale: float = 1.0
    n_known_items: int = 0
    item_dropout: float = 0.0
    softmax: str = "vocabulary"
    target: str = ""
    value_edges: list[float] | None = None
    value_means: list[float] | None = None
    lazy_layers: int | None = None

    @property
    def is_lazy(self) -> bool:
        """Whether the lower layers do not see the previous code."""
        return self.lazy_layers is not None

    @property
    def merges(self) -> bool:
        """Whether prompt items are merged into one vector."""
        return bool((self.grammar or {}).get("merge"))

    @property
    def sid_level_starts(self) -> list[int]:
        """Token id of code 0 of each level."""
        return list(accumulate((self.sid_codebook_sizes or [])[:-1], initial=self.sid_token_start))

    def describe(self, vocab: SidVocab) -> None:
        """Copy the vocabulary's layout."""
        self.sid_codebook_sizes = list(vocab.codebook_sizes)
        self.sid_token_start = vocab.sid_token_start


class DropoutLinear(nn.Linear):
    """A Linear whose output is dropped out in training; its parameters keep a Linear's names."""

    def __init__(self, like: nn.Linear, p: float) -> None:
        super().__init__(like.in_features, like.out_features, bias=like.bias is not None)
        self.dropout = ByteDropout(p)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``dropout(x W^T + b)``."""
        return self.dropout(super().forward(x))


class LastLayer(Qwen2DecoderLayer):
    """A decoder's last layer, whose MLP works only where the output is read: nothing looks at the other places."""

    def forward(
        self, hidden_states: Float[Tensor, "B S H"], kept_places: Int[Tensor, " N"] | None = None, **kwargs: Any
    ) -> Float[Tensor, "B S H"] | Float[Tensor, "1 N H"]:
        """Run the layer; with ``kept_places``, counted through all rows, return these places as one row."""
        if kept_places is None:
            return super().forward(hidden_states, **kwargs)
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        kept = (hidden_states + attended).flatten(0, 1)[kept_places].unsqueeze(0)
        return kept + self.mlp(self.post_attention_layernorm(kept))


class _InitMerger:
    """Start a TokenMerger as a mean, a Fuse as a sum. Both classes need it: the backbone's post_init runs first."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, TokenMerger):
            module.start_as_mean()
        if isinstance(module, Fuse):
            module.start_as_sum()


class GenRecQwen2Model(_InitMerger, Qwen2Model):
    """The backbone: ``input_ids`` may hold packed SIDs beside ordinary token ids."""

    config_class = GenRecQwen2Config
    _no_split_modules = [*Qwen2Model._no_split_modules, "LastLayer"]  # noqa: RUF012  (transformers reads it so)

    def __init__(self, config: GenRecQwen2Config) -> None:
        super().__init__(config)
        if config.merges:
            self.token_merger = TokenMerger(len(config.sid_codebook_sizes or ()), config.hidden_size)
        if config.n_known_items:
            self.item_embedding = ItemEmbedding(config.n_known_items, config.hidden_size, config.item_dropout)
        if config.is_lazy:
            self.level_embedding = nn.Embedding(len(config.sid_codebook_sizes or ()) - 1, config.hidden_size)
            self.fuse = Fuse(config.hidden_size)
        self.embedding_dropout = ByteDropout(config.embedding_dropout)
        self.layers[-1] = LastLayer(config, layer_idx=len(self.layers) - 1)
        if config.residual_dropout > 0:
            for layer in self.layers:
                assert isinstance(layer, Qwen2DecoderLayer)
                layer.self_attn.o_proj = DropoutLinear(layer.self_attn.o_proj, config.residual_dropout)
                layer.mlp.down_proj = DropoutLinear(layer.mlp.down_proj, config.residual_dropout)
        self.post_init()

    def embed_prompt(self, input_ids: Int[Tensor, "B S"]) -> Float[Tensor, "B S H"]:
        """Look up ordinary ids and merge packed ones.

        The merger runs even when there is nothing to merge, so that DDP sees a gradient for it on every rank.
        """
        if not self.config.merges:
            return self.embed_tokens(input_ids)
        is_packed = input_ids >= PACKED
        embeds = self.embed_tokens(input_ids.masked_fill(is_packed, self.config.pad_token_id or 0))
        packed_N = input_ids[is_packed]
        codes_NL = unpack_sids(packed_N, self.token_merger.n_levels)
        starts = torch.tensor(self.config.sid_level_starts, device=input_ids.device)
        merged = self.token_merger(self.embed_tokens(codes_NL + starts))
        if self.config.n_known_items:
            merged = merged + self.item_embedding(packed_N)
        return embeds.masked_scatter(is_packed.unsqueeze(-1), merged.to(embeds.dtype))

    def forward(
        self,
        input_ids: Int[Tensor, "B S"] | None = None,
        attention_mask: Any = None,
        position_ids: Int[Tensor, "B S"] | None = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "B S H"] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run Qwen2 on merged prompts; arguments as in transformers.

        With ``kept_places``, which count through all rows, the last hidden state is one row of these places (1 N H),
        so that neither the last MLP nor a head or a loss does work on others.
        """
        read = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": use_cache, **kwargs}
        read["past_key_values"] = past_key_values
        if inputs_embeds is None and input_ids is not None:
            if self.config.is_lazy:
                return self._read_lazily(input_ids, **read)
            inputs_embeds = self.embedding_dropout(self.embed_prompt(input_ids)) * self.config.embedding_scale
        return super().forward(inputs_embeds=inputs_embeds, **read)

    def _read_lazily(self, input_ids: Int[Tensor, "B S"], **read: Any) -> BaseModelOutputWithPast:
        places = read_lazy(input_ids)
        is_lazy, pad = places.is_lazy_BS, self.config.pad_token_id or 0
        prompt = self.embed_prompt(input_ids.masked_fill(is_lazy, pad))
        levels = self.level_embedding(places.depths_BS[is_lazy]).to(prompt.dtype)
        embeds = prompt.masked_scatter(is_lazy.unsqueeze(-1), levels)
        codes = self.embed_tokens(places.tokens_BS[is_lazy])
        embeds, codes = (self.embedding_dropout(x) * self.config.embedding_scale for x in (embeds, codes))
        return read_lazily(self, embeds, codes, places, **read)


class GenRecQwen2ForCausalLM(_InitMerger, Qwen2ForCausalLM):
    """The policy's network: backbone with merger, and the LM head."""

    config_class = GenRecQwen2Config

    def __init__(self, config: GenRecQwen2Config) -> None:
        super().__init__(config)
        self.model = GenRecQwen2Model(config)
        self.post_init()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does, which cannot write a LazyAR policy's ids.

        Raises:
            ConfigError: for a LazyAR policy.
        """
        if self.config.is_lazy:
            raise ConfigError("generate would show codes to lazy_layers; use decoding.beam_search.beam_search")
        return super().generate(*args, **kwargs)


AutoConfig.register(GenRecQwen2Config.model_type, GenRecQwen2Config)
AutoModel.register(GenRecQwen2Config, GenRecQwen2Model)
AutoModelForCausalLM.register(GenRecQwen2Config, GenRecQwen2ForCausalLM)
