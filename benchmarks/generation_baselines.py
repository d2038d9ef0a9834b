"""What the policy is timed against, and the random market on which: see beam_search.py and grpo_step.py."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from prefix_grouper import PrefixGrouper
from prefix_grouper.utils.register_transformers import register_attention
from torch import Tensor, nn
from transformers import AttentionInterface, Qwen2Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward

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


def repeated_log_probs(
    model: nn.Module,
    prompt_ids_BP: Int[Tensor, "B P"],
    is_prompt_BP: Bool[Tensor, "B P"],
    answers_BGC: Int[Tensor, "B G C"],
) -> Float[Tensor, "B G C"]:
    """Score a row for each answer, its prompt in front; only the answer's places go through the LM head."""
    n_answers, n_tokens = answers_BGC.shape[1:]
    answers = answers_BGC.flatten(0, 1)
    ids = torch.cat([prompt_ids_BP.repeat_interleave(n_answers, 0), answers], dim=1)
    is_token = torch.cat([is_prompt_BP.repeat_interleave(n_answers, 0), torch.ones_like(answers).bool()], dim=1)
    kept = {"logits_to_keep": n_tokens + 1, "use_cache": False}
    logits = model(input_ids=ids, attention_mask=is_token.long(), **kept).logits[:, :-1]
    return select(logits, answers).unflatten(0, answers_BGC.shape[:2])


class GroupedLogProbs:
    """Scores one row a prompt with prefix-grouper, its attention running on SDPA.

    The package's own masks are those of padding, meant for flash attention, which is causal by itself; for SDPA the
    causal part has to be added. It is built once a forward, and none where the kernel's own causal mode does.
    """

    def __init__(self) -> None:
        self.causal: dict[tuple[int, int], Tensor | None] = {}
        register_attention()
        AttentionInterface.register("sdpa_bottom_right", self._attend)

    def __call__(
        self,
        model: nn.Module,
        prompt_ids_BP: Int[Tensor, "B P"],
        is_prompt_BP: Bool[Tensor, "B P"],
        answers_BGC: Int[Tensor, "B G C"],
    ) -> Float[Tensor, "B G C"]:
        """Return the log-probability of each token."""
        self.causal.clear()
        n_answers = answers_BGC.shape[1]
        answers = answers_BGC.flatten(0, 1)
        is_answer = torch.ones_like(answers).bool()
        grouper = PrefixGrouper.from_ungrouped_masks(is_prompt_BP, is_answer, n_answers, padding_mode="right")
        positions = [
            torch.cat([torch.arange(info.prefix_len), *(info.prefix_len + torch.arange(n) for n in info.suffix_lens)])
            for info in grouper.group_info
        ]
        logits = model(
            input_ids=grouper.concat_input(prompt_ids_BP, is_prompt_BP, answers, is_answer),
            position_ids=nn.utils.rnn.pad_sequence(positions, batch_first=True),
            prefix_grouper=grouper,
            prefix_grouper_attn_func="sdpa_bottom_right",
            use_cache=False,
        ).logits
        _, _, answer_logits, _ = grouper.split_output(logits, include_prefix_last=1)
        return select(answer_logits[:, :-1], answers).unflatten(0, answers_BGC.shape[:2])

    def _attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, is_key_BK: Tensor, **kwargs: Any
    ) -> tuple[Tensor, None]:
        shape = (query.shape[2], key.shape[2])
        if shape not in self.causal:
            causal = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
            if not is_key_BK.all():
                self.causal[shape] = causal & is_key_BK[:, None, None, :]
            else:
                self.causal[shape] = None if shape[0] == shape[1] else causal
        return sdpa_attention_forward(module, query, key, value, self.causal[shape], **kwargs)


def select(logits_NCV: Float[Tensor, "N C V"], tokens_NC: Int[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    return logits_NCV.float().log_softmax(-1).gather(2, tokens_NC.unsqueeze(2)).squeeze(2)


def has_default_sizes(settings: BenchmarkSettings, *names: str) -> bool:
    """Return whether these settings are the ones that the goals were set for."""
    default = type(settings)()
    return all(getattr(settings, name) == getattr(default, name) for name in names)
