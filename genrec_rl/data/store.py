"""The prepared data set on disk: written by ``recipes/prepare.py``, read by every later stage.

A folder holds ``events.parquet`` (every event with the ``request_id`` of its page), ``items.parquet`` and
``dataset.json`` (the card). Pages and splits are derived from the events when the folder is loaded.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float, Int64

from genrec_rl.config import nearest
from genrec_rl.data.events import SourceTables, check_events, check_items, check_tables, readable
from genrec_rl.data.pages import PageTable, assign_pages, build_pages, parse_page_rule
from genrec_rl.data.split import PROTOCOLS, PageSplit, Split, history_rule, isolate_last_items, split_pages
from genrec_rl.data.values import ValueFacts, describe_values, is_training_positive, value_of_items
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.types import Example

CARD_FILE, EVENTS_FILE, ITEMS_FILE, TRUTH_FILE = (
    "dataset.json",
    "events.parquet",
    "items.parquet",
    "truth.npz",
)
APART = "Each user's last and second-last item stand on pages of their own (leave-one-out)."
COMMAND = "python recipes/prepare.py"
_WHERE_KNOWN = ("value", "exposed_is_taken")
"""What a card has for some data sets alone."""


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """What is in a data set, in numbers and in words.

    ``share_without_positive`` and ``share_several_positives`` are shares of all pages; ``dropped_pages`` counts
    the pages left out of training because nothing on them was clicked or ordered. ``value`` is None, and not
    in the file, where events are worth nothing; nor is ``exposed_is_taken`` where it is false.
    """

    source: str
    page: str
    page_rule: str
    split: str
    users: int
    items: int
    events: int
    pages: int
    items_per_page: float
    positives_per_page: float
    share_several_positives: float
    share_without_positive: float
    train_pages: int
    valid_pages: int
    test_pages: int
    dropped_pages: int
    sha256: dict[str, str]
    value: ValueFacts | None = None
    exposed_is_taken: bool = False


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded data set: the catalogue, all pages, and which page serves for what."""

    items: pl.DataFrame
    pages: PageTable
    split: PageSplit
    card: DatasetCard

    def examples(self, split: Split, *, max_history: int | None = 50) -> Sequence[Example]:
        """Return the examples of a split, built lazily, with the newest ``max_history`` history items."""
        return self.pages.select(getattr(self.split, split), max_history=max_history)

    @property
    def n_items(self) -> int:
        """Number of catalogue rows."""
        return len(self.items)

    @cached_property
    def titles(self) -> list[str]:
        """Title of each catalogue row."""
        return self.items["title"].to_list()

    @cached_property
    def item_ids(self) -> list[str] | list[int]:
        """The user's own id of each catalogue row."""
        return self.items["item_id"].to_list()

    @cached_property
    def items_fingerprint(self) -> str:
        """Digest of the item ids in order: what a catalogue of semantic ids must agree with."""
        return items_fingerprint(self.items)

    @cached_property
    def popularity(self) -> Int64[np.ndarray, " n_items"]:
        """Clicks and orders of each row on TRAINING pages."""
        positives = self.pages.items[is_training_positive(self.pages, self.split.train)]
        return np.bincount(positives, minlength=self.n_items).astype(np.int64)

    @cached_property
    def item_values(self) -> Float[np.ndarray, " n_items"] | None:
        """Value of each row's clicks and orders on TRAINING pages; None where events have no value."""
        if self.pages.values is None:
            return None
        return value_of_items(self.pages, self.split.train, n_items=self.n_items)


def items_fingerprint(items: pl.DataFrame) -> str:
    """Return the sha256 hex digest of the item ids in catalogue order."""
    return hashlib.sha256(json.dumps(items["item_id"].to_list()).encode()).hexdigest()


def write_dataset(
    tables: SourceTables,
    output_dir: str | Path,
    *,
    page_rule: str | None = None,
    split: str = "leave_last_page_out",
) -> DatasetCard:
    """Check a source's tables, give each event its page, and write the folder.

    Everything is checked and written beside ``output_dir`` first, so that a refusal leaves it untouched.

    Args:
        tables: the source's events and items.
        output_dir: folder to make; files of an earlier run with the same names are replaced.
        page_rule: None takes the source's own rule.
        split: protocol of ``split_pages``.

    Raises:
        DataError: when a table breaks the contract, or a split comes out empty.
        ConfigError: for an unknown page rule or split.
    """
    rule = parse_page_rule(page_rule or tables.page_rule)
    if split not in PROTOCOLS:
        raise ConfigError(f"split: '{split}' is none of {', '.join(PROTOCOLS)}{nearest(split, PROTOCOLS)}")
    output_dir = Path(output_dir)
    with readable(f"source '{tables.name}'"):
        items = check_items(tables.items)
        events = check_events(tables.events)
        check_tables(events, items)
    events = assign_pages(events, rule)
    if split == "leave_one_out":
        events = isolate_last_items(events)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as folder:
        draft = Path(folder)
        with readable(f"source '{tables.name}'"):
            events.sink_parquet(draft / EVENTS_FILE)
        items.write_parquet(draft / ITEMS_FILE)
        if tables.truth:
            np.savez(draft / TRUTH_FILE, allow_pickle=False, **tables.truth)
        card = _describe(tables, draft, items, page_rule=page_rule or tables.page_rule, split=split)
        facts = {name: fact for name, fact in asdict(card).items() if name not in _WHERE_KNOWN or fact}
        (draft / CARD_FILE).write_text(json.dumps(facts, indent=2) + "\n")
        _replace_files(draft, output_dir)
    return card


def load_dataset(data_dir: str | Path) -> Dataset:
    """Load what ``write_dataset`` wrote.

    Raises:
        ConfigError: when there is no data set in the folder; the message names the command that makes one.
        DataError: when a table is broken or is not the one that the card describes.
    """
    data_dir = Path(data_dir)
    if not (data_dir / CARD_FILE).is_file():
        raise ConfigError(f"no data set in {data_dir}; make it with `{COMMAND} --output_dir {data_dir}`")
    card = _read_card(data_dir / CARD_FILE)
    for name, digest in card.sha256.items():
        if not (data_dir / name).is_file() or _sha256(data_dir / name) != digest:
            raise DataError(
                f"{data_dir / name} is not the table that {CARD_FILE} describes; prepare the data again with "
                f"`{COMMAND} --output_dir {data_dir}`"
            )
    items = pl.read_parquet(data_dir / ITEMS_FILE)
    events = pl.scan_parquet(data_dir / EVENTS_FILE)
    if card.value is None:  # worth nothing, or prepared before values: whatever the column holds was not checked
        events = events.drop("value", strict=False)
    pages = build_pages(events, items, history=history_rule(card.split), exposed_is_taken=card.exposed_is_taken)
    return Dataset(items=items, pages=pages, split=split_pages(pages, protocol=card.split), card=card)


def _describe(tables: SourceTables, draft: Path, items: pl.DataFrame, *, page_rule: str, split: str) -> DatasetCard:
    events = pl.scan_parquet(draft / EVENTS_FILE)
    pages = build_pages(events, items, history=history_rule(split))
    parts = split_pages(pages, protocol=split)
    sizes = {name: len(getattr(parts, name)) for name in ("train", "valid", "test")}
    empty = [name for name, size in sizes.items() if size == 0]
    if empty:
        raise DataError(
            f"split '{split}' leaves 0 pages for {', '.join(empty)} of {len(pages)} pages, at least 1 is needed; "
            "bring a longer log or choose another split or page rule"
        )
    return DatasetCard(
        source=tables.name,
        page=" ".join([parse_page_rule(page_rule).meaning, *[APART] * (split == "leave_one_out"), tables.note]),
        page_rule=page_rule,
        split=split,
        users=int(pages.starts_user.sum()),
        items=len(items),
        events=events.select(pl.len()).collect().item(),
        pages=len(pages),
        items_per_page=round(len(pages.items) / len(pages), 4),
        positives_per_page=round(float(pages.positives_per_page.mean()), 4),
        share_several_positives=round(float((pages.positives_per_page > 1).mean()), 4),
        share_without_positive=round(float((~pages.has_positive).mean()), 4),
        train_pages=sizes["train"],
        valid_pages=sizes["valid"],
        test_pages=sizes["test"],
        dropped_pages=parts.n_dropped,
        sha256={path.name: _sha256(path) for path in sorted(draft.iterdir())},
        value=describe_values(pages, parts.train, n_items=len(items), meaning=tables.value_note),
        exposed_is_taken=tables.exposed_is_taken,
    )


def _replace_files(draft: Path, output_dir: Path) -> None:
    """Move the files over; the card goes first and comes last, so a folder with a card is whole."""
    output_dir.mkdir(exist_ok=True)
    for name in (CARD_FILE, TRUTH_FILE):
        (output_dir / name).unlink(missing_ok=True)
    for name in (EVENTS_FILE, ITEMS_FILE, TRUTH_FILE, CARD_FILE):
        if (draft / name).exists():
            (draft / name).replace(output_dir / name)


def _read_card(path: Path) -> DatasetCard:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged ({error}); prepare the data again with `{COMMAND}`") from None
    value = values.pop("value", None)
    if not isinstance(values.get("exposed_is_taken", False), bool):
        raise DataError(f"{path}: exposed_is_taken is {values['exposed_is_taken']!r}; write true or false")
    differing = (values.keys() - {"exposed_is_taken"}) ^ ({f.name for f in fields(DatasetCard)} - {*_WHERE_KNOWN})
    if value is not None:
        differing |= value.keys() ^ {f.name for f in fields(ValueFacts)}
    if differing:
        raise DataError(
            f"{path}: differs in {', '.join(sorted(differing))} from this version's card; "
            f"prepare the data again with `{COMMAND} --output_dir {path.parent}`"
        )
    return DatasetCard(**values, value=None if value is None else ValueFacts(**value))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
