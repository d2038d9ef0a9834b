"""Vectors to a catalogue: which codebooks, how they are fitted, what the last level is, what collisions become.

Axes: n items, D dimensions, K codes of a level.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64

from genrec_rl.errors import ConfigError
from genrec_rl.sids import balanced, rq_kmeans
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.hash_level import HashLevel
from genrec_rl.sids.quality import SidReport


@dataclass
class QuantiserSettings:
    """How vectors become SIDs.

    Raises:
        ConfigError: for options that contradict each other.
    """

    codebook_sizes: list[int] | None = field(
        default=None, metadata={"help": "codes of each level; none: K, K, K with the smallest power of two K^2 >= 2n"}
    )
    multi_resolution: bool = field(
        default=False, metadata={"help": "where codebook_sizes is none: 4K, K, K/4 in place of K, K, K (GR4AD)"}
    )
    niter: int = field(default=25, metadata={"help": "k-means iterations of each level"})
    balanced: bool = field(default=False, metadata={"help": "limit the items of a code (sids/balanced.py)"})
    balance_slack: float = field(default=1.1, metadata={"help": "balanced: that limit over the even spread"})
    last_level: Literal["vq", "hash"] = field(
        default="vq", metadata={"help": "quantise the last level too | hash business columns into its codes (GR4AD)"}
    )
    hash_fields: list[str] = field(
        default_factory=list, metadata={"help": "hash: columns of items.parquet, such as seller campaign"}
    )
    hash_salt: str = field(default="", metadata={"help": "hash: another salt gives other buckets"})
    collision: Literal["reassign", "bucket", "extra_code"] | None = field(
        default=None,
        metadata={"help": "move to a free leaf | share the SID | append a code; none: reassign, under a hash bucket"},
    )

    def __post_init__(self) -> None:
        is_hash = self.last_level == "hash"
        if is_hash and not self.hash_fields:
            raise ConfigError("last_level hash reads hash_fields: name columns, as `--hash_fields seller campaign`")
        if self.hash_fields and not is_hash:
            raise ConfigError(f"hash_fields {self.hash_fields} have no use here; add `--last_level hash`")
        if is_hash and self.collision not in (None, "bucket"):
            raise ConfigError(
                f"collision '{self.collision}' would change SIDs that must follow from vector and columns alone; "
                "leave it out under last_level hash"
            )
        if is_hash and self.codebook_sizes and len(self.codebook_sizes) < 2:
            raise ConfigError(f"codebook_sizes {self.codebook_sizes}: the hash is the last of at least two levels")
        if self.multi_resolution and self.codebook_sizes:
            raise ConfigError("multi_resolution chooses codebook_sizes; give one of the two")

    def sizes(self, vectors: Float32[np.ndarray, "n D"]) -> tuple[int, ...]:
        """Codes of each level: for that many vectors, of which balanced books count equal ones once."""
        n_items = len(balanced.distinct(rq_kmeans.check_vectors(vectors))) if self.balanced else len(vectors)
        choose = rq_kmeans.multi_resolution_sizes if self.multi_resolution else rq_kmeans.default_codebook_sizes
        return tuple(self.codebook_sizes or choose(n_items))


def quantise(
    vectors: Float32[np.ndarray, "n D"],
    items: pl.DataFrame,
    *,
    settings: QuantiserSettings,
    popularity: Int64[np.ndarray, " n"],
    seed: int,
) -> tuple[Catalog, SidReport]:
    """Fit codebooks on vectors of the rows of items.parquet, and give each item its SID.

    Raises:
        ConfigError: for codebooks that the items are too few for, or a hashed column that is missing.
        DataError: for vectors that are not a finite matrix.
    """
    sizes = settings.sizes(vectors)
    hash_level, quantised = None, sizes
    if settings.last_level == "hash":
        hash_level, quantised = HashLevel(tuple(settings.hash_fields), sizes[-1], settings.hash_salt), sizes[:-1]
        hash_level.codes(items)  # a wrong column is refused before k-means
    centroids, prices = _fit(vectors, quantised, settings, seed)
    return Catalog.build(
        vectors,
        item_ids=np.array(items["item_id"].to_list()),
        centroids=centroids,
        policy=settings.collision or ("reassign" if hash_level is None else "bucket"),
        popularity=popularity,
        prices=prices,
        hash_level=hash_level,
        items=items,
    )


def _fit(
    vectors: Float32[np.ndarray, "n D"], sizes: tuple[int, ...], settings: QuantiserSettings, seed: int
) -> tuple[list[Float32[np.ndarray, "K D"]], list[Float32[np.ndarray, " K"]]]:
    if not settings.balanced:
        return rq_kmeans.fit(vectors, codebook_sizes=sizes, seed=seed, niter=settings.niter), []
    return balanced.fit(vectors, codebook_sizes=sizes, seed=seed, niter=settings.niter, slack=settings.balance_slack)
