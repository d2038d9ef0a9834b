"""Answers that a search may not give: the SIDs of items that a user has taken already.

Where nobody takes an item twice, a policy still spends places on items of the history. Excluded inside the search,
and not from its answers, they leave every request its full number of answers. A prefix is closed, too, when all SIDs
that begin with it are excluded, so that no beam under a trie ends in nothing, and a free one is less often invalid.

    B prompts   W beams   C closed prefixes of the prompt that has most   L levels   K tokens looked at
    N items     D distinct SIDs
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from genrec_rl.errors import RolloutError
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.collisions import pack, unpack
from genrec_rl.sids.vocab import SidVocab
from genrec_rl.types import Context

_NO_TOKEN = -1


@dataclass(frozen=True, slots=True, eq=False)
class Exclusion:
    """What B prompts may not be answered with.

    ``closed[i]`` (B C i+1) are the token prefixes of i + 1 tokens that are closed, -1 where a prompt has fewer; the
    last are whole SIDs.
    """

    closed: tuple[Int[Tensor, "B C _"], ...]

    def to(self, device: torch.device) -> "Exclusion":
        """Return it on a device."""
        return Exclusion(tuple(tokens.to(device) for tokens in self.closed))

    def mask(
        self, level: int, beams_BWl: Int[Tensor, "B W l"], log_probs_BWK: Float[Tensor, "B W K"], *, first_token: int
    ) -> Float[Tensor, "B W K"]:
        """Put -inf, in place, where a beam's next token would end in what is closed.

        Args:
            level: of the next token.
            beams_BWl: the beams' tokens, as many as the level.
            log_probs_BWK: of the next token, of K that lie side by side.
            first_token: the first of them.
        """
        closed_BCi = self.closed[level]
        ends_BC = closed_BCi[..., -1]
        follows_BWC = (ends_BC != _NO_TOKEN)[:, None].repeat(1, beams_BWl.shape[1], 1)
        for before in range(level):
            follows_BWC &= beams_BWl[:, :, None, before] == closed_BCi[:, None, :, before]
        b, w, c = follows_BWC.nonzero(as_tuple=True)
        log_probs_BWK[b, w, ends_BC[b, c] - first_token] = -torch.inf
        return log_probs_BWK


class SeenItems:
    """Finds what users have taken in the catalogue's tree of SIDs.

    Args:
        catalog: items that share a SID are excluded with any one of them.
        vocab: tokens of the codes.
    """

    def __init__(self, catalog: Catalog, vocab: SidVocab) -> None:
        keys_D, self._sid_of_N = np.unique(pack(catalog.codes, catalog.codebook_sizes), return_inverse=True)
        self._tokens_DL = unpack(keys_D, catalog.codebook_sizes).astype(np.int64) + np.asarray(vocab.level_starts)
        self._prefix_of_D, self._n_sids, self._first = [], [], []  # of each level: prefixes; their SIDs, the first
        for level in range(catalog.n_levels):
            prefix_D = keys_D // prod(catalog.codebook_sizes[level + 1 :])
            _, first, prefix_of_D, n_sids = np.unique(
                prefix_D, return_index=True, return_inverse=True, return_counts=True
            )
            self._prefix_of_D.append(prefix_of_D)
            self._n_sids.append(n_sids)
            self._first.append(first)

    def n_left(self, contexts: Iterable[Context]) -> Int[np.ndarray, " B"]:
        """Return how many SIDs of the catalogue each context leaves."""
        seen = [len(np.unique(self._sid_of_N[context.seen])) for context in contexts]
        return len(self._tokens_DL) - np.array(seen, np.int64)

    def check(self, contexts: Iterable[Context], *, at_least: int) -> None:
        """Check that each context leaves so many SIDs of the catalogue.

        Raises:
            RolloutError: when one leaves fewer.
        """
        for context in contexts:
            if (n_left := self.n_left([context]).item()) < at_least:
                raise RolloutError(
                    f"exclude_seen leaves a request of user '{context.user_id}' {n_left} SIDs of the catalogue, and "
                    f"{at_least} are asked for; ask for fewer (num_generations), or set exclude_seen: false"
                )

    def of(self, contexts: Sequence[Context]) -> Exclusion:
        """Return what some contexts close: all that is ``seen``. A history that was cut leaves older items in."""
        seen = [np.unique(self._sid_of_N[context.seen]) for context in contexts]
        return Exclusion(tuple(self._closed(level, seen) for level in range(self._tokens_DL.shape[1])))

    def _closed(self, level: int, seen: Sequence[Int[np.ndarray, " d"]]) -> Int[Tensor, "B C _"]:
        """Return the token prefixes that end at a level, and of which all SIDs are seen."""
        found = []
        for sids in seen:
            prefixes, counts = np.unique(self._prefix_of_D[level][sids], return_counts=True)
            found.append(self._first[level][prefixes[counts == self._n_sids[level][prefixes]]])
        tokens = np.full((len(seen), max(map(len, found), default=0), level + 1), _NO_TOKEN)
        for row, first in zip(tokens, found, strict=True):
            row[: len(first)] = self._tokens_DL[first, : level + 1]
        return torch.from_numpy(tokens)
