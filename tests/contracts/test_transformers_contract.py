"""What genrec_rl borrows of transformers' inside, beside its public names."""

import inspect

import torch
from transformers import DynamicCache
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2Model


def test_decoder_layer_is_attention_then_mlp_each_on_a_residual():
    """LastLayer repeats these lines for the kept places only."""
    source = inspect.getsource(Qwen2DecoderLayer.forward)
    steps = ["self.input_layernorm(", "self.self_attn(", "self.post_attention_layernorm(", "self.mlp("]
    assert [source.count(step) for step in steps] == [1, 1, 1, 1]
    assert sorted(steps, key=source.index) == steps
    assert source.count("residual + hidden_states") == 2


def test_attention_hands_unknown_keywords_to_the_attention_function():
    """Branches reach branch_attention as a keyword, kept_places passes every layer but the last."""
    source = inspect.getsource(Qwen2Attention.forward)
    assert "self.config._attn_implementation, eager_attention_forward" in source
    call = source[source.index("attention_interface(\n") :]
    assert "**kwargs" in call[: call.index(")\n")]


def test_backbone_takes_a_ready_mask_as_a_mapping():
    assert "isinstance(causal_mask_mapping := attention_mask, dict)" in inspect.getsource(Qwen2Model.forward)


def test_cache_layers_hold_keys_and_values_with_places_third():
    cache = DynamicCache()
    cache.update(torch.zeros(2, 3, 5, 7), torch.ones(2, 3, 5, 7), 0)
    assert cache.layers[0].keys.shape == (2, 3, 5, 7)
    assert cache.layers[0].values.equal(torch.ones(2, 3, 5, 7))
