"""THE prompt grammar: how a history is written for a policy. One place, for SFT, RL, evaluation, serving.

    <|history|> item <|sep|> item <|sep|> ... -> s1 s2 s3 s1 s2 s3 ...

With ``merge`` an item of the prompt is one vector (GenRec, eq. 5), carried through ``input_ids`` as one
packed 64-bit id that the backbone unpacks; without it, the item's L tokens. The answer is SID tokens only:
items have a fixed length, so a page needs no separators and an item no end token. With ``page_items: merged`` a
finished item of a page is READ as in a history, its last token as the merged item: ``s1 s2 (s1,s2,s3) s1 s2 ...``.
A LazyAR policy reads each code of an answer that another code follows as a lazy id: see ``models.lazy``.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from string import ascii_lowercase
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from genrec_rl.data.pages import DAY
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids.vocab import HISTORY_TOKEN, SAME_DAY_TOKEN, SEPARATOR_TOKEN, SidVocab
from genrec_rl.types import Context

PACKED = 1 << 62
"""Ids from here on are packed SIDs, far above any vocabulary."""

LAZY = 1 << 61
LAZY_DEPTH_SHIFT = 48
"""Ids from ``LAZY`` to ``PACKED`` are codes that the lower layers do not see: a token, above it its depth."""

GRAMMAR_VERSION = 1

Separator = Literal["item", "day", "page", "none"]
PageItems = Literal["codes", "merged"]


def bits_per_level(n_levels: int) -> int:
    """Bits that each code of a packed SID takes."""
    return 60 // n_levels


def pack_sids(codes: Int[np.ndarray, "*shape L"]) -> Int[np.ndarray, "*shape"]:
    """Write each SID as one integer: ``1 << 62 | c1 << 2b | c2 << b | c3``."""
    bits = bits_per_level(codes.shape[-1])
    packed = np.zeros(codes.shape[:-1], np.int64)
    for level in range(codes.shape[-1]):
        packed = packed << bits | codes[..., level].astype(np.int64)
    return packed | PACKED


def unpack_sids(packed: Int[Tensor, "*shape"], n_levels: int) -> Int[Tensor, "*shape L"]:
    """Read the codes back; the inverse of ``pack_sids``."""
    bits = bits_per_level(n_levels)
    shifts = torch.arange(n_levels - 1, -1, -1, device=packed.device) * bits
    return (packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)


def lazy_ids(tokens: Any, depths: Any) -> Any:
    """Write codes (arrays or tensors) as lazy ids; ``depths`` counts the codes of the item before each."""
    return tokens | depths << LAZY_DEPTH_SHIFT | LAZY


@dataclass(frozen=True, slots=True)
class PromptGrammar:
    """Choices of the grammar; their digest travels with every checkpoint.

    ``separator`` puts ``<|sep|>`` after each item (the paper's "about 2x" shorter prompts), after each page, or
    nowhere (3x). ``day`` is ``item``, but ``<|same_day|>`` where what follows, an item or at the end the request, is
    of the item's own day (UTC): the policy then knows when it is asked. ``max_history`` keeps the most recent items.
    ``page_items`` says how the finished items of an answer are read: as their codes (eq. 4), or the last one merged.
    """

    merge: bool = True
    separator: Separator = "item"
    max_history: int = 50
    page_items: PageItems = "codes"

    def __post_init__(self) -> None:
        if self.page_items not in get_args(PageItems):
            raise ConfigError(f"page_items '{self.page_items}' is not one of {', '.join(get_args(PageItems))}")
        if self.page_items == "merged" and not self.merge:
            raise ConfigError("page_items merged reads items as a merged history does: it needs merge: true")
        if self.separator not in get_args(Separator):
            raise ConfigError(f"separator '{self.separator}' is not one of {', '.join(get_args(Separator))}")
        if self.max_history < 1:
            raise ConfigError(f"max_history is {self.max_history}, at least 1 is needed")

    def digest(self, vocab: SidVocab, *, is_lazy: bool = False) -> str:
        """Hash of everything that decides which ids a history and its answer become."""
        places = {name: place for name, place in asdict(vocab).items() if place is not None}
        grammar = asdict(self)
        if self.page_items == "codes":  # older policies do not name it
            del grammar["page_items"]
        facts = {"version": GRAMMAR_VERSION, "grammar": grammar, "vocab": places}
        if is_lazy:
            facts["lazy"] = True
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_items(context: Context) -> int:
    """Count the newest history items of the same day (UTC) as the request."""
    return int((context.history_times // DAY == context.time // DAY).sum())


class PromptEncoder:
    """Writes contexts as prompts, and items as answers, for one catalogue.

    Args:
        grammar: the choices.
        vocab: where the tokens lie.
        codes: the catalogue's SIDs by row.
        is_lazy: for a LazyAR policy (``models.lazy``).
    """

    def __init__(
        self, grammar: PromptGrammar, vocab: SidVocab, codes: Int[np.ndarray, "n L"], *, is_lazy: bool = False
    ) -> None:
        if codes.shape[1] != vocab.n_levels:
            raise DataError(f"the catalogue has {codes.shape[1]} SID levels, the vocabulary {vocab.n_levels}")
        if grammar.separator == "day" and vocab.same_day_id is None:
            raise DataError(
                f"the vocabulary lacks {SAME_DAY_TOKEN}, which separator day writes; make the policy again"
            )
        self.grammar = grammar
        self.vocab = vocab
        self._tokens = codes.astype(np.int64) + np.asarray(vocab.level_starts)
        self._pieces = pack_sids(codes)[:, None] if grammar.merge else self._tokens
        self._inputs = self._tokens
        if is_lazy:
            followed = lazy_ids(self._tokens[:, :-1], np.arange(vocab.n_levels - 1))
            self._inputs = np.concatenate([followed, self._tokens[:, -1:]], axis=1)

    def prompt(self, context: Context) -> Int[np.ndarray, " S"]:
        """Write a context as ids: one for ``<|history|>``, then the history, oldest first."""
        newest = slice(-self.grammar.max_history, None)
        pieces = self._pieces[context.history[newest]]
        closes = self._closes(context.history_pages[newest])
        times = np.append(context.history_times[newest], context.time)
        separators = self.separators(times[:-1], times[1:])
        body = np.concatenate([pieces, separators[:, None]], axis=1)
        keep = np.concatenate([np.ones(pieces.shape, bool), closes[:, None]], axis=1)
        return np.concatenate([[self.vocab.history_id], body[keep]])

    def running_prompt(self, context: Context) -> Int[np.ndarray, " S"]:
        """Write a context whose newest page still runs, as a page-wise policy met it in training.

        The day that the request goes on with (UTC, as the page rule ``same_day``) is no history yet: its items are
        the beginning of the answer. Leave-one-out cuts pages so; elsewhere this is ``prompt``.
        """
        n_open = open_items(context)
        closed = len(context.history) - n_open
        known = context.only(slice(closed))
        return np.concatenate([self.prompt(known), self.read_answer(context.history[closed:])])

    def separators(self, times: Int[np.ndarray, " n"], next_times: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the separator after each item, by when it came and when what follows did (seconds UTC)."""
        ids = np.full(len(times), self.vocab.separator_id)
        if self.grammar.separator == "day":
            ids[times // DAY == next_times // DAY] = self.vocab.same_day_id
        return ids

    def _closes(self, pages: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        if self.grammar.separator == "page":
            return np.append(pages[1:] != pages[:-1], True)[: len(pages)]
        return np.full(len(pages), self.grammar.separator != "none")

    def answer(self, rows: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m*L"]:
        """Write items at full resolution, as a page is generated and supervised (eq. 4)."""
        return np.asarray(self._tokens[rows].reshape(-1))

    def read_answer(self, rows: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m*L"]:
        """Write items as the input that stands where ``answer`` is predicted, token for token."""
        tokens = self._inputs[rows]
        if self.grammar.page_items == "merged":
            tokens = np.concatenate([tokens[:, :-1], self._pieces[rows]], axis=1)
        return np.asarray(tokens.reshape(-1))

    def batch(self, prompts: list[Int[np.ndarray, " S"]]) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
        """Left-pad prompts to one length; True in the second answer where a token is real."""
        width = max(map(len, prompts))
        ids = np.full((len(prompts), width), self.vocab.pad_id, np.int64)
        is_token = np.zeros((len(prompts), width), bool)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            is_token[row, width - len(prompt) :] = True
        return torch.from_numpy(ids), torch.from_numpy(is_token)

    def render(self, ids: Int[np.ndarray, " S"]) -> str:
        """Write a prompt for a person; a tokenizer cannot decode packed ids."""
        starts = self.vocab.level_starts
        names = {self.vocab.history_id: HISTORY_TOKEN, self.vocab.separator_id: SEPARATOR_TOKEN}
        names[self.vocab.pad_id] = ""
        if self.vocab.same_day_id is not None:
            names[self.vocab.same_day_id] = SAME_DAY_TOKEN
        words = []
        for i in ids:
            if LAZY <= i < PACKED:
                i &= (1 << LAZY_DEPTH_SHIFT) - 1
            if i >= PACKED:
                codes = unpack_sids(torch.tensor(int(i)), self.vocab.n_levels).tolist()
                words.append(f"({','.join(map(str, codes))})")
            elif i in names:
                words.append(names[int(i)])
            else:
                level = int(np.searchsorted(starts, i, side="right")) - 1
                words.append(f"<{ascii_lowercase[level]}_{i - starts[level]}>")
        return " ".join(filter(None, words))
