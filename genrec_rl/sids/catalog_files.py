"""The files of a catalogue: a manifest with the sha256 of every other one, written last, checked when read.

Axes: n items, D dimensions, K codes of a level.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32
from safetensors.numpy import load_file, save_file

from genrec_rl.errors import DataError

FORMAT = 1
MANIFEST = "catalog.json"
FILES = ("catalog.parquet", "vectors.npy", "centroids.safetensors")
REMEDY = "build it again with `python recipes/build_sids.py`"


class CatalogFiles(NamedTuple):
    """What lies in a catalogue's folder. ``books`` holds ``level_0``, ``price_0`` and so on."""

    facts: Mapping[str, Any]
    table: pl.DataFrame
    vectors: Float32[np.ndarray, "n D"]
    books: Mapping[str, Float32[np.ndarray, "K ..."]]

    def books_named(self, kind: str) -> list[Float32[np.ndarray, "K ..."]]:
        """Return the arrays of a kind, level after level."""
        return [self.books[f"{kind}_{level}"] for level in range(sum(name.startswith(kind) for name in self.books))]


def write_files(
    folder: Path,
    *,
    table: pl.DataFrame,
    vectors: Float32[np.ndarray, "n D"],
    books: Mapping[str, Float32[np.ndarray, "K ..."]],
    facts: Mapping[str, Any],
) -> None:
    """Write a catalogue; a folder with a manifest is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    table.write_parquet(folder / FILES[0])
    np.save(folder / FILES[1], np.asarray(vectors, np.float32), allow_pickle=False)
    save_file(dict(books), folder / FILES[2])
    manifest = {
        "format": FORMAT,
        **facts,
        "sha256": {name: _sha256(folder / name) for name in FILES},
        "versions": {name: version(name) for name in ("genrec-rl", "faiss-cpu", "numpy")},
    }
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(manifest, indent=2) + "\n")
    part.replace(folder / MANIFEST)


def read_files(folder: Path) -> CatalogFiles:
    """Read what ``write_files`` wrote; vectors stay on disk, memory-mapped.

    Raises:
        DataError: naming the file that is missing, truncated or changed.
    """
    facts = _read_manifest(folder)
    for name in FILES:
        _check_file(folder / name, facts["sha256"].get(name))
    return CatalogFiles(
        facts,
        pl.read_parquet(folder / FILES[0]),
        np.load(folder / FILES[1], mmap_mode="r", allow_pickle=False),
        load_file(folder / FILES[2]),
    )


def _read_manifest(folder: Path) -> Mapping[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{path} is missing: no finished catalogue lies in {folder}; {REMEDY}")
    try:
        manifest = json.loads(path.read_text())
    except ValueError:
        raise DataError(f"{path} is not valid JSON, it was truncated or changed; {REMEDY}") from None
    expected = {"format", "policy", "codebook_sizes", "items_fingerprint", "fingerprint", "sha256"}
    if not isinstance(manifest, dict) or not expected <= manifest.keys() or manifest["format"] != FORMAT:
        raise DataError(f"{path} is not a catalogue of format {FORMAT}; {REMEDY}")
    return manifest


def _check_file(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing; {REMEDY}")
    found = _sha256(path)
    if found != expected:
        raise DataError(
            f"{path} was truncated or changed: sha256 {found[:16]}, {MANIFEST} says {str(expected)[:16]}; {REMEDY}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
