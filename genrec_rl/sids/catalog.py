"""The catalogue: which semantic id each item has, and which item a semantic id means.

Axes: n items, L levels, D dimensions of the item vectors, K codes of a level.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import polars as pl
import torch
from jaxtyping import Float32, Int, Int32, Int64
from safetensors.numpy import load_file, save_file
from torch import Tensor

from genrec_rl.config import nearest
from genrec_rl.data.store import items_fingerprint
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids import rq_kmeans
from genrec_rl.sids.collisions import POLICIES, Quantised, check_packable, is_run_start, pack
from genrec_rl.sids.quality import SidReport, bucket_sizes, measure
from genrec_rl.sids.trie import SidTrie
from genrec_rl.types import NO_ITEM

FORMAT = 1
MANIFEST = "catalog.json"
FILES = ("catalog.parquet", "vectors.npy", "centroids.safetensors")
REMEDY = "build it again with `python recipes/build_sids.py`"


@dataclass(frozen=True, eq=False)
class Catalog:
    """Semantic ids of all items, in the order of items.parquet; a row is an item's position there.

    Attributes:
        codes: one SID an item.
        codebook_sizes: number of codes of each level.
        item_ids: the user's ids.
        vectors: unit-norm vectors that were quantised (memory-mapped after ``load``).
        centroids: codebook of each quantised level; one fewer than L under the policy ``extra_code``,
            and none where the codes came from a file.
        items_fingerprint: of the item ids in order; ties the catalogue to its data set.
        popularity: positives in the training pages; a shared SID means the most popular of its items, of
            equals the first.
        policy: name of the collision policy, which new items follow too.

    Raises:
        DataError: for a code outside its codebook, or arrays of different lengths.
    """

    codes: Int32[np.ndarray, "n L"]
    codebook_sizes: tuple[int, ...]
    item_ids: np.ndarray
    vectors: Float32[np.ndarray, "n D"]
    centroids: list[Float32[np.ndarray, "K D"]]
    items_fingerprint: str
    popularity: Int64[np.ndarray, " n"]
    policy: str = "reassign"

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.codebook_sizes):
            raise DataError(f"codes of shape {self.codes.shape} do not fit {len(self.codebook_sizes)} codebooks")
        for name in ("item_ids", "vectors", "popularity"):
            if len(getattr(self, name)) != len(self.codes):
                raise DataError(f"{len(getattr(self, name))} {name} for {len(self.codes)} items; {REMEDY}")
        check_packable(self.codebook_sizes)
        is_outside = (self.codes < 0) | (self.codes >= np.asarray(self.codebook_sizes))
        if is_outside.any():
            row, level = (int(i[0]) for i in np.nonzero(is_outside))
            raise DataError(
                f"catalogue row {row} (item {self.item_ids[row]}) has code {self.codes[row, level]} at level "
                f"{level}, outside 0 to {self.codebook_sizes[level] - 1}; {REMEDY}"
            )

    @classmethod
    def build(
        cls,
        vectors: Float32[np.ndarray, "n D"],
        *,
        item_ids: np.ndarray,
        centroids: list[Float32[np.ndarray, "K D"]],
        policy: str = "reassign",
        popularity: Int64[np.ndarray, " n"] | None = None,
    ) -> tuple[Self, SidReport]:
        """Give every item a SID from fitted codebooks, and report how good they are.

        Raises:
            ConfigError: for an unknown collision policy.
        """
        sizes = tuple(len(book) for book in centroids)
        popularity = np.zeros(len(vectors), np.int64) if popularity is None else popularity
        taken = np.empty((0, len(sizes)), np.int32)
        before = rq_kmeans.encode(vectors, centroids)
        codes = _resolve(policy, vectors, before, centroids, popularity, taken)
        if codes.shape[1] > len(sizes):
            fullest = int(bucket_sizes(before, sizes).max())
            sizes = (*sizes, 1 << fullest.bit_length())
        catalog = cls(
            codes=codes,
            codebook_sizes=sizes,
            item_ids=item_ids,
            vectors=rq_kmeans.check_vectors(vectors),
            centroids=centroids,
            items_fingerprint=_fingerprint_items(item_ids),
            popularity=popularity,
            policy=policy,
        )
        report = measure(before, codes, codebook_sizes=sizes, policy=policy, vectors=vectors, centroids=centroids)
        return catalog, report

    @classmethod
    def from_codes(
        cls,
        codes: Int32[np.ndarray, "n L"],
        *,
        codebook_sizes: tuple[int, ...],
        item_ids: np.ndarray,
        vectors: Float32[np.ndarray, "n D"],
        popularity: Int64[np.ndarray, " n"],
    ) -> tuple[Self, SidReport]:
        """Take SIDs that were made elsewhere as they are; such a catalogue cannot assign new items."""
        catalog = cls(
            codes=codes,
            codebook_sizes=codebook_sizes,
            item_ids=item_ids,
            vectors=rq_kmeans.check_vectors(vectors),
            centroids=[],
            items_fingerprint=_fingerprint_items(item_ids),
            popularity=popularity,
            policy="bucket",
        )
        return catalog, measure(codes, codes, codebook_sizes=codebook_sizes, policy="bucket")

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.codes)

    @property
    def n_levels(self) -> int:
        """Number of codes in a SID."""
        return len(self.codebook_sizes)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of codes, codebook sizes and ``items_fingerprint``: a policy is tied to it."""
        digest = hashlib.sha256(f"{self.codebook_sizes} {self.items_fingerprint}".encode())
        digest.update(np.ascontiguousarray(self.codes, dtype="<i4").tobytes())
        return digest.hexdigest()

    @cached_property
    def trie(self) -> SidTrie:
        """Index of the valid SID prefixes."""
        return SidTrie(self.codes, self.codebook_sizes)

    @cached_property
    def _index(self) -> tuple[Int64[Tensor, " s"], Int64[Tensor, " s"]]:
        """Sorted keys of the distinct SIDs, and the row that each means."""
        keys = pack(self.codes, self.codebook_sizes)
        order = np.lexsort((-self.popularity, keys))
        rows = order[is_run_start(keys[order])]
        return torch.from_numpy(keys[rows]), torch.from_numpy(rows.astype(np.int64))

    @overload
    def rows_of(self, sids: np.ndarray) -> np.ndarray: ...
    @overload
    def rows_of(self, sids: Tensor) -> Tensor: ...
    def rows_of(self, sids: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Return the row that each SID means, of shape ``sids.shape[:-1]``; NO_ITEM where it means none.

        Codes outside their codebook mean no item. Answers a tensor, on the same device, with a tensor.

        Raises:
            DataError: when the last axis is not L long.
        """
        if isinstance(sids, np.ndarray):
            return self.rows_of(torch.from_numpy(np.ascontiguousarray(sids))).numpy()
        if sids.shape[-1] != self.n_levels:
            raise DataError(f"SIDs of {sids.shape[-1]} codes, but the catalogue has {self.n_levels} levels")
        known, rows = (part.to(sids.device) for part in self._index)
        sizes = torch.tensor(self.codebook_sizes, device=sids.device)
        is_inside = ((sids >= 0) & (sids < sizes)).all(dim=-1)
        keys = torch.zeros(sids.shape[:-1], dtype=torch.int64, device=sids.device)
        for level, size in enumerate(self.codebook_sizes):
            keys = keys * size + sids[..., level]
        places = torch.searchsorted(known, keys).clamp_(max=len(known) - 1)
        return torch.where(is_inside & (known[places] == keys), rows[places], NO_ITEM)

    def assign(self, new_vectors: Float32[np.ndarray, "m D"]) -> Int32[np.ndarray, "m L"]:
        """Return SIDs for new items from the existing codebooks: the nearest that the policy leaves open.

        No item moves. Under ``reassign`` a new item takes the nearest free leaf of a near prefix; where
        none is free it shares its nearest one.

        Raises:
            ConfigError: when the codes came from a file and there are no codebooks.
            DataError: under ``extra_code``, when a SID has no number left.
        """
        if not self.centroids:
            raise ConfigError(f"this catalogue's codes came from a file: new items need codebooks; {REMEDY}")
        before = rq_kmeans.encode(new_vectors, self.centroids)
        popularity = np.zeros(len(before), np.int64)
        codes = _resolve(self.policy, new_vectors, before, self.centroids, popularity, self.codes)
        is_full = codes[:, -1] >= self.codebook_sizes[-1]
        if is_full.any():
            sid = codes[int(np.argmax(is_full)), :-1]
            raise DataError(
                f"SID {'-'.join(map(str, sid))} already numbers {self.codebook_sizes[-1]} items, all that its "
                f"last level holds; {REMEDY}"
            )
        return codes

    def extend(self, new_item_ids: np.ndarray, new_vectors: Float32[np.ndarray, "m D"]) -> Self:
        """Return a catalogue with new items behind the old ones, whose SIDs stay as they are.

        Raises:
            DataError: when an item is already in the catalogue, besides what ``assign`` raises.
        """
        known = np.isin(new_item_ids, self.item_ids)
        if known.any():
            raise DataError(f"item {new_item_ids[known][0]} is already in the catalogue; leave it out")
        item_ids = np.concatenate([self.item_ids, new_item_ids])
        return replace(
            self,
            codes=np.concatenate([self.codes, self.assign(new_vectors)]),
            item_ids=item_ids,
            vectors=np.concatenate([self.vectors, rq_kmeans.check_vectors(new_vectors)]),
            popularity=np.concatenate([self.popularity, np.zeros(len(new_item_ids), np.int64)]),
            items_fingerprint=_fingerprint_items(item_ids),
        )

    def check_items(self, items_fingerprint: str) -> None:
        """Refuse a data set whose items are not the ones this catalogue was built for.

        Raises:
            DataError: naming both fingerprints.
        """
        if items_fingerprint != self.items_fingerprint:
            raise DataError(
                f"the catalogue was built for items {self.items_fingerprint[:16]}, the data set has items "
                f"{items_fingerprint[:16]}; {REMEDY} on this data set"
            )

    def save(self, folder: str | Path) -> None:
        """Write the catalogue; ``catalog.json`` comes last and holds the sha256 of every other file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        levels = {f"code_{level}": self.codes[:, level] for level in range(self.n_levels)}
        table = pl.DataFrame({"item_id": self.item_ids, **levels, "popularity": self.popularity})
        table.write_parquet(folder / FILES[0])
        np.save(folder / FILES[1], np.asarray(self.vectors, np.float32), allow_pickle=False)
        save_file({f"level_{i}": book for i, book in enumerate(self.centroids)}, folder / FILES[2])
        manifest = {
            "format": FORMAT,
            "policy": self.policy,
            "codebook_sizes": list(self.codebook_sizes),
            "items_fingerprint": self.items_fingerprint,
            "fingerprint": self.fingerprint,
            "sha256": {name: _sha256(folder / name) for name in FILES},
            "versions": {name: version(name) for name in ("genrec-rl", "faiss-cpu", "numpy")},
        }
        part = folder / f"{MANIFEST}.part"
        part.write_text(json.dumps(manifest, indent=2) + "\n")
        part.replace(folder / MANIFEST)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what ``save`` wrote; vectors stay on disk, memory-mapped.

        Raises:
            DataError: naming the file that is missing, truncated or changed.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for name in FILES:
            _check_file(folder / name, manifest["sha256"].get(name))
        table = pl.read_parquet(folder / FILES[0])
        sizes = tuple(manifest["codebook_sizes"])
        books = load_file(folder / FILES[2])
        catalog = cls(
            codes=table.select(f"code_{level}" for level in range(len(sizes))).to_numpy().astype(np.int32),
            codebook_sizes=sizes,
            item_ids=table["item_id"].to_numpy(),
            vectors=np.load(folder / FILES[1], mmap_mode="r", allow_pickle=False),
            centroids=[books[f"level_{level}"] for level in range(len(books))],
            items_fingerprint=manifest["items_fingerprint"],
            popularity=table["popularity"].to_numpy(),
            policy=manifest["policy"],
        )
        if catalog.fingerprint != manifest["fingerprint"]:
            raise DataError(
                f"{folder / MANIFEST}: fingerprint {manifest['fingerprint'][:16]} does not match the codes "
                f"({catalog.fingerprint[:16]}), the file was changed; {REMEDY}"
            )
        return catalog


def _fingerprint_items(item_ids: np.ndarray) -> str:
    return items_fingerprint(pl.DataFrame({"item_id": item_ids}))


def _resolve(
    policy: str,
    vectors: Float32[np.ndarray, "n D"],
    codes: Int32[np.ndarray, "n l"],
    centroids: Sequence[Float32[np.ndarray, "K D"]],
    popularity: Int64[np.ndarray, " n"],
    taken: Int32[np.ndarray, "t L"],
) -> Int[np.ndarray, "n L"]:
    if policy not in POLICIES:
        raise ConfigError(
            f"unknown collision policy '{policy}'{nearest(policy, POLICIES)}; known: {', '.join(POLICIES)}"
        )
    items = Quantised(codes=codes, vectors=vectors, centroids=centroids, popularity=popularity, taken=taken)
    return POLICIES[policy](items)


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
