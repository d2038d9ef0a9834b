"""The last code of a UA-SID: a stable hash of business columns, in place of a quantiser (GR4AD, METHODS section 1.1).

Items of equal content share their semantic codes; seller, campaign or account tell them apart here. The code follows
from the columns alone, so an item that was never seen gets it without fitting anything.

Axes: n items.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from jaxtyping import Int32

from genrec_rl.config import nearest
from genrec_rl.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class HashLevel:
    """blake2b of salt and columns, modulo ``size``.

    Values are hashed as text, so 7 and "7" are the same; a null is a value of its own, which equals no text.
    A list column counts with its order.

    Attributes:
        fields: columns of items.parquet, in the order in which they are hashed.
        size: buckets.
        salt: another one gives other buckets.

    Raises:
        ConfigError: for no field, a field named twice, or fewer than two buckets.
    """

    fields: tuple[str, ...]
    size: int
    salt: str = ""

    def __post_init__(self) -> None:
        if not self.fields or len(set(self.fields)) < len(self.fields):
            raise ConfigError(f"hash_fields {list(self.fields)}: name at least one column, each once")
        if self.size < 2:
            raise ConfigError(f"a hash level of {self.size} buckets tells nothing apart; give at least 2")

    def codes(self, items: pl.DataFrame) -> Int32[np.ndarray, " n"]:
        """Return each row's bucket, the same in every process and on every machine.

        Raises:
            ConfigError: for a field that is no column, or whose text is not stable (floats, dates, structs).
        """
        columns = [_as_text(items, name).to_list() for name in self.fields]
        return np.array([self._bucket(values) for values in zip(*columns, strict=True)], np.int32)

    def append_to(self, codes: Int32[np.ndarray, "n l"], items: pl.DataFrame | None) -> Int32[np.ndarray, "n l+1"]:
        """Put the hash behind the semantic codes of the same items.

        Raises:
            ConfigError: as ``codes`` does.
            DataError: when there are no items, or not as many as codes.
        """
        if items is None or len(items) != len(codes):
            found = "none were given" if items is None else f"{len(items)} were given"
            raise DataError(
                f"the hash level reads {', '.join(self.fields)} of {len(codes)} items, {found}; pass their rows"
            )
        return np.column_stack([codes, self.codes(items)])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Self | None:
        """Undo ``dataclasses.asdict`` after JSON; None stays None."""
        return None if values is None else cls(**{**values, "fields": tuple(values["fields"])})

    def _bucket(self, values: tuple[str | list[str] | None, ...]) -> int:
        payload = json.dumps([self.salt, *values], ensure_ascii=False).encode()
        return int.from_bytes(hashlib.blake2b(payload, digest_size=8).digest()) % self.size


def _as_text(items: pl.DataFrame, name: str) -> pl.Series:
    if name not in items.columns:
        raise ConfigError(
            f"hash_fields: '{name}' is no column of items{nearest(name, items.columns)}; they have "
            f"{', '.join(items.columns)}"
        )
    column, dtype = items[name], items.schema[name]
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    is_stable = inner.is_integer() or inner in (pl.String, pl.Boolean) or isinstance(inner, pl.Categorical | pl.Enum)
    if not is_stable:
        raise ConfigError(
            f"hash_fields: column '{name}' is {dtype}; only strings, integers, booleans and lists of them have one "
            "text everywhere: bin or cast it, or leave it out"
        )
    return column.cast(pl.List(pl.String) if isinstance(dtype, pl.List) else pl.String)
