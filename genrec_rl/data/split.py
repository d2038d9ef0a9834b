"""Divide pages into training, validation and test, and refuse a division that leaks.

Protocols: ``leave_last_page_out`` (the paper's setting on public data), ``leave_one_out`` (to compare with
papers that predict one item) and ``time`` (a global cut, for logs whose users overlap in time).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64

from genrec_rl.config import nearest
from genrec_rl.data.pages import DAY, HistoryRule, PageTable, sort_events
from genrec_rl.errors import ConfigError, DataError

Split = Literal["train", "valid", "test"]
Protocol = Literal["leave_last_page_out", "leave_one_out", "time"]


@dataclass(frozen=True, slots=True, eq=False)
class PageSplit:
    """Page indices of each split, ascending; ``n_dropped`` training pages had no positive and were left out."""

    train: Int64[np.ndarray, " a"]
    valid: Int64[np.ndarray, " b"]
    test: Int64[np.ndarray, " c"]
    n_dropped: int


def split_pages(pages: PageTable, *, protocol: str, drop_empty: bool = True) -> PageSplit:
    """Divide pages by a protocol.

    Validation and test hold pages with a positive and a history only. Training holds earlier pages only:
    of each user under ``leave_last_page_out`` and ``leave_one_out``, of all users under ``time``.

    Args:
        pages: under ``leave_one_out``, pages of events that passed through ``isolate_last_items``.
        protocol: one of the three protocols.
        drop_empty: leave training pages without a click or order out (they are counted).

    Raises:
        ConfigError: for an unknown protocol.
        DataError: when the result would leak, see ``refuse_leakage``.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"split: '{protocol}' is none of {', '.join(PROTOCOLS)}{nearest(protocol, PROTOCOLS)}")
    may_train, is_valid, is_test = PROTOCOLS[protocol](pages)
    is_train = may_train & (pages.has_positive | (not drop_empty))
    split = PageSplit(
        train=np.flatnonzero(is_train),
        valid=np.flatnonzero(is_valid),
        test=np.flatnonzero(is_test),
        n_dropped=int((may_train & ~is_train).sum()),
    )
    refuse_leakage(pages, split)
    return split


def history_rule(protocol: str) -> HistoryRule:
    """Return what a page may know: leave-one-out goes by order, since papers cut inside a day."""
    return "order" if protocol == "leave_one_out" else "time"


def isolate_last_items(events: pl.LazyFrame) -> pl.LazyFrame:
    """Give each user's last and second-last clicked or ordered item a page of its own (leave-one-out).

    All events of such a (request, item) move to the request ``...#last`` or ``...#second_last``; an item counts
    at its first click or order within a request, and ties in time follow ``position``.
    """
    by_item = ["request_id", "item_id"]
    last_two = (
        sort_events(events)
        .filter(pl.col("action") != "expose")
        .unique(by_item, keep="first", maintain_order=True)
        .select(*by_item, from_end=pl.int_range(pl.len()).reverse().over("user_id"))
        .filter(pl.col("from_end") < 2)
        .with_columns(pl.col("from_end").replace_strict({0: "#last", 1: "#second_last"}).alias("suffix"))
    )
    return (
        events.join(last_two, on=by_item, how="left", maintain_order="left")
        .with_columns(pl.col("request_id") + pl.col("suffix").fill_null(""))
        .drop("from_end", "suffix")
    )


def refuse_leakage(pages: PageTable, split: PageSplit) -> None:
    """Check a division of pages.

    Raises:
        DataError: when a page is in two splits, when a training history holds an item of a validation or test
            page or a validation history one of a test page, or when a history holds the page itself or later events,
            or what is known to be disliked a later event.
    """
    parts: dict[str, np.ndarray] = {"train": split.train, "valid": split.valid, "test": split.test}
    owner, counts = np.unique(np.concatenate(list(parts.values())), return_counts=True)
    if (counts > 1).any():
        page = owner[counts > 1][0]
        names = " and ".join(name for name, part in parts.items() if page in part)
        raise DataError(f"split: page {pages.request_ids[page]} is in {names}; a page belongs to one split")
    for readers, hidden in (("train", ("valid", "test")), ("valid", ("test",))):
        is_hidden = np.zeros(len(pages), dtype=bool)
        is_hidden[np.concatenate([parts[name] for name in hidden])] = True
        before = np.concatenate([[0], np.cumsum(is_hidden[pages.history_pages])])
        leaks = before[pages.history_end] > before[pages.history_start]
        _refuse_page(pages, parts[readers][leaks[parts[readers]]], f"history holds {' or '.join(hidden)} items")
    entries = np.arange(len(pages.history_pages))
    first_own = np.full(len(pages), len(entries))
    np.minimum.at(first_own, pages.history_pages, entries)
    newest = np.append(pages.history_times, 0)[np.maximum(pages.history_end - 1, 0)]
    is_future = pages.has_history & ((pages.history_end > first_own) | (newest > pages.times))
    _refuse_page(pages, np.flatnonzero(is_future), "history holds its own or later events")
    if (disliked := pages.disliked) is not None:
        newest = np.append(disliked.times, 0)[np.maximum(disliked.end - 1, 0)]
        is_future = (disliked.end > disliked.start) & (newest > pages.times)
        _refuse_page(pages, np.flatnonzero(is_future), "dislikes hold later events")


def _refuse_page(pages: PageTable, bad: np.ndarray, reason: str) -> None:
    if len(bad):
        raise DataError(
            f"split: page {pages.request_ids[bad[0]]} (and {len(bad) - 1} more): its {reason}; "
            "a history must end before the page, use split_pages to divide"
        )


Masks = tuple[Bool[np.ndarray, " P"], Bool[np.ndarray, " P"], Bool[np.ndarray, " P"]]


def _leave_last_page_out(pages: PageTable) -> Masks:
    """Test is each user's last page with a positive, validation the one before, each only if it has a history.

    A history implies an earlier positive page, so users with one such page are not tested, and users with two
    not validated. Pages from the first held-out one on do not train.
    """
    user = np.cumsum(pages.starts_user) - 1
    positive = np.flatnonzero(pages.has_positive)
    per_user = np.bincount(user[positive], minlength=user[-1] + 1)
    from_end = np.full(len(pages), -1)
    from_end[positive] = np.cumsum(per_user)[user[positive]] - 1 - np.arange(len(positive))
    is_test, is_valid = (from_end == 0) & pages.has_history, (from_end == 1) & pages.has_history
    held_so_far = np.cumsum(is_valid | is_test)
    at_user_start = held_so_far[pages.starts_user] - (is_valid | is_test)[pages.starts_user]
    return held_so_far == at_user_start[user], is_valid, is_test


def _last_days(pages: PageTable) -> Masks:
    """Test starts in the last 24 hours of the log, validation in the 24 hours before, training earlier.

    A page whose clicks run past its period's end neither trains nor validates: its target lies in the future
    of the next period.
    """
    test_from = pages.times.max() - DAY + 1
    valid_from = test_from - DAY
    last_positive = pages.times.copy()
    np.maximum.at(last_positive, pages.history_pages, pages.history_times)
    may_be_held = pages.has_positive & pages.has_history
    is_test = may_be_held & (pages.times >= test_from)
    is_valid = may_be_held & (pages.times >= valid_from) & (last_positive < test_from)
    return last_positive < valid_from, is_valid, is_test


PROTOCOLS: Mapping[str, Callable[[PageTable], Masks]] = {
    "leave_last_page_out": _leave_last_page_out,
    "leave_one_out": _leave_last_page_out,
    "time": _last_days,
}
