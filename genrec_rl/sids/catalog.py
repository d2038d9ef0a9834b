"""The catalogue: which semantic id each item has, and which item a semantic id means.

Axes: n items, L levels, D dimensions of the item vectors, K codes of a level.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self, overload

import numpy as np
import polars as pl
import torch
from jaxtyping import Float32, Int, Int32, Int64
from torch import Tensor

from genrec_rl.config import nearest
from genrec_rl.data.store import items_fingerprint
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids import rq_kmeans
from genrec_rl.sids.catalog_files import MANIFEST, REMEDY, read_files, write_files
from genrec_rl.sids.collisions import POLICIES, Quantised, check_packable, is_run_start, pack
from genrec_rl.sids.hash_level import HashLevel
from genrec_rl.sids.quality import SidReport, bucket_sizes, measure
from genrec_rl.sids.trie import SidTrie
from genrec_rl.types import NO_ITEM


@dataclass(frozen=True, eq=False)
class Catalog:
    """Semantic ids of all items, in the order of items.parquet; a row is an item's position there.

    Attributes:
        codes: one SID an item.
        codebook_sizes: number of codes of each level.
        item_ids: the user's ids.
        vectors: unit-norm vectors that were quantised (memory-mapped after ``load``).
        centroids: codebook of each quantised level; one fewer than L under the policy ``extra_code`` or with a
            hash level, and none where the codes came from a file.
        items_fingerprint: of the item ids in order; ties the catalogue to its data set.
        popularity: positives in the training pages; a shared SID means the most popular of its items, of
            equals the first.
        policy: name of the collision policy, which new items follow too.
        prices: of each quantised level's codes, where the codebooks are balanced.
        hash_level: what the last code is, where it is no quantiser's. It says nothing of what an item is like, so
            similarities of prefixes leave it out (``semantic_codes``).
        extended_from: numbers of leading rows that were catalogues of their own, oldest first.

    Raises:
        DataError: for a code outside its codebook, or arrays of different lengths.
        ConfigError: for a hash level under a policy that moves or appends codes.
    """

    codes: Int32[np.ndarray, "n L"]
    codebook_sizes: tuple[int, ...]
    item_ids: np.ndarray
    vectors: Float32[np.ndarray, "n D"]
    centroids: list[Float32[np.ndarray, "K D"]]
    items_fingerprint: str
    popularity: Int64[np.ndarray, " n"]
    policy: str = "reassign"
    prices: Sequence[Float32[np.ndarray, " K"]] = ()
    hash_level: HashLevel | None = None
    extended_from: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.codebook_sizes):
            raise DataError(f"codes of shape {self.codes.shape} do not fit {len(self.codebook_sizes)} codebooks")
        for name in ("item_ids", "vectors", "popularity"):
            if len(getattr(self, name)) != len(self.codes):
                raise DataError(f"{len(getattr(self, name))} {name} for {len(self.codes)} items; {REMEDY}")
        check_packable(self.codebook_sizes)
        _check_hash(self)
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
        prices: Sequence[Float32[np.ndarray, " K"]] = (),
        hash_level: HashLevel | None = None,
        items: pl.DataFrame | None = None,
    ) -> tuple[Self, SidReport]:
        """Give every item a SID from fitted codebooks, and report how good they are.

        With a ``hash_level`` the last code comes from its columns in ``items``, and equal codes share a SID.

        Raises:
            ConfigError: for an unknown collision policy, or one that does not go with a hash level.
            DataError: when a hash level has no ``items`` to read, or not as many as there are vectors.
        """
        sizes = tuple(len(book) for book in centroids)
        popularity = np.zeros(len(vectors), np.int64) if popularity is None else popularity
        before = rq_kmeans.encode(vectors, centroids, prices)
        if hash_level is None:
            taken = np.empty((0, len(sizes)), np.int32)
            codes = _resolve(policy, vectors, before, centroids, popularity, taken)
        else:
            codes = before = hash_level.append_to(before, items)
            sizes = (*sizes, hash_level.size)
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
            prices=prices,
            hash_level=hash_level,
        )
        return catalog, catalog.report(before)

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

    @property
    def semantic_codes(self) -> Int32[np.ndarray, "n l"]:
        """The codes that say what an item is like: all, but for a hash level."""
        return self.codes if self.hash_level is None else self.codes[:, :-1]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of codes, codebook sizes, ``items_fingerprint`` and hash level: a policy is tied to it."""
        return self._fingerprint(self.items_fingerprint, self.codes)

    def _fingerprint(self, items: str, codes: Int32[np.ndarray, "m L"]) -> str:
        hashed = "" if self.hash_level is None else f" {json.dumps(asdict(self.hash_level))}"
        digest = hashlib.sha256(f"{self.codebook_sizes} {items}{hashed}".encode())
        digest.update(np.ascontiguousarray(codes, dtype="<i4").tobytes())
        return digest.hexdigest()

    def rows_known_to(self, fingerprint: str) -> int | None:
        """Return how many leading rows the catalogue of that fingerprint has, if this is it or extends it.

        What was trained on that catalogue can go on with this one: codebooks and tokens are the same, its items keep
        row and SID. None says that this is another one. Computed from the rows, not taken from what a file claims.
        """
        if fingerprint == self.fingerprint:
            return self.n_items
        for n in self.extended_from:
            if fingerprint == self._fingerprint(_fingerprint_items(self.item_ids[:n]), self.codes[:n]):
                return n
        return None

    def report(self, before: Int32[np.ndarray, "n l"] | None = None) -> SidReport:
        """Measure the SIDs; ``before`` are the codes as they were before the collision policy, if others."""
        return measure(
            self.codes if before is None else before,
            self.codes,
            codebook_sizes=self.codebook_sizes,
            policy=self.policy,
            vectors=self.vectors,
            centroids=self.centroids,
            has_hash=self.hash_level is not None,
        )

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

    def assign(
        self, new_vectors: Float32[np.ndarray, "m D"], items: pl.DataFrame | None = None
    ) -> Int32[np.ndarray, "m L"]:
        """Return SIDs for new items from the existing codebooks: the nearest that the policy leaves open.

        No item moves. Under ``reassign`` a new item takes the nearest free leaf of a near prefix; where
        none is free it shares its nearest one. With a hash level, ``items`` must have its columns.

        Raises:
            ConfigError: when the codes came from a file and there are no codebooks, or a hashed column is missing.
            DataError: under ``extra_code``, when a SID has no number left.
        """
        if not self.centroids:
            raise ConfigError(f"this catalogue's codes came from a file: new items need codebooks; {REMEDY}")
        before = rq_kmeans.encode(new_vectors, self.centroids, self.prices)
        if self.hash_level is not None:
            return self.hash_level.append_to(before, items)
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

    def extend(
        self,
        new_item_ids: np.ndarray,
        new_vectors: Float32[np.ndarray, "m D"],
        *,
        items: pl.DataFrame | None = None,
        popularity: Int64[np.ndarray, " N"] | None = None,
    ) -> Self:
        """Return a catalogue with new items behind the old ones, whose SIDs stay as they are.

        Args:
            new_item_ids: ids that the catalogue does not have.
            new_vectors: made as the catalogue's were, fine-tuned projection included.
            items: the new items' rows, where a hash level reads columns.
            popularity: of all items, old and new; None keeps the old ones' and gives new ones 0.

        Raises:
            DataError: when an item is already in the catalogue, besides what ``assign`` raises.
        """
        known = np.isin(new_item_ids, self.item_ids)
        if known.any():
            raise DataError(f"item {new_item_ids[known][0]} is already in the catalogue; leave it out")
        item_ids = np.concatenate([self.item_ids, new_item_ids])
        if popularity is None:
            popularity = np.concatenate([self.popularity, np.zeros(len(new_item_ids), np.int64)])
        return replace(
            self,
            codes=np.concatenate([self.codes, self.assign(new_vectors, items)]),
            item_ids=item_ids,
            vectors=np.concatenate([self.vectors, rq_kmeans.check_vectors(new_vectors)]),
            popularity=popularity,
            items_fingerprint=_fingerprint_items(item_ids),
            extended_from=(*self.extended_from, self.n_items),
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
        levels = {f"code_{level}": self.codes[:, level] for level in range(self.n_levels)}
        books = {f"level_{i}": book for i, book in enumerate(self.centroids)}
        facts = {
            "policy": self.policy,
            "codebook_sizes": list(self.codebook_sizes),
            "items_fingerprint": self.items_fingerprint,
            "hash_level": None if self.hash_level is None else asdict(self.hash_level),
            "semantic_levels": self.semantic_codes.shape[1],
            "extended_from": list(self.extended_from),
            "fingerprint": self.fingerprint,
        }
        write_files(
            Path(folder),
            table=pl.DataFrame({"item_id": self.item_ids, **levels, "popularity": self.popularity}),
            vectors=self.vectors,
            books=books | {f"price_{i}": price for i, price in enumerate(self.prices)},
            facts=facts,
        )

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what ``save`` wrote; vectors stay on disk, memory-mapped.

        Raises:
            DataError: naming the file that is missing, truncated or changed.
        """
        files = read_files(Path(folder))
        facts, table, sizes = files.facts, files.table, tuple(files.facts["codebook_sizes"])
        catalog = cls(
            codes=table.select(f"code_{level}" for level in range(len(sizes))).to_numpy().astype(np.int32),
            codebook_sizes=sizes,
            item_ids=table["item_id"].to_numpy(),
            vectors=files.vectors,
            centroids=files.books_named("level"),
            items_fingerprint=facts["items_fingerprint"],
            popularity=table["popularity"].to_numpy(),
            policy=facts["policy"],
            prices=files.books_named("price"),
            hash_level=HashLevel.from_dict(facts.get("hash_level")),
            extended_from=tuple(facts.get("extended_from", ())),
        )
        if catalog.fingerprint != facts["fingerprint"]:
            raise DataError(
                f"{Path(folder) / MANIFEST}: fingerprint {facts['fingerprint'][:16]} does not match the codes "
                f"({catalog.fingerprint[:16]}), the file was changed; {REMEDY}"
            )
        return catalog


def _check_hash(catalog: Catalog) -> None:
    level, sizes = catalog.hash_level, catalog.codebook_sizes
    if level is not None and catalog.policy != "bucket":
        raise ConfigError(
            f"collision '{catalog.policy}' does not go with a hash level, whose items are found again from vector "
            "and columns alone; use 'bucket': items of equal codes share a SID"
        )
    if level is not None and (len(sizes) < 2 or level.size != sizes[-1]):
        raise ConfigError(f"codebooks {sizes}, a hash of {level.size}: the hash is the last of at least two levels")


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
