"""How good semantic ids are: use of the codebooks, collisions, reconstruction.

Axes: n items, L levels, D dimensions, K codes of a level, b distinct semantic ids.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64
from rich.table import Table

from genrec_rl.sids.collisions import pack
from genrec_rl.sids.rq_kmeans import decode, relative_error


@dataclass(frozen=True, slots=True)
class LevelReport:
    """One level: how evenly its codes are used, and how many items its prefix cannot tell apart.

    ``kind`` is ``code``, of a quantiser, a file or a numbering, or ``hash``, which is not semantic.
    ``utilisation`` is the share of codes that hold an item, ``entropy`` is in bits (at most log2 of the size)
    and ``perplexity`` is 2 to its power. ``shared_before`` and ``shared_after`` are the shares of items whose
    prefix up to this level belongs to another item too, before and after the collision policy.
    """

    size: int
    utilisation: float
    entropy: float
    perplexity: float
    shared_before: float
    shared_after: float
    kind: str = "code"


@dataclass(frozen=True, slots=True)
class SidReport:
    """Quality of a catalogue's semantic ids (METHODS sections 1.1 and 5).

    cpr: compression, Cpr = items / distinct SIDs; 1 is best.
    col: collisions, Col = share of items in a SID that another item has too; before and after the policy.
    util: Util = distinct SIDs / product of the codebook sizes; the table prints it per mille, as GR4AD does.
    error: sum ||x - decoded||^2 / sum ||x||^2, before and after the policy; null for codes without codebooks.
    gini: of the number of items per distinct SID; 0 when all are unique.
    overfull_prefixes: prefixes that hold more items than the last codebook has codes, where uniqueness is
        impossible, with the number of their items.
    """

    n_items: int
    policy: str
    levels: tuple[LevelReport, ...]
    distinct_sids: int
    n_moved: int
    largest_bucket: int
    cpr: float
    col_before: float
    col_after: float
    util: float
    gini: float
    error_before: float | None
    error_after: float | None
    overfull_prefixes: tuple[tuple[str, int], ...]

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def numbers(self) -> dict[str, float]:
        """Return what a tracker logs: the scalars, and each level's use and collisions."""
        scalars = {k: float(v) for k, v in asdict(self).items() if isinstance(v, int | float)}
        for number, level in enumerate(self.levels, start=1):
            measured = {name: float(value) for name, value in asdict(level).items() if name != "kind"}
            scalars |= {f"level_{number}/{name}": value for name, value in measured.items()}
        return scalars

    def table(self) -> Table:
        """Lay the report out for the terminal."""
        n_levels, total = len(self.levels), f"{self.n_items:,} items, {self.distinct_sids:,} distinct SIDs"
        table = Table(title=f"Semantic ids: {total} ({self.policy})", caption=self._caption())
        for name in ("level", "codes", "used", "entropy", "perplexity", "shared", "shared after"):
            table.add_column(name, justify="right")
        for number, level in enumerate(self.levels, start=1):
            table.add_row(
                f"{number}/{n_levels}" + " hash" * (level.kind == "hash"),
                f"{level.size:,}",
                f"{level.utilisation:.1%}",
                f"{level.entropy:.2f} bit",
                f"{level.perplexity:.1f}",
                f"{level.shared_before:.1%}",
                f"{level.shared_after:.1%}",
            )
        return table

    def _caption(self) -> str:
        lines = [
            f"Cpr {self.cpr:.3f}, Col {self.col_before:.2%} -> {self.col_after:.2%}, Util {1000 * self.util:.2g} per "
            f"mille, {self.n_moved:,} items moved, largest bucket {self.largest_bucket}, Gini {self.gini:.3f}"
        ]
        if self.error_before is not None and self.error_after is not None:
            lines.append(f"relative reconstruction error {self.error_before:.4f} -> {self.error_after:.4f}")
        if self.overfull_prefixes and self.levels[-1].kind == "code":
            worst, count = self.overfull_prefixes[0]
            lines.append(
                f"{len(self.overfull_prefixes)} prefixes hold more items than the last level has codes "
                f"(worst: {worst} with {count}); larger codebook_sizes make them unique"
            )
        return "\n".join(lines)


def measure(
    before: Int32[np.ndarray, "n l"],
    after: Int32[np.ndarray, "n L"],
    *,
    codebook_sizes: Sequence[int],
    policy: str,
    vectors: Float32[np.ndarray, "n D"] | None = None,
    centroids: Sequence[Float32[np.ndarray, "K D"]] = (),
    has_hash: bool = False,
) -> SidReport:
    """Compare the codes before and after a collision policy; the latter may have one level more.

    ``has_hash`` says that the last level is a hash, which carries no vector: the error is that of the levels before.
    """
    sizes, n_quantised = tuple(codebook_sizes), before.shape[1]
    buckets = bucket_sizes(after, sizes)
    errors = [
        relative_error(vectors, decode(codes, centroids)) if vectors is not None and len(centroids) else None
        for codes in (before, after)
    ]
    return SidReport(
        n_items=len(after),
        policy=policy,
        levels=tuple(
            _measure_level(
                before[:, : level + 1], after[:, : level + 1], sizes, is_hash=has_hash and level + 1 == len(sizes)
            )
            for level in range(len(sizes))
        ),
        distinct_sids=len(buckets),
        n_moved=int((before != after[:, :n_quantised]).any(axis=1).sum()),
        largest_bucket=int(buckets.max()),
        cpr=len(after) / len(buckets),
        col_before=shared_share(before, sizes[:n_quantised]),
        col_after=shared_share(after, sizes),
        util=len(buckets) / float(np.prod([float(size) for size in sizes])),
        gini=gini(buckets),
        error_before=errors[0],
        error_after=errors[1],
        overfull_prefixes=_overfull(after, sizes),
    )


def bucket_sizes(codes: Int32[np.ndarray, "n L"], sizes: Sequence[int]) -> Int64[np.ndarray, " b"]:
    """Count the items of each distinct row of codes."""
    return np.unique(pack(codes, sizes), return_counts=True)[1]


def shared_share(codes: Int32[np.ndarray, "n L"], sizes: Sequence[int]) -> float:
    """Share of items whose codes another item has too (Col)."""
    buckets = bucket_sizes(codes, sizes)
    return float(buckets[buckets > 1].sum() / len(codes))


def entropy_bits(counts: Int64[np.ndarray, " K"]) -> float:
    """Shannon entropy, in bits, of the distribution that the counts stand for."""
    shares = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def gini(counts: Int64[np.ndarray, " b"]) -> float:
    """Gini coefficient: 0 when all counts are equal, towards 1 when one holds everything."""
    ordered = np.sort(counts)
    ranks = np.arange(1, len(ordered) + 1)
    return float(((2 * ranks - len(ordered) - 1) * ordered).sum() / (len(ordered) * ordered.sum()))


def _measure_level(
    before: Int32[np.ndarray, "n l"], after: Int32[np.ndarray, "n l"], sizes: tuple[int, ...], *, is_hash: bool
) -> LevelReport:
    counts = np.bincount(after[:, -1], minlength=sizes[after.shape[1] - 1])
    entropy = entropy_bits(counts)
    return LevelReport(
        size=len(counts),
        utilisation=float((counts > 0).mean()),
        entropy=entropy,
        perplexity=2.0**entropy,
        shared_before=shared_share(before, sizes[: before.shape[1]]),
        shared_after=shared_share(after, sizes[: after.shape[1]]),
        kind="hash" if is_hash else "code",
    )


def _overfull(codes: Int32[np.ndarray, "n L"], sizes: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    _, first, counts = np.unique(pack(codes[:, :-1], sizes[:-1]), return_index=True, return_counts=True)
    full = np.flatnonzero(counts > sizes[-1])
    full = full[np.argsort(-counts[full], kind="stable")]
    return tuple(("-".join(map(str, codes[first[p], :-1])), int(counts[p])) for p in full)
