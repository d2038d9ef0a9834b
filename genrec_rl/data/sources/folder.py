"""The user's own log: a folder with ``events.parquet`` and ``items.parquet`` that follow the data contract."""

from pathlib import Path

from genrec_rl.data.events import SourceTables, read_items, scan_table

NOTE = "Source: the user's own tables."


def read_folder(input_path: str | Path) -> SourceTables:
    """Open the two tables; events are scanned lazily, so they may be larger than memory.

    Pages are the logged requests; without a ``request_id`` column a page rule must be named.

    Raises:
        DataError: when a table is missing or broken, or the items break the contract.
    """
    folder = Path(input_path)
    return SourceTables(
        name="folder",
        events=scan_table(folder / "events.parquet"),
        items=read_items(folder / "items.parquet"),
        page_rule="request_id",
        note=NOTE,
    )
