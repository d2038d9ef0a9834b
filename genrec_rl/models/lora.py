"""LoRA through peft: low-rank layers, with the merger and the SID tokens' vectors trained in full."""

from peft import LoraConfig, PeftModel
from torch import nn

from genrec_rl.config import Block, read_block
from genrec_rl.errors import ConfigError


def lora_config(settings: Block, *, is_tied: bool, is_lazy: bool = False) -> LoraConfig | None:
    """Return peft's configuration for a policy, or None for full fine-tuning.

    New tokens start untrained, so their embeddings are saved whole beside the low-rank layers, as is the merger;
    an LM head of its own (``is_tied`` False: the larger Qwen2.5) is too, and what a LazyAR policy (``is_lazy``) has
    beside a plain one's layers.

    Raises:
        ConfigError: for an argument that peft.LoraConfig does not have.
    """
    values = read_block(settings, key="lora")
    if values is None:
        return None
    lazy = ["level_embedding", "fuse"] if is_lazy else []
    head = {"ensure_weight_tying": True} if is_tied else {}
    defaults = {
        "r": 16,
        "lora_alpha": 32,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "modules_to_save": ["token_merger", "embed_tokens", *([] if is_tied else ["lm_head"]), *lazy],
        "task_type": "CAUSAL_LM",
    }
    try:
        return LoraConfig(**defaults | head | dict(values))
    except TypeError as error:
        raise ConfigError(f"lora: {error}; see peft.LoraConfig") from None


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold trained low-rank layers into the network, in place, and return it; other models come back as they are."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
