"""Vectors for items that came after a catalogue was built, and the catalogue with them: nothing is fitted again.

Axes: n items, D dimensions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64

from genrec_rl.config import read_block
from genrec_rl.errors import DataError
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.collaborative import ResidualProjection
from genrec_rl.sids.features import item_vectors

PROJECTION = "projection.safetensors"
CLOSE = 1e-3
"""Largest difference of a coordinate between two encodings of one text."""


def vectors_like(
    sid_dir: str | Path, items: pl.DataFrame, *, settings: Mapping[str, Any]
) -> Float32[np.ndarray, "n D"]:
    """Encode items as a finished ``build_sids`` encoded its own: same encoder, templates and projection.

    Args:
        sid_dir: its folder.
        items: rows of items.parquet.
        settings: those of its record (``tracking.stage_record``).
    """
    vectors = item_vectors(
        items,
        encoder=settings["encoder"] or "wordllama",
        template=settings["text_template"],
        form_templates=read_block(settings.get("form_templates"), key="form_templates"),
        trusted_packages=settings["trusted_packages"],
    )
    if not settings["collaborative"]:
        return vectors
    return ResidualProjection.load(Path(sid_dir) / PROJECTION).apply_to(vectors)


def extend_catalog(
    catalog: Catalog,
    items: pl.DataFrame,
    vectors: Float32[np.ndarray, "n D"],
    *,
    popularity: Int64[np.ndarray, " n"] | None = None,
) -> tuple[Catalog, int]:
    """Return the catalogue with the items that follow its own, and how many of its own have another vector now.

    Known items keep vector and SID, also where their text or columns have changed since: policies know them so.

    Args:
        catalog: what is extended.
        items: the whole new table: the catalogue's items in their order, then new ones.
        vectors: of all of them.
        popularity: of all of them.

    Raises:
        DataError: when the table does not begin with the catalogue's items or has no new ones, or when no known item
            has the vector that it had, because the encoder is another one.
    """
    n, ids = catalog.n_items, items["item_id"].to_list()
    known = catalog.item_ids.tolist()
    if ids[:n] != known:
        row = next((i for i, pair in enumerate(zip(ids, known, strict=False)) if pair[0] != pair[1]), len(ids))
        raise DataError(
            f"items row {row}: the catalogue has item {known[row]} there; items.parquet must begin with the "
            f"catalogue's {n} items in their order, new ones behind them"
        )
    if len(ids) == n:
        raise DataError(f"all {n} items are in the catalogue already; there is nothing to extend")
    if vectors.shape[1] != catalog.vectors.shape[1]:
        raise DataError(
            f"vectors of {vectors.shape[1]} dimensions, the catalogue's have {catalog.vectors.shape[1]}: the encoder "
            "is another one; build the catalogue and the policy again"
        )
    is_other = (np.abs(vectors[:n] - catalog.vectors) > CLOSE).any(axis=1)
    if is_other.all():
        raise DataError(
            f"none of {n} known items has the vector that it had: texts or encoder are others; build the catalogue "
            "and the policy again"
        )
    extended = catalog.extend(np.array(ids[n:]), vectors[n:], items=items[n:], popularity=popularity)
    return extended, int(is_other.sum())
