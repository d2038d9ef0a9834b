"""Group events into pages, and lay all pages out as columns.

Paper: GenRec (arXiv:2604.14878), equation 3: the items of one paginated request, ordered first, then clicked,
then exposed. Where no request was logged, a named page rule stands in for it.

    P   pages        N   page items        M   history items
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int, Int8, Int32, Int64, Shaped

from genrec_rl.config import nearest
from genrec_rl.data.events import ACTIONS
from genrec_rl.errors import ConfigError
from genrec_rl.types import Action, Context, Example

DAY = 86_400
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": DAY}
UNIT_NAMES = {"s": "second", "m": "minute", "h": "hour", "d": "day"}
RULE_FORMS = ("request_id", "same_day", "gap:60s", "session:30m:10")

HistoryRule = Literal["time", "order"]
"""What a page may know: events before its first second, or (leave-one-out) events before it in order."""


@dataclass(frozen=True, slots=True)
class PageRule:
    """How events become pages: as logged, by UTC day, or by pauses longer than ``gap`` seconds.

    A sitting between two pauses is cut after every ``size`` events; None leaves it whole.
    """

    kind: Literal["request_id", "same_day", "gap"]
    gap: int | None = None
    size: int | None = None

    @property
    def meaning(self) -> str:
        """One sentence that says what a page is."""
        if self.kind == "request_id":
            return "A page is one logged request: the items that were shown together."
        if self.kind == "same_day":
            return "A page is everything one user did on one day (UTC); no request was logged."
        cut = f", cut after every {self.size} events" if self.size else ""
        return (
            f"A page is one user's sitting (events at most {_duration(self.gap or 0)} apart{cut}); "
            "no request was logged."
        )


def parse_page_rule(text: str) -> PageRule:
    """Read ``request_id``, ``same_day``, ``gap:60s`` or ``session:30m:10`` (units s, m, h, d).

    Raises:
        ConfigError: for anything else, with the accepted forms.
    """
    if text == "request_id":
        return PageRule(kind="request_id")
    if text == "same_day":
        return PageRule(kind="same_day")
    if match := re.fullmatch(r"gap:(\d+)([smhd])|session:(\d+)([smhd]):([1-9]\d*)", text):
        number, unit = match[1] or match[3], match[2] or match[4]
        return PageRule(kind="gap", gap=int(number) * UNIT_SECONDS[unit], size=int(match[5]) if match[5] else None)
    raise ConfigError(
        f"page_rule: '{text}' is none of {', '.join(RULE_FORMS)} (units s, m, h, d){nearest(text, RULE_FORMS)}"
    )


def _duration(seconds: int) -> str:
    unit = next((u for u, size in reversed(UNIT_SECONDS.items()) if seconds and seconds % size == 0), "s")
    count = seconds // UNIT_SECONDS[unit]
    return f"{count} {UNIT_NAMES[unit]}{'s' * (count != 1)}"


def assign_pages(events: pl.LazyFrame, rule: PageRule) -> pl.LazyFrame:
    """Sort events by user, time and position, and give each the ``request_id`` of its page.

    Derived ids are ``{user_id}:{k}`` with k counting the user's pages from 0. Every event gets one page.

    Raises:
        ConfigError: when the rule is ``request_id`` and the events carry none.
    """
    columns = events.collect_schema().names()
    events = sort_events(events)
    if rule.kind == "request_id":
        if "request_id" not in columns:
            raise ConfigError(
                "page_rule: 'request_id' needs a request_id column in events; "
                f"add it or choose one of {', '.join(RULE_FORMS[1:])}"
            )
        return events
    time = pl.col("timestamp")
    starts = (time // DAY).diff() != 0 if rule.kind == "same_day" else time.diff() > rule.gap
    page = starts.fill_null(True).cum_sum().over("user_id")
    if rule.size is not None:
        events = events.with_columns(page.alias("sitting"))
        page = (pl.int_range(pl.len()).over("user_id", "sitting") % rule.size == 0).cum_sum().over("user_id")
    request_id = pl.format("{}:{}", pl.col("user_id"), page - 1)
    return events.with_columns(request_id.alias("request_id")).drop("sitting", strict=False)


def sort_events(events: pl.LazyFrame) -> pl.LazyFrame:
    """Sort by user, time and, where logged, position; remaining ties keep the table's order."""
    keys = ["user_id", "timestamp"] + ["position"] * ("position" in events.collect_schema())
    return events.sort(keys, maintain_order=True)


@dataclass(frozen=True, slots=True, eq=False)
class Disliked:
    """Items that users took and did not like, end to end, oldest first; page p may know ``start[p]`` to ``end[p]``.

    ``times`` are seconds UTC; an item stands once per page.
    """

    items: Int32[np.ndarray, " D"]
    times: Int64[np.ndarray, " D"]
    start: Int64[np.ndarray, " P"]
    end: Int64[np.ndarray, " P"]

    def before(self, p: int) -> Int32[np.ndarray, " d"]:
        """Return what page p may know."""
        return self.items[self.start[p] : self.end[p]]

    def of_user(self, first: int, last: int, *, time: int) -> Int32[np.ndarray, " d"]:
        """Return what the user whose pages are ``first`` to ``last`` disliked before a time (seconds UTC)."""
        end = len(self.items) if last + 1 == len(self.start) else self.start[last + 1]
        times = self.times[self.start[first] : end]
        return self.items[self.start[first] :][: np.searchsorted(times, time)]


@dataclass(frozen=True, slots=True, eq=False)
class PageTable:
    """All pages, columnar: users contiguous, each user's pages in time order.

    ``items`` (catalogue rows) and ``actions`` hold the pages end to end in target order (eq. 3), page p from
    ``item_offsets[p]`` to ``item_offsets[p + 1]``. ``history_items`` holds every user's clicked and ordered
    items end to end, oldest first, an item once per page at its first click or order; page p may see
    ``history_start[p]`` to ``history_end[p]``. ``times`` are seconds UTC of the page's first event. ``values`` is
    parallel to ``items``: the largest value of an item's events on the page; None where events have none.
    ``disliked`` is None where exposed items were only shown.
    """

    request_ids: Shaped[np.ndarray, " P"]
    user_ids: Shaped[np.ndarray, " P"]
    times: Int64[np.ndarray, " P"]
    item_offsets: Int64[np.ndarray, " P+1"]
    items: Int32[np.ndarray, " N"]
    actions: Int8[np.ndarray, " N"]
    history_items: Int32[np.ndarray, " M"]
    history_times: Int64[np.ndarray, " M"]
    history_pages: Int32[np.ndarray, " M"]
    history_start: Int64[np.ndarray, " P"]
    history_end: Int64[np.ndarray, " P"]
    values: Float64[np.ndarray, " N"] | None = None
    disliked: Disliked | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def positives_per_page(self) -> Int64[np.ndarray, " P"]:
        """Number of ordered and clicked items of each page."""
        return np.diff(np.concatenate([[0], np.cumsum(self.actions >= Action.CLICK)])[self.item_offsets])

    @property
    def has_positive(self) -> Bool[np.ndarray, " P"]:
        """Whether anything on the page was clicked or ordered."""
        return self.positives_per_page > 0

    @property
    def has_history(self) -> Bool[np.ndarray, " P"]:
        """Whether the page may see at least one earlier click or order."""
        return self.history_end > self.history_start

    @property
    def starts_user(self) -> Bool[np.ndarray, " P"]:
        """Whether the page is its user's first."""
        return np.concatenate([[True], self.user_ids[1:] != self.user_ids[:-1]])[: len(self)]

    @property
    def item_pages(self) -> Int64[np.ndarray, " N"]:
        """The page of each page item."""
        return np.repeat(np.arange(len(self)), np.diff(self.item_offsets))

    def item_places(self) -> Int64[np.ndarray, " M"]:
        """Return where each history item stands in ``items``, on its own page."""
        stride = int(self.items.max(initial=0)) + 1
        on_page = self.item_pages * stride + self.items
        order = np.argsort(on_page)
        wanted = self.history_pages.astype(np.int64) * stride + self.history_items
        return order[np.searchsorted(on_page, wanted, sorter=order)]

    def disliked_before(self, p: int) -> Int32[np.ndarray, " d"]:
        """Return what page p's user took before it and did not like; nothing where exposed items were only shown."""
        return np.empty(0, np.int32) if self.disliked is None else self.disliked.before(p)

    def example(self, p: int, *, max_history: int | None = None) -> Example:
        """Build page p's example from views; only the last ``max_history`` items of its history are kept."""
        start, end = int(self.history_start[p]), int(self.history_end[p])
        if max_history is not None:
            start = max(start, end - max_history)
        page = slice(int(self.item_offsets[p]), int(self.item_offsets[p + 1]))
        context = Context(
            user_id=str(self.user_ids[p]),
            time=int(self.times[p]),
            history=self.history_items[start:end],
            history_times=self.history_times[start:end],
            history_pages=self.history_pages[start:end],
            disliked=self.disliked_before(p),
        )
        return Example(
            request_id=str(self.request_ids[p]),
            context=context,
            items=self.items[page],
            actions=self.actions[page],
            values=None if self.values is None else self.values[page],
        )

    def select(self, pages: Int[np.ndarray, " n"], *, max_history: int | None = None) -> "PageView":
        """Return a lazy sequence of the examples of these pages."""
        return PageView(self, np.asarray(pages, dtype=np.int64), max_history)


@dataclass(frozen=True, slots=True, eq=False)
class PageView(Sequence[Example]):
    """Examples of some pages of a table, built when they are asked for."""

    table: PageTable
    pages: Int64[np.ndarray, " n"]
    max_history: int | None = None

    def __len__(self) -> int:
        return len(self.pages)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "PageView": ...
    def __getitem__(self, index: int | slice) -> "Example | PageView":
        """Return one example, or the view of a slice."""
        if isinstance(index, slice):
            return PageView(self.table, self.pages[index], self.max_history)
        return self.table.example(int(self.pages[index]), max_history=self.max_history)


def build_pages(
    events: pl.LazyFrame, items: pl.DataFrame, *, history: HistoryRule = "time", exposed_is_taken: bool = False
) -> PageTable:
    """Lay checked events with request ids out as a PageTable.

    ``exposed_is_taken``: an exposed item was not only shown, but taken and not liked, as a low rating says.
    A page is placed by its anchor event. Under ``history="time"`` the anchor is its first event, and it sees
    the events before the anchor's second; under ``"order"`` the anchor is its first click or order, and it
    sees every event before that one, of the same second too.
    """
    ranked = _rank(events, items)
    is_positive = pl.col("action") >= Action.CLICK
    anchor = pl.col("order").min()
    if history == "order":
        anchor = pl.coalesce(pl.col("order").filter(is_positive).min(), anchor)
    pages = (
        ranked.group_by("request_id")
        .agg(pl.col("user_id").first(), anchor.alias("anchor"))
        .sort("anchor")
        .with_row_index("page")
        .join(ranked.select("timestamp", "second_start", "user_start", anchor="order"), on="anchor")
        .sort("page")
    )
    on_page = ranked.join(pages.select("request_id", "page"), on="request_id").sort("order")
    has_values = "value" in on_page.columns
    if has_values:
        on_page = on_page.with_columns(pl.col("value").max().over("page", "row"))
    target = on_page.sort(["page", "action", "order"], descending=[False, True, False], maintain_order=True).unique(
        ["page", "row"], keep="first", maintain_order=True
    )
    liked, start, end = _known_before(on_page.filter(is_positive), pages, history)
    return PageTable(
        request_ids=pages["request_id"].to_numpy().astype(np.str_),
        user_ids=pages["user_id"].cast(pl.String).to_numpy().astype(np.str_),
        times=pages["timestamp"].to_numpy(),
        item_offsets=np.searchsorted(target["page"].to_numpy(), np.arange(len(pages) + 1)).astype(np.int64),
        items=target["row"].cast(pl.Int32).to_numpy(),
        actions=target["action"].to_numpy(),
        history_items=liked["row"].to_numpy(),
        history_times=liked["timestamp"].to_numpy(),
        history_pages=liked["page"].cast(pl.Int32).to_numpy(),
        history_start=start,
        history_end=end,
        values=target["value"].to_numpy() if has_values else None,
        disliked=_disliked(on_page, pages, history) if exposed_is_taken else None,
    )


def _known_before(
    events: pl.DataFrame, pages: pl.DataFrame, history: HistoryRule
) -> tuple[pl.DataFrame, Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """Return the first event of each item and page, and from and to which of them each page may know."""
    first = events.unique(["page", "row"], keep="first", maintain_order=True).cast({"row": pl.Int32})
    bounds = (pages["user_start"], pages["anchor" if history == "order" else "second_start"])
    start, end = (np.searchsorted(first["order"], bound).astype(np.int64) for bound in bounds)
    return first, start, end


def _disliked(events: pl.DataFrame, pages: pl.DataFrame, history: HistoryRule) -> Disliked:
    is_liked = pl.col("action").max().over("page", "row") >= Action.CLICK  # (shown and then taken: the page's answer)
    first, start, end = _known_before(events.filter(~is_liked), pages, history)
    return Disliked(first["row"].to_numpy(), first["timestamp"].to_numpy(), start, end)


def _rank(events: pl.LazyFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Number the events in user, time and position order, and replace item ids by catalogue rows.

    ``second_start`` and ``user_start`` are the numbers of the first event of the same user and second, and of
    the same user.
    """
    rows = items.lazy().select("item_id").with_row_index("row")
    value = ["value"] * ("value" in events.collect_schema())
    return (
        sort_events(events)
        .select("user_id", "request_id", "item_id", "timestamp", "action", *value)
        .join(rows, on="item_id", how="left", maintain_order="left")
        .with_row_index("order")
        .select(
            "user_id",
            "request_id",
            "timestamp",
            "row",
            "order",
            pl.col("action").replace_strict(ACTIONS, return_dtype=pl.Int8),
            pl.col("order").min().over("user_id", "timestamp").alias("second_start"),
            pl.col("order").min().over("user_id").alias("user_start"),
            *value,
        )
        .collect()
    )
