"""Pictures of how the codebooks are used.

Axes: n items, L levels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from matplotlib.figure import Figure

from genrec_rl.sids.quality import entropy_bits


def plot_codebooks(codes: Int32[np.ndarray, "n L"], codebook_sizes: Sequence[int], path: str | Path) -> None:
    """Draw, for every level, items per code as a heat map and, sorted, against an even spread (PNG)."""
    figure = Figure(figsize=(4.2 * len(codebook_sizes), 6.6), layout="constrained")
    axes = figure.subplots(2, len(codebook_sizes), squeeze=False, height_ratios=(3, 2))
    for level, size in enumerate(codebook_sizes):
        counts = np.bincount(codes[:, level], minlength=size)
        width = int(np.ceil(np.sqrt(size)))
        grid = np.full(width * int(np.ceil(size / width)), np.nan)
        grid[:size] = counts
        heat, spread = axes[0, level], axes[1, level]
        image = heat.imshow(grid.reshape(-1, width), cmap="viridis", vmin=0)
        figure.colorbar(image, ax=heat, shrink=0.8, label="items")
        heat.set_title(
            f"level {level + 1}: {(counts > 0).sum():,} of {size:,} codes used\n"
            f"perplexity {2 ** entropy_bits(counts):.0f}"
        )
        heat.set_xlabel(f"code = {width} x row + column")
        spread.stairs(np.sort(counts)[::-1], fill=True, color="tab:blue")
        spread.axhline(len(codes) / size, color="tab:red", linestyle="--", label="even spread")
        spread.set_xlabel("codes, fullest first")
        spread.set_ylabel("items")
        spread.legend(frameon=False)
    figure.suptitle(f"Codebook usage: {len(codes):,} items")
    figure.savefig(path, dpi=120)
