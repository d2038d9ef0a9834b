"""What clients may ask, and how it becomes a context of catalogue rows."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from genrec_rl.data.pages import DAY
from genrec_rl.data.store import Dataset
from genrec_rl.types import Context

ItemId = StrictInt | StrictStr
Seconds = Annotated[int, Field(strict=True, ge=0, le=253_402_300_799)]  # the year 9999
DEFAULT_K = 10
MAX_ECHO = 80
"""Characters of a request that its refusal repeats."""


class RecommendBody(BaseModel):
    """The body of ``POST /recommend``: ``user_id`` or ``history``, and what is wanted."""

    model_config = ConfigDict(extra="forbid")

    user_id: ItemId | None = Field(None, description="a user of the data; their clicked and ordered items are read")
    history: list[ItemId] | None = Field(None, description="item ids, oldest first; [] is a new user")
    history_times: list[Seconds] | None = Field(None, description="seconds UTC of each history item")
    time: Seconds | None = Field(None, description="seconds UTC of the request; left out: now")
    k: StrictInt | None = Field(None, description="items wanted; left out: 10, or as many as may be asked for")
    exclude: list[ItemId] = Field(default_factory=list, description="item ids never to recommend")
    exclude_seen: StrictBool = Field(False, description="never recommend what was taken before")


class BadRequest(ValueError):  # noqa: N818  (an answer of the service)
    """A request that cannot be answered, in words for whoever sent it.

    Args:
        message: the value, the limit and the remedy.
        status: HTTP status, 4xx.
    """

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A request as the search sees it.

    Attributes:
        context: the user; the policy reads the newest items that its prompt has room for.
        k: items wanted.
        excluded: rows that no answer may hold.
        unknown_items: items of the request that the catalogue lacks; they are left out.
        key: requests with one key have one answer.
    """

    context: Context
    k: int
    excluded: frozenset[int]
    unknown_items: int
    key: Hashable


def shortened(value: object) -> str:
    """Write what a request sent so that an answer never repeats more than a line of it."""
    text = str(value)
    return text if len(text) <= MAX_ECHO else f"{text[:MAX_ECHO]}..."


class RequestReader:
    """Reads requests against a data set.

    Args:
        dataset: known items and users; of a user, all clicks and orders are read, the test pages' too.
        max_k: items that may be asked for.
        max_items: items that a request may name in ``history`` and in ``exclude``.
        settings_key: whatever else an answer depends on, such as the policy's fingerprint; part of each key.
        now: seconds UTC.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        max_k: int,
        max_items: int,
        settings_key: Hashable,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.max_k = max_k
        self.max_items = max_items
        self._rows = {str(item_id): row for row, item_id in enumerate(dataset.item_ids)}
        pages = dataset.pages
        first = np.flatnonzero(pages.starts_user)
        starts = pages.history_start[first]
        ends = np.append(starts[1:], len(pages.history_items))
        last = np.append(first[1:], len(pages)) - 1
        self._pages = pages
        self._users = dict(
            zip(pages.user_ids[first].tolist(), zip(starts, ends, first, last, strict=True), strict=True)
        )
        self._settings_key = settings_key
        self._now = now

    def read(self, body: RecommendBody) -> Ask:
        """Turn a body into an Ask.

        Raises:
            BadRequest: for a user that the data lacks (404), and for what contradicts itself or a limit (422).
        """
        k = min(DEFAULT_K, self.max_k) if body.k is None else body.k
        if not 1 <= k <= self.max_k:
            raise BadRequest(f"k is {shortened(k)}; ask for 1 to {self.max_k} items")
        if (body.user_id is None) == (body.history is None):
            raise BadRequest("give either user_id or history (item ids, oldest first; [] for a new user)")
        if body.history_times is not None and body.history is None:
            raise BadRequest("history_times needs a history; a known user's times are in the data")
        self._check_length("exclude", body.exclude)
        context, unknown = self._known_user(body) if body.history is None else self._from_items(body)
        excluded = [self._rows.get(str(item)) for item in body.exclude]
        known = {row for row in excluded if row is not None}
        seen = set(context.seen.tolist()) if body.exclude_seen else set()
        return Ask(
            context=context,
            k=k,
            excluded=frozenset(known | seen),
            unknown_items=unknown + excluded.count(None),
            key=self._key(body, context, k, known | seen),
        )

    def _known_user(self, body: RecommendBody) -> tuple[Context, int]:
        """Return what a user did before the request: everything, unless it is asked at an earlier time."""
        user = str(body.user_id)
        if user not in self._users:
            told = shortened(user)
            raise BadRequest(f"user '{told}' is not in the data; send a history in place of user_id", status=404)
        start, end, first, last = self._users[user]
        times = self._pages.history_times[start:end]
        asked = body.time if body.time is not None else max(int(self._now()), int(times.max(initial=0)) + 1)
        known = slice(start, start + int(np.searchsorted(times, asked)))
        columns = (self._pages.history_items, self._pages.history_times, self._pages.history_pages)
        context = Context(user, asked, *(column[known] for column in columns))
        if (disliked := self._pages.disliked) is not None:
            context = replace(context, disliked=disliked.of_user(first, last, time=asked))
        return context, 0

    def _from_items(self, body: RecommendBody) -> tuple[Context, int]:
        """Return a history of item ids. Without times, each item has a day of its own, the last yesterday."""
        items = body.history or []
        self._check_length("history", items)
        asked = int(self._now()) if body.time is None else body.time
        rows = [self._rows.get(str(item)) for item in items]
        is_known = np.array([row is not None for row in rows], bool)
        days_ago = np.cumsum(is_known[::-1])[::-1].clip(min=1)  # unknown items take no day: they are not in the key
        times = asked - DAY * days_ago.astype(np.int64)
        if body.history_times is not None:
            times = np.array(body.history_times, np.int64)
            self._check_times(times, len(items), asked)
        pages = np.cumsum(np.diff(times // DAY, prepend=times[:1] // DAY) != 0)
        history = np.array([-1 if row is None else row for row in rows], np.int32)
        context = Context("", asked, history, times, pages.astype(np.int32)).only(is_known)
        return context, int((~is_known).sum())

    def _check_length(self, name: str, items: Sequence[ItemId]) -> None:
        if len(items) > self.max_items:
            raise BadRequest(
                f"{name} holds {len(items)} items, at most {self.max_items} may be sent; send the newest"
            )

    def _check_times(self, times: Int[np.ndarray, " n"], n_items: int, asked: int) -> None:
        if len(times) != n_items:
            raise BadRequest(f"{len(times)} history_times for {n_items} history items; give each item one")
        if (np.diff(times) < 0).any():
            raise BadRequest("history_times go back in time; send the history oldest first")
        if len(times) and times[-1] >= asked:
            raise BadRequest(f"history_times end at {times[-1]}, not before the request's time {asked}")

    def _key(self, body: RecommendBody, context: Context, k: int, excluded: set[int]) -> Hashable:
        """Name the answer: requests of now share one for as long as it is one day (UTC) and the cache keeps it."""
        asked = ("day", context.time // DAY) if body.time is None else context.time
        has_times = body.history is None or body.history_times is not None
        times = context.history_times.tobytes() if has_times else b""
        history = (context.user_id, context.history.tobytes(), times)
        return (self._settings_key, history, asked, k, frozenset(excluded))
