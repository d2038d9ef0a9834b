"""Read and check the two tables of the data contract: events (who did what, when) and items (what may be shown).

Every refusal is a DataError that names the table, the row (0-based), the value and the remedy. Tables are
scanned lazily: a check is one aggregate over a column, so an event log need not fit into memory.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec_rl.config import nearest
from genrec_rl.errors import DataError
from genrec_rl.types import Action

ACTIONS: Mapping[str, Action] = {action.name.lower(): action for action in Action}
EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "action", "request_id", "position", "value")
LAST_SECOND = 99_999_999_999
"""Year 5138. A larger integer timestamp is taken for milliseconds and refused."""

_ROW = "__row__"


@dataclass(frozen=True, slots=True, eq=False)
class SourceTables:
    """What a source hands over: the two tables, and the words that say where they come from.

    ``note`` is a plain sentence about what the source's events stand for, ``value_note`` one about what their
    ``value`` does, if they have the column; ``truth`` holds arrays that only a simulator knows and is empty for real
    data. ``exposed_is_taken``: an exposed item was not only shown, but taken and not liked, as a low rating says.
    """

    name: str
    events: pl.LazyFrame
    items: pl.DataFrame
    page_rule: str
    note: str
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)
    value_note: str = "Value: the column `value` of the user's own events."
    exposed_is_taken: bool = False


def shuffle_ties(tables: SourceTables, *, seed: int) -> SourceTables:
    """Return the tables with the events of one user and second in random order instead of the source's.

    Where days are the finest time, the order inside a day may be the file's own; what a recommender loses by this
    is what it owed to that order. A ``position`` that was logged is replaced.
    """
    drawn = pl.int_range(pl.len()).shuffle(seed=seed).alias("position")
    note = f"{tables.note} Here events of one user and second stand in random order, seed {seed}."
    return replace(tables, events=tables.events.with_columns(drawn), note=note)


@contextmanager
def readable(where: str | Path) -> Iterator[None]:
    """Turn what a broken or missing file raises into a DataError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{where}: no such file; the data contract asks for it") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{where}: truncated, corrupt or no Parquet file ({error}); write or copy it again") from None


def read_events(path: str | Path) -> pl.LazyFrame:
    """Scan an ``events.parquet`` and check it.

    Raises:
        DataError: when the file is missing, truncated or corrupt, or breaks the contract.
    """
    with readable(path):
        return check_events(scan_table(path))


def read_items(path: str | Path) -> pl.DataFrame:
    """Read an ``items.parquet`` and check it.

    Raises:
        DataError: when the file is missing, truncated or corrupt, or breaks the contract.
    """
    with readable(path):
        return check_items(pl.read_parquet(path))


def scan_table(path: str | Path) -> pl.LazyFrame:
    """Open a Parquet table without reading its rows.

    Raises:
        DataError: when the file is missing, truncated or no Parquet file.
    """
    with readable(path):
        table = pl.scan_parquet(path)
        table.collect_schema()
        return table


def check_events(events: pl.LazyFrame) -> pl.LazyFrame:
    """Return the events with one type per column: ids String or Int64, timestamp Int64 seconds UTC, value Float64.

    Raises:
        DataError: for a missing column, a wrong type, a null, an unknown action, a naive timestamp,
            milliseconds, a value below 0 or infinite, a request of two users, a repeated row or an empty table.
    """
    schema = events.collect_schema()
    _require_columns("events", schema, ("user_id", "item_id", "timestamp", "action"))
    columns = [_id_column("events", schema, name) for name in ("user_id", "item_id")]
    columns += [_timestamp_column(schema["timestamp"]), _text_column("events", schema, "action")]
    if "request_id" in schema:
        columns.append(_id_column("events", schema, "request_id").cast(pl.String))
    if "position" in schema:
        dtype = schema["position"]
        _require_type("events", "position", dtype, is_right=dtype.is_integer(), expected="an integer")
        columns.append(pl.col("position").cast(pl.Int64))
    if "value" in schema:
        dtype = schema["value"]
        _require_type("events", "value", dtype, is_right=dtype.is_numeric(), expected="a number")
        columns.append(pl.col("value").cast(pl.Float64))
    events = events.with_columns(columns)
    _refuse_empty("events", events)
    _refuse_nulls("events", events, [name for name in EVENT_COLUMNS if name in schema])
    _refuse_rows(
        events,
        ~pl.col("action").is_in(list(ACTIONS)),
        "action",
        lambda value: f"is none of {', '.join(ACTIONS)}{nearest(value, ACTIONS)}; rename it",
    )
    _refuse_rows(
        events,
        pl.col("timestamp") > LAST_SECOND,
        "timestamp",
        lambda _: f"is beyond {LAST_SECOND}, so not in seconds; divide milliseconds by 1000",
    )
    if "value" in schema:
        is_worth = pl.col("value").is_finite() & (pl.col("value") >= 0)
        _refuse_rows(events, ~is_worth, "value", lambda _: "is no finite number of at least 0; mend it, or write 0")
    _refuse_repeats(events, has_requests="request_id" in schema)
    return events


def check_items(items: pl.DataFrame) -> pl.DataFrame:
    """Return the items with String or Int64 ids.

    Raises:
        DataError: for a missing column, a wrong type, a null id or title, a repeated id, ragged or
            non-finite embeddings or an empty table.
    """
    _require_columns("items", items.schema, ("item_id", "title"))
    items = items.with_columns(
        _id_column("items", items.schema, "item_id"), _text_column("items", items.schema, "title")
    )
    _refuse_empty("items", items.lazy())
    _refuse_nulls("items", items.lazy(), ["item_id", "title"])
    repeated = items.with_row_index(_ROW).filter(pl.col("item_id").is_duplicated())
    if len(repeated):
        rows = repeated.filter(pl.col("item_id") == repeated["item_id"][0])[_ROW].head(2).to_list()
        raise DataError(
            f"items rows {rows[0]} and {rows[1]}: item_id {repeated['item_id'][0]!r} occurs twice; keep one row"
        )
    if "embedding" in items.columns:
        _check_embeddings(items["embedding"])
    return items


def check_tables(events: pl.LazyFrame, items: pl.DataFrame) -> None:
    """Check that every event is on an item of the catalogue.

    Raises:
        DataError: for the first event whose item ``items`` lacks, or ids of two different types.
    """
    event_type, item_type = events.collect_schema()["item_id"], items.schema["item_id"]
    if event_type != item_type:
        raise DataError(
            f"events: item_id is {event_type} but items: item_id is {item_type}; cast one to the other's type"
        )
    strays = (
        events.select("item_id")
        .with_row_index(_ROW)
        .join(items.lazy().select("item_id"), on="item_id", how="anti")
        .sort(_ROW)
        .head(1)
        .collect()
    )
    if len(strays):
        raise DataError(
            f"events row {strays[_ROW][0]}: item_id {strays['item_id'][0]!r} is not in items; "
            "add its row to items.parquet or remove the event"
        )


def _require_columns(table: str, schema: Mapping[str, pl.DataType], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in schema:
            raise DataError(f"{table}: column '{name}' is missing{nearest(name, schema)}; add or rename it")


def _require_type(table: str, column: str, dtype: pl.DataType, *, is_right: bool, expected: str) -> None:
    if not is_right:
        raise DataError(f"{table}: {column} is {dtype}, expected {expected}; cast the column")


def _id_column(table: str, schema: Mapping[str, pl.DataType], name: str) -> pl.Expr:
    dtype = schema[name]
    if dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
        return pl.col(name).cast(pl.Int64)
    return _text_column(table, schema, name, expected="string or int64")


def _text_column(table: str, schema: Mapping[str, pl.DataType], name: str, expected: str = "string") -> pl.Expr:
    is_text = schema[name] == pl.String or isinstance(schema[name], pl.Categorical | pl.Enum)
    _require_type(table, name, schema[name], is_right=is_text, expected=expected)
    return pl.col(name).cast(pl.String)


def _timestamp_column(dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is None:
            raise DataError(
                f"events: timestamp is {dtype}, without a time zone; attach the zone it was logged in "
                "(polars: dt.replace_time_zone) or give int64 seconds UTC"
            )
        return pl.col("timestamp").dt.epoch("s")
    expected = "int64 seconds UTC or a timestamp with a time zone"
    _require_type("events", "timestamp", dtype, is_right=dtype.is_integer(), expected=expected)
    return pl.col("timestamp").cast(pl.Int64)


def _refuse_empty(table: str, frame: pl.LazyFrame) -> None:
    if frame.select(pl.len()).collect().item() == 0:
        raise DataError(f"{table}: 0 rows, at least 1 is needed; check what exported the table")


def _refuse_nulls(table: str, frame: pl.LazyFrame, names: list[str]) -> None:
    first = frame.select(pl.col(name).is_null().arg_true().first() for name in names).collect()
    for name, row in first.row(0, named=True).items():
        if row is not None:
            raise DataError(f"{table} row {row}: {name} is null; fill it or remove the row")


def _refuse_rows(events: pl.LazyFrame, is_bad: pl.Expr, column: str, reason: Callable[[Any], str]) -> None:
    bad = events.with_row_index(_ROW).filter(is_bad).select(_ROW, column).head(1).collect()
    if len(bad):
        value = bad[column][0]
        raise DataError(f"events row {bad[_ROW][0]}: {column} {value!r} {reason(value)}")


def _refuse_repeats(events: pl.LazyFrame, *, has_requests: bool) -> None:
    """Refuse repeated rows, and requests that two users share: their pages would be ambiguous."""
    key = ["request_id", "item_id", "action"] if has_requests else ["user_id", "item_id", "action", "timestamp"]
    repeated = (
        events.with_row_index(_ROW)
        .group_by(key)
        .agg(pl.col(_ROW).sort().head(2))
        .filter(pl.col(_ROW).list.len() > 1)
        .sort(pl.col(_ROW).list.last())
        .head(1)
        .collect()
    )
    if len(repeated):
        rows, values = repeated[_ROW][0].to_list(), repeated.select(key).row(0)
        raise DataError(
            f"events rows {rows[0]} and {rows[1]}: ({', '.join(key)}) = {values!r} occurs twice; keep one row"
        )
    if not has_requests:
        return
    shared = (
        events.with_row_index(_ROW)
        .group_by("request_id")
        .agg(pl.col("user_id").n_unique().alias("users"), pl.col(_ROW).min())
        .filter(pl.col("users") > 1)
        .sort(_ROW)
        .head(1)
        .collect()
    )
    if len(shared):
        raise DataError(
            f"events row {shared[_ROW][0]}: request_id {shared['request_id'][0]!r} belongs to "
            f"{shared['users'][0]} users, limit 1; make request ids unique across users"
        )


def _check_embeddings(embeddings: pl.Series) -> None:
    dtype = embeddings.dtype
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else None
    is_vector = inner is not None and inner.is_float()
    _require_type("items", "embedding", dtype, is_right=is_vector, expected="list<float32>")
    vectors = embeddings.cast(pl.List(pl.Float32))
    widths = vectors.list.len()
    broken = (
        vectors.is_null()
        | (widths != widths[0])
        | ~vectors.list.eval(pl.element().is_finite()).list.all()
        | (vectors.list.eval(pl.element().is_null()).list.any())
    )
    if broken.any():
        row = broken.fill_null(True).arg_true()[0]
        raise DataError(
            f"items row {row}: embedding is null, non-finite or not {widths[0]} wide like row 0's; recompute it"
        )
