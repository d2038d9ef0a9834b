"""Index of the valid SID prefixes in flat arrays, stepped by gathers over real children.

A node of level l is the rank of its prefix among the distinct prefixes of l codes, in lexicographic order.
Level 0 has one node, the root; the nodes of level L are the SIDs themselves. The children of a node are
neighbours, so two arrays a level hold the whole tree: where the children of a node begin, and their codes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from genrec_rl.errors import DataError

NO_NODE = -1
"""A dead beam's place: it has no children."""


class SidTrie:
    """Valid prefixes of a catalogue.

    Args:
        codes: one row of L codes an item; equal rows count once.
        codebook_sizes: number of codes of each level.

    Raises:
        DataError: for an empty catalogue or a code outside its codebook.
    """

    def __init__(self, codes: Int[np.ndarray, "n L"], codebook_sizes: Sequence[int]) -> None:
        codes = np.asarray(codes)
        if codes.size == 0:
            raise DataError("the catalogue is empty: a trie needs at least one item")
        is_outside = (codes < 0) | (codes >= np.asarray(codebook_sizes))
        if is_outside.any():
            row, level = (int(i[0]) for i in np.nonzero(is_outside))
            code, limit = codes[row, level], codebook_sizes[level] - 1
            raise DataError(f"row {row} has code {code} at level {level}, outside 0..{limit}")
        self.codebook_sizes = tuple(int(k) for k in codebook_sizes)
        self.first_child: list[Int[Tensor, " nodes+1"]] = []
        self.child_code: list[Int[Tensor, " children"]] = []
        prefixes = np.zeros(len(codes), np.int64)
        n_nodes = 1
        for level, size in enumerate(self.codebook_sizes):
            children, prefixes = np.unique(prefixes * size + codes[:, level], return_inverse=True)
            starts = np.searchsorted(children, np.arange(n_nodes + 1, dtype=np.int64) * size)
            self.first_child.append(torch.from_numpy(starts.astype(np.int32)))
            self.child_code.append(torch.from_numpy((children % size).astype(np.int32)))
            n_nodes = len(children)

    @property
    def n_sids(self) -> int:
        """Number of distinct SIDs."""
        return len(self.child_code[-1])

    def children(
        self, level: int, nodes: Int[Tensor, "B W"]
    ) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B M"], Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
        """Return the children of each row's nodes: codes, child nodes, parent's place 0..W-1, and whether real."""
        first = self.first_child[level].to(nodes.device)
        starts = first[nodes.clamp(min=0)].long()
        counts = (first[nodes.clamp(min=0) + 1].long() - starts) * (nodes >= 0)
        places = torch.arange(int(counts.max()), device=nodes.device)
        is_real = places < counts.unsqueeze(-1)
        child_nodes = torch.where(is_real, starts.unsqueeze(-1) + places, starts.unsqueeze(-1))
        codes = self.child_code[level].to(nodes.device)[child_nodes].long()
        parents = torch.arange(nodes.shape[1], device=nodes.device)[None, :, None].expand_as(codes)
        return codes.flatten(1), child_nodes.flatten(1), parents.flatten(1), is_real.flatten(1)
