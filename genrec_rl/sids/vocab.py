"""SID codes to token ids and back, and the tokenizer that is saved beside a policy.

Each code of each level has one token, ``<a_0> <a_1> ... <b_0> ...``, level after level, without gaps. A policy that
learns what items are worth has a token for each bucket of values behind them, ``<value_0> <value_1> ...``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from string import ascii_lowercase

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from genrec_rl.errors import ConfigError, DataError

HISTORY_TOKEN = "<|history|>"
SEPARATOR_TOKEN = "<|sep|>"
SAME_DAY_TOKEN = "<|same_day|>"
PAD_TOKEN = "<|pad|>"
END_TOKEN = "<|end|>"


@dataclass(frozen=True, slots=True)
class SidVocab:
    """Where the SID tokens and the prompt's special tokens lie in a vocabulary.

    ``same_day_id`` is None where prompts do not tell days apart, ``value_token_start`` and ``n_values`` where nothing
    is said of value.
    """

    codebook_sizes: tuple[int, ...]
    sid_token_start: int
    history_id: int
    separator_id: int
    pad_id: int
    same_day_id: int | None = None
    value_token_start: int | None = None
    n_values: int | None = None

    @property
    def value_tokens(self) -> range:
        """Token ids of the value buckets; empty where there are none."""
        start = self.value_token_start or 0
        return range(start, start + (self.n_values or 0))

    @property
    def n_levels(self) -> int:
        """Number of codes in a SID."""
        return len(self.codebook_sizes)

    @property
    def level_starts(self) -> tuple[int, ...]:
        """Token id of code 0 of each level."""
        return tuple(accumulate(self.codebook_sizes[:-1], initial=self.sid_token_start))

    def token_ids(self, codes: Int[Tensor, "*shape L"]) -> Int[Tensor, "*shape L"]:
        """Turn codes into token ids."""
        return codes + torch.tensor(self.level_starts, dtype=codes.dtype, device=codes.device)

    def codes(self, token_ids: Int[Tensor, "*shape L"]) -> Int[Tensor, "*shape L"]:
        """Turn token ids into codes; -1 where a token is no code of its level."""
        codes = token_ids - torch.tensor(self.level_starts, device=token_ids.device)
        sizes = torch.tensor(self.codebook_sizes, device=token_ids.device)
        return torch.where((codes >= 0) & (codes < sizes), codes, -1)


def sid_tokens(codebook_sizes: Sequence[int]) -> list[str]:
    """Token strings of every code, level after level."""
    if len(codebook_sizes) > len(ascii_lowercase):
        raise ConfigError(f"{len(codebook_sizes)} SID levels, at most {len(ascii_lowercase)} are supported")
    return [f"<{ascii_lowercase[lv]}_{c}>" for lv, size in enumerate(codebook_sizes) for c in range(size)]


def build_tokenizer(
    codebook_sizes: Sequence[int], *, tells_days: bool = False, n_values: int = 0
) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a policy trained from scratch: special tokens, the SID tokens and value tokens."""
    prompt_tokens = _prompt_tokens(tells_days=tells_days)
    words = [PAD_TOKEN, END_TOKEN, *prompt_tokens, *sid_tokens(codebook_sizes), *_value_tokens(n_values)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=PAD_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        unk_token=PAD_TOKEN,
        additional_special_tokens=prompt_tokens,
        clean_up_tokenization_spaces=False,
    )


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, codebook_sizes: Sequence[int], *, tells_days: bool = False, n_values: int = 0
) -> None:
    """Add the special tokens, the SID tokens and value tokens to a language model's tokenizer, in place."""
    tokenizer.add_tokens(_prompt_tokens(tells_days=tells_days), special_tokens=True)
    tokenizer.add_tokens([*sid_tokens(codebook_sizes), *_value_tokens(n_values)])


def _prompt_tokens(*, tells_days: bool) -> list[str]:
    return [HISTORY_TOKEN, SEPARATOR_TOKEN, *([SAME_DAY_TOKEN] if tells_days else [])]


def _value_tokens(n_values: int) -> list[str]:
    return [f"<value_{bucket}>" for bucket in range(n_values)]


def vocab_of(tokenizer: PreTrainedTokenizerBase, codebook_sizes: Sequence[int]) -> SidVocab:
    """Find the SID tokens in a tokenizer, and value tokens, if it has any.

    Raises:
        DataError: when SID tokens are absent or do not lie one after the other.
    """
    tokens = sid_tokens(codebook_sizes)
    known = tokenizer.get_vocab()
    ids = [known.get(token, -1) for token in (HISTORY_TOKEN, SEPARATOR_TOKEN, *tokens)]
    start = ids[2]
    if min(ids) < 0 or ids[2:] != list(range(start, start + len(tokens))):
        raise DataError(
            f"the tokenizer lacks the SID tokens {tokens[0]}..{tokens[-1]} of codebooks "
            f"{tuple(codebook_sizes)}: it was made for another catalogue; build the policy again with recipes/sft.py"
        )
    n_values = next(n for n in range(len(known) + 1) if f"<value_{n}>" not in known)
    return SidVocab(
        codebook_sizes=tuple(codebook_sizes),
        sid_token_start=start,
        history_id=ids[0],
        separator_id=ids[1],
        pad_id=tokenizer.pad_token_id,
        same_day_id=known.get(SAME_DAY_TOKEN),
        value_token_start=known.get("<value_0>"),
        n_values=n_values or None,
    )
