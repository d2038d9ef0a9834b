"""Softmax over the codes that could have stood in a token's place: the children of its prefix in the catalogue.

The policy then learns which item, and nothing of which codes exist: a small model learns faster, but its free beams
are full of invalid SIDs, so its hallucination rate says nothing. Recommend with beams constrained to the catalogue.
Behind an item, where a policy says what it is worth, only value tokens are allowed.

    N labels   V vocabulary   n items   L levels   K codes of a level
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.vocab import SidVocab


class Siblings:
    """The catalogue's prefixes, by item.

    ``nodes`` (n L) numbers the prefix of each item's code through all levels; ``n_open`` (n) counts the codes of an
    item up to the last that has a sibling: those behind it are certain and need no label. ``value_node`` numbers the
    place behind an item, where a value token stands.
    """

    def __init__(self, catalog: Catalog, vocab: SidVocab) -> None:
        self.vocab_size = max(vocab.level_starts[-1] + vocab.codebook_sizes[-1], vocab.value_tokens.stop)
        nodes, masks, n_open, n_nodes = [], [], np.zeros(catalog.n_items, np.int64), 0
        for level, (start, size) in enumerate(zip(vocab.level_starts, vocab.codebook_sizes, strict=True)):
            _, node = np.unique(catalog.codes[:, :level], axis=0, return_inverse=True)
            node = node.reshape(-1)
            is_child = np.zeros((int(node.max()) + 1, size), bool)
            is_child[node, catalog.codes[:, level]] = True
            n_open[is_child.sum(1)[node] > 1] = level + 1
            masks.append((n_nodes, start, torch.from_numpy(is_child)))
            nodes.append(node + n_nodes)
            n_nodes += len(is_child)
        self.value_node = n_nodes
        if vocab.n_values:
            masks.append((n_nodes, vocab.value_tokens.start, torch.ones(1, vocab.n_values, dtype=torch.bool)))
        self.nodes = np.stack(nodes, axis=1)
        self.n_open = n_open
        self._masks = masks

    def of(self, nodes_N: Int[Tensor, " N"]) -> Bool[Tensor, "N V"]:
        """Return which tokens may stand where these prefixes go on."""
        allowed = torch.zeros(len(nodes_N), self.vocab_size, dtype=torch.bool)
        for first, start, is_child in self._masks:
            here = (nodes_N >= first) & (nodes_N < first + len(is_child))
            allowed[here, start : start + is_child.shape[1]] = is_child[nodes_N[here] - first]
        return allowed


def sibling_nll(
    logits_NV: Float[Tensor, "N V"], labels_N: Int[Tensor, " N"], allowed_NV: Bool[Tensor, "N U"]
) -> Float[Tensor, " N"]:
    """Return -log of each label's probability among the allowed tokens: at most the first U may be."""
    logits = logits_NV[:, : allowed_NV.shape[1]].float().masked_fill(~allowed_NV, -torch.inf)
    return torch.nn.functional.cross_entropy(logits, labels_N, reduction="none")
