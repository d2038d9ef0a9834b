"""Answers that a search may not give: the SIDs of items that a user has taken already.

Where nobody takes an item twice, a policy still spends places on items of the history. Excluded inside the search,
and not from its answers, they leave every request its full number of answers. Under a trie a prefix is closed, too,
when all SIDs that begin with it are excluded, so that no beam ends in nothing.

    B prompts   W beams   H closed prefixes of the prompt that has most   L levels   K tokens looked at
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.vocab import SidVocab
from genrec_rl.types import Context

_NO_TOKEN = -1


@dataclass(frozen=True, slots=True, eq=False)
class Exclusion:
    """What B prompts may not be answered with.

    ``closed[l]`` (B H l+1) are the token prefixes that end at level l, -1 where there is none; at the last level
    whole SIDs.
    """

    closed: tuple[Int[Tensor, "B H l"], ...]

    @property
    def most(self) -> int:
        """The largest number of SIDs that one prompt may not be answered with."""
        counts_B = (self.closed[-1][..., -1] != _NO_TOKEN).sum(1)
        return int(counts_B.max()) if len(counts_B) else 0

    def to(self, device: torch.device) -> "Exclusion":
        """Return it on a device."""
        return Exclusion(tuple(tokens.to(device) for tokens in self.closed))

    def mask(
        self, level: int, beams_BWl: Int[Tensor, "B W l"], log_probs_BWK: Float[Tensor, "B W K"], *, first_token: int
    ) -> Float[Tensor, "B W K"]:
        """Put -inf where a beam's next token would end in what is closed.

        Args:
            level: of the next token.
            beams_BWl: the beams' tokens.
            log_probs_BWK: of the next token, of K that lie side by side.
            first_token: the first of them.
        """
        closed_BHl = self.closed[level]
        ends_BH = closed_BHl[..., -1]
        follows_BWH = (beams_BWl[:, :, None] == closed_BHl[:, None, :, :-1]).all(-1) & (ends_BH != _NO_TOKEN)[:, None]
        b, w, h = follows_BWH.nonzero(as_tuple=True)
        never = torch.tensor(-torch.inf, dtype=log_probs_BWK.dtype, device=log_probs_BWK.device)
        return log_probs_BWK.index_put((b, w, ends_BH[b, h] - first_token), never)


class SeenItems:
    """Finds what a user has taken in the catalogue's tree of SIDs.

    Args:
        catalog: SIDs that items share are excluded with any one of them.
        vocab: tokens of the codes.
    """

    def __init__(self, catalog: Catalog, vocab: SidVocab) -> None:
        sids_SL, self._sid_of_N = np.unique(catalog.codes, axis=0, return_inverse=True)
        self._tokens_SL = sids_SL.astype(np.int64) + np.asarray(vocab.level_starts)
        self._prefix_of, self._sizes, self._first = [], [], []
        for length in range(1, sids_SL.shape[1] + 1):
            found = np.unique(sids_SL[:, :length], axis=0, return_index=True, return_inverse=True, return_counts=True)
            _, first, prefix_of_S, sizes = found
            self._first.append(first)
            self._prefix_of.append(prefix_of_S.ravel())
            self._sizes.append(sizes)

    def of(self, contexts: Sequence[Context]) -> Exclusion:
        """Return what the histories of some contexts close."""
        seen = [np.unique(self._sid_of_N.ravel()[context.history]) for context in contexts]
        return Exclusion(tuple(self._closed(level, seen) for level in range(self._tokens_SL.shape[1])))

    def _closed(self, level: int, seen: Sequence[np.ndarray]) -> Int[Tensor, "B H l"]:
        """Return the token prefixes of which all SIDs are seen."""
        found = []
        for sids in seen:
            prefixes, counts = np.unique(self._prefix_of[level][sids], return_counts=True)
            found.append(self._first[level][prefixes[counts == self._sizes[level][prefixes]]])
        tokens = np.full((len(seen), max(map(len, found), default=0), level + 1), _NO_TOKEN)
        for row, first in zip(tokens, found, strict=True):
            row[: len(first)] = self._tokens_SL[first, : level + 1]
        return torch.from_numpy(tokens)
