"""Index of the valid SID prefixes in flat arrays, stepped by gathers over real children.

A node of level l is the rank of its prefix among the distinct prefixes of l codes, in lexicographic order.
Level 0 has one node, the root; the nodes of level L are the SIDs themselves. The children of a node are
neighbours, so two arrays a level hold the whole tree: where the children of a node begin, and their codes.

    B prompts   W nodes of a prompt   M places for their children   S segments   F places of a segment
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from genrec_rl.errors import DataError
from genrec_rl.sids.collisions import check_packable, is_run_start, pack

NO_NODE = -1
"""A dead beam, which has no children; and the node of a place that holds no child."""

LARGEST_INT16_CODEBOOK = 1 << 15
TOP_K_STRIDE = 16
Rank = Callable[[Float[Tensor, "B M"], Int64[Tensor, "B M"]], Float[Tensor, "B M"]]
SMALL_ROOM = 1 << 10
"""Places for a prompt's children up to which empty ones cost less than leaving them out."""


@dataclass(frozen=True, slots=True, eq=False)
class BestChildren:
    """Best children of B prompts, by rank; behind a prompt's last child, rank and score -inf and node NO_NODE."""

    ranks: Float[Tensor, "B W"]
    scores: Float[Tensor, "B W"]
    parents: Int64[Tensor, "B W"]
    codes: Int64[Tensor, "B W"]
    nodes: Int64[Tensor, "B W"]


@dataclass(frozen=True, slots=True, eq=False)
class _Segments:
    """Children of B x W nodes in pieces of up to F neighbours; a piece never spans two nodes.

    ``codes`` beyond ``counts`` are other nodes' and mean nothing; ``is_full`` says that there are none.
    ``owners`` numbers the nodes of all prompts one after the other.
    """

    codes: Int[Tensor, "B S F"]
    first: Int[Tensor, "B S"]
    counts: Int[Tensor, "B S"]
    owners: Int64[Tensor, "B S"]
    is_full: bool

    def is_child(self) -> Bool[Tensor, "B S F"]:
        """Whether each place holds a child."""
        place = torch.arange(self.codes.shape[2], dtype=self.counts.dtype, device=self.counts.device)
        return place < self.counts.unsqueeze(2)


class SidTrie:
    """Valid prefixes of a catalogue.

    Args:
        codes: one row of L codes an item, in any order; equal rows count once.
        codebook_sizes: number of codes of each level.

    Raises:
        DataError: for an empty catalogue or a code outside its codebook.
        ConfigError: for codebooks of 2^63 SIDs or more.
    """

    def __init__(self, codes: Int[np.ndarray, "n L"], codebook_sizes: Sequence[int]) -> None:
        codes = np.asarray(codes)
        self.codebook_sizes = tuple(int(k) for k in codebook_sizes)
        check_packable(self.codebook_sizes)
        _check_codes(codes, self.codebook_sizes)
        prefixes = _distinct_sorted(pack(codes, self.codebook_sizes))
        levels: list[tuple[Tensor, Tensor]] = []
        for size in reversed(self.codebook_sizes):
            parents = prefixes // size
            firsts = np.flatnonzero(is_run_start(parents))
            # Node i has the children begins[i + 1] to begins[i + 2]; the 0 in front makes node -1 a childless one.
            begins = np.concatenate([[0], firsts, [len(prefixes)]]).astype(np.int32)
            own = (prefixes - parents * size).astype(np.int16 if size <= LARGEST_INT16_CODEBOOK else np.int32)
            # A segment read from the last node's end stays inside the array.
            padding = np.zeros(np.diff(begins).max(), own.dtype)
            levels.append((torch.from_numpy(begins), torch.from_numpy(np.concatenate([own, padding]))))
            prefixes = parents[firsts]
        self._arrays = {torch.device("cpu"): tuple(reversed(levels))}

    @property
    def n_sids(self) -> int:
        """Number of distinct SIDs."""
        return self.n_prefixes(len(self.codebook_sizes))

    def n_prefixes(self, length: int) -> int:
        """Return the number of distinct prefixes of ``length`` codes; 1 for the empty prefix."""
        return int(self._levels(torch.device("cpu"))[length - 1][0][-1]) if length else 1

    @property
    def n_bytes(self) -> int:
        """Size of all arrays on one device."""
        return sum(array.nbytes for level in self._levels(torch.device("cpu")) for array in level)

    def children(
        self, level: int, nodes: Int64[Tensor, "B W"]
    ) -> tuple[Int64[Tensor, "B M"], Int64[Tensor, "B M"], Int64[Tensor, "B M"], Bool[Tensor, "B M"]]:
        """Return codes, child nodes, parents and whether each place holds a child, on the nodes' device.

        The children of each prompt's nodes lie in the nodes' order, a node's children by code. ``parents`` is
        the index, 0 to W-1, of the node that a child hangs on. Places without a child lie between and behind
        them: their node is NO_NODE, their code any code of the level, and the last answer masks them. A node
        that is NO_NODE has no children.
        """
        segments = self._segments(level, nodes)
        codes, is_child = segments.codes.long(), segments.is_child()
        child_nodes = segments.first.unsqueeze(2) + torch.arange(codes.shape[2], device=nodes.device)
        child_nodes.masked_fill_(~is_child, NO_NODE)
        parents = (segments.owners % nodes.shape[1]).unsqueeze(2).expand_as(codes)
        return codes.flatten(1), child_nodes.flatten(1), parents.flatten(1), is_child.flatten(1)

    def is_certain(self, level: int, nodes: Int64[Tensor, "B W"]) -> Bool[Tensor, "B W"]:
        """Return whether at most one SID of the catalogue goes on from each node; NO_NODE has none."""
        is_certain = torch.ones_like(nodes, dtype=torch.bool)
        for begins, _ in self._levels(nodes.device)[level:]:
            first, end = begins[nodes + 1], begins[nodes + 2]
            is_certain &= end - first <= 1
            nodes = torch.where(end > first, first.long(), NO_NODE)
        return is_certain

    def best_children(
        self,
        level: int,
        nodes: Int64[Tensor, "B W"],
        scores: Float[Tensor, "B W"],
        log_probs: Float[Tensor, "B W V"],
        *,
        width: int,
        code_start: int = 0,
        rank: Rank | None = None,
        per_node: int | None = None,
    ) -> BestChildren:
        """Return the ``width`` children of each prompt's nodes with the largest score plus log-probability.

        The same as masking, adding and choosing among what ``children`` returns, in a third of the time.

        Args:
            level: of the nodes; the root has level 0.
            nodes: beams of each prompt; one that is NO_NODE has no children.
            scores: of the beams.
            log_probs: of what may follow each beam; contiguous, or else it is copied.
            width: beams wanted. Fewer come back where the nodes have no room for more; NaN comes first.
            code_start: the place in ``log_probs`` of the level's code 0.
            rank: turns scores (B M, -inf where there is no child) and parents (B M) into what is chosen by.
            per_node: children of one node that may be chosen, its best; from ``width`` on it changes nothing.
        """
        is_limited = per_node is not None and per_node < width
        segments = self._segments(level, nodes, cuts=not is_limited)
        n_places, n_vocab = segments.codes.shape[2], log_probs.shape[2]
        integer = torch.int32 if log_probs.numel() < 1 << 31 else torch.int64
        places = segments.codes.to(integer) + (segments.owners * n_vocab + code_start).to(integer).unsqueeze(2)
        log_probs_BSF = log_probs.flatten().index_select(0, places.flatten()).view_as(places)
        candidates = scores.take(segments.owners).unsqueeze(2) + log_probs_BSF
        if not segments.is_full:
            candidates = torch.where(segments.is_child(), candidates, -torch.inf)
        found = ranks = candidates.flatten(1)
        if rank is not None:
            parents = segments.owners % nodes.shape[1]
            ranks = rank(found, parents.unsqueeze(2).expand_as(candidates).flatten(1))
        if is_limited:
            assert per_node is not None
            best, at = largest_of_each(ranks.unflatten(1, (-1, n_places)), width, per_group=per_node)
        else:
            best, at = largest(ranks, width)
        segment, place = at // n_places, at % n_places
        is_child = place < segments.counts.gather(1, segment)
        return BestChildren(
            ranks=best,
            scores=best if rank is None else found.gather(1, at),
            parents=segments.owners.gather(1, segment) % nodes.shape[1],
            codes=segments.codes.flatten(1).gather(1, at).long(),
            nodes=torch.where(is_child, segments.first.gather(1, segment) + place, NO_NODE),
        )

    def _segments(self, level: int, nodes: Int64[Tensor, "B W"], *, cuts: bool = True) -> _Segments:
        begins, codes = self._levels(nodes.device)[level]
        first, behind = begins.unfold(0, 2, 1).index_select(0, nodes.flatten() + 1).view(*nodes.shape, 2).unbind(2)
        counts = behind - first
        owners = torch.arange(nodes.numel(), device=nodes.device).view_as(nodes)
        narrowest, widest = (int(count) for count in counts.aminmax())
        n_places, room = max(widest, 1), widest * nodes.shape[1]
        if cuts and room > SMALL_ROOM and room > 2 * (most := int(counts.sum(1).max())):
            # Few nodes have most children: room for the widest everywhere would be mostly empty.
            n_places = -(-most // nodes.shape[1])
            first, counts, owners = _cut(first, counts, n_places)
        read = codes.unfold(0, n_places, 1).index_select(0, first.flatten()).view(*first.shape, n_places)
        return _Segments(read, first, counts, owners, narrowest == widest > 0)

    def _levels(self, device: torch.device) -> tuple[tuple[Int[Tensor, " nodes+1"], Int[Tensor, " children"]], ...]:
        if device not in self._arrays:
            on_cpu = self._arrays[torch.device("cpu")]
            self._arrays[device] = tuple((begins.to(device), codes.to(device)) for begins, codes in on_cpu)
        return self._arrays[device]


def _cut(
    first: Int[Tensor, "B W"], counts: Int[Tensor, "B W"], size: int
) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B S"], Int64[Tensor, "B S"]]:
    """Cut each node's children into segments of ``size``; return first child, count and owner of each.

    S is what the prompt with most segments has; the others end with empty ones.
    """
    n_rows = len(first)
    pieces = (counts + (size - 1)) // size
    ends = pieces.cumsum(1)
    n_segments = int(ends[:, -1].max())
    begins = ends - pieces
    pieces[:, -1] += n_segments - ends[:, -1]
    owners = torch.repeat_interleave(pieces.flatten(), output_size=n_rows * n_segments).view(n_rows, -1).long()
    skipped = (torch.arange(n_segments, device=first.device) - begins.take(owners)) * size
    kept = (counts.take(owners) - skipped).clamp(0, size)
    return (first.take(owners) + skipped).masked_fill(kept == 0, 0), kept, owners


def largest(values: Float[Tensor, "B N"], k: int) -> tuple[Float[Tensor, "B k"], Int64[Tensor, "B k"]]:
    """Return the k largest values of each row and where they are, as ``topk`` does, faster on long rows.

    Of values that lie N / TOP_K_STRIDE apart only the largest is looked at first: the k largest of all are
    among the k groups with the largest such values. Of equal values another may be chosen than by ``topk``;
    fewer than k come back where a row is shorter.
    """
    n = values.shape[1] // TOP_K_STRIDE
    if n < 2 * k:
        return values.topk(min(k, values.shape[1]), dim=1)
    groups = (
        values[:, : n * TOP_K_STRIDE].unflatten(1, (TOP_K_STRIDE, n)).amax(1).topk(k, dim=1, sorted=False).indices
    )
    members = torch.arange(0, n * TOP_K_STRIDE, n, device=values.device).unsqueeze(1)
    rest = torch.arange(n * TOP_K_STRIDE, values.shape[1], device=values.device).expand(len(values), -1)
    at = torch.cat([(groups.unsqueeze(1) + members).flatten(1), rest], dim=1)
    best, place = values.gather(1, at).topk(k, dim=1)
    return best, at.gather(1, place)


def largest_of_each(
    values: Float[Tensor, "B W N"], k: int, *, per_group: int
) -> tuple[Float[Tensor, "B k"], Int64[Tensor, "B k"]]:
    """Return the k largest values of each row, at most ``per_group`` of a group, and where they are of W N.

    Each group's own largest first, then the largest of those: GR4AD's top-k pre-cut.
    """
    own, place = values.topk(min(per_group, values.shape[2]), dim=2)
    best, at = largest(own.flatten(1), k)
    first = torch.arange(values.shape[1], device=values.device).mul_(values.shape[2]).unsqueeze(1)
    return best, (place + first).flatten(1).gather(1, at)


def _check_codes(codes: Int[np.ndarray, "n L"], sizes: tuple[int, ...]) -> None:
    if codes.size == 0:
        raise DataError("the catalogue is empty: a trie needs at least one item")
    for level, size in enumerate(sizes):
        if codes[:, level].min() < 0 or codes[:, level].max() >= size:
            row = int(np.argmax((codes[:, level] < 0) | (codes[:, level] >= size)))
            raise DataError(f"row {row} has code {codes[row, level]} at level {level}, outside 0..{size - 1}")


def _distinct_sorted(keys: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " s"]:
    """Sort only what is not sorted, and keep one of each."""
    if (keys[1:] < keys[:-1]).any():
        keys = np.sort(keys)
    return keys[is_run_start(keys)]
