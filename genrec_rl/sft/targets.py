"""What a policy is taught of each page, and how much of the history it knows when it answers.

``page``     the page's positives, by intensity, as one answer after the history before the page (page-wise NTP,
             GenRec eq. 3 and 4).
``item``     each positive alone, after the history before the page (the paper's vanilla NTP).
``running``  each positive alone, after all that came before it, the page's earlier positives too (the usual
             sequential target).

Several can be taught at once: ``page+running``. What they teach alike is taught once, such as a page's only positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args, overload

import numpy as np
from jaxtyping import Int

from genrec_rl.config import nearest
from genrec_rl.data.pages import PageTable
from genrec_rl.data.store import Dataset
from genrec_rl.errors import ConfigError
from genrec_rl.types import Action, Context, Example

Target = Literal["page", "item", "running"]
Requests = Literal["page", "running"]
"""What a request of RL or of a reward model is."""
WHOLE = -1
"""Entry of an answer that is its whole page."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What is taught, one entry an answer: users contiguous, a user's answers by the history that they know.

    Answer i belongs to page ``pages[i]`` and follows the history up to ``knows[i]`` (a place of the table's
    history). It is the item of history entry ``entries[i]``, or the page's positives (and exposures), if ``WHOLE``.
    """

    table: PageTable
    pages: Int[np.ndarray, " n"]
    entries: Int[np.ndarray, " n"]
    knows: Int[np.ndarray, " n"]
    max_items: int
    max_exposed: int

    def __len__(self) -> int:
        return len(self.pages)

    def items(self, i: int) -> Int[np.ndarray, " m"]:
        """Return the catalogue rows of answer i."""
        if self.entries[i] == WHOLE:
            example = self.table.example(int(self.pages[i]))
            return page_items(example, max_items=self.max_items, max_exposed=self.max_exposed)
        return self.table.history_items[self.entries[i] : self.entries[i] + 1]

    def time(self, i: int) -> int:
        """Return when answer i is asked for: when its page began or, behind items of the page, when its item came."""
        is_first = self.knows[i] == self.table.history_end[self.pages[i]]
        return int(self.table.times[self.pages[i]] if is_first else self.table.history_times[self.entries[i]])

    def history(self, start: int, end: int, *, time: int) -> Context:
        """Return a stretch of the table's history as a context, asked at a time."""
        table, span = self.table, slice(start, end)
        return Context("", time, table.history_items[span], table.history_times[span], table.history_pages[span])

    def context(self, i: int, *, max_history: int) -> Context:
        """Return what answer i knows, at most the newest ``max_history`` items."""
        end = int(self.knows[i])
        start = max(int(self.table.history_start[self.pages[i]]), end - max_history)
        return self.history(start, end, time=self.time(i))

    def example(self, i: int, *, max_history: int | None) -> Example:
        """Return answer i, one item, as a request of its own that was clicked.

        It is asked for at its page's time, though its history may hold items of the page, which then count as of that
        time: what counts events before a request's time counts none of the page's own.
        """
        page, entry = int(self.pages[i]), int(self.entries[i])
        if entry == WHOLE:
            raise ConfigError(
                "a whole page is a request already: see Dataset.examples; target item or running is wanted"
            )
        known = self.context(i, max_history=max_history or len(self.table.history_items))
        time = int(self.table.times[page])
        times = np.minimum(known.history_times, time)
        context = replace(
            known,
            user_id=str(self.table.user_ids[page]),
            time=time,
            history_times=times,
            disliked=self.table.disliked_before(page),
        )
        items = self.items(i)
        request_id = f"{self.table.request_ids[page]}:{items[0]}"
        return Example(request_id, context, items, np.full(len(items), Action.CLICK, np.int8))


@dataclass(frozen=True, slots=True, eq=False)
class AnswerView(Sequence[Example]):
    """Answers as requests of their own, built when they are asked for."""

    answers: Answers
    max_history: int | None

    def __len__(self) -> int:
        return len(self.answers)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Return one request, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.answers.example(range(len(self))[index], max_history=self.max_history)


def training_requests(dataset: Dataset, kind: Requests, *, max_history: int | None) -> Sequence[Example]:
    """Return what RL and reward models learn from: training pages, or every item after all before it (``running``).

    Raises:
        ConfigError: for another kind.
    """
    if kind not in get_args(Requests):
        raise ConfigError(f"requests '{kind}' is not one of {', '.join(get_args(Requests))}")
    if kind == "page":
        return dataset.examples("train", max_history=max_history)
    return AnswerView(answers_of(dataset.pages, dataset.split.train, target="running", max_items=1), max_history)


def page_items(example: Example, *, max_items: int, max_exposed: int = 0) -> Int[np.ndarray, " m"]:
    """Return the items of a page that are supervised: its best positives, then up to ``max_exposed`` exposures."""
    exposed = example.items[example.actions == Action.EXPOSE][:max_exposed]
    return np.concatenate([example.positives, exposed])[:max_items]


def answers_of(
    table: PageTable,
    chosen: Int[np.ndarray, " n"],
    *,
    target: str,
    max_items: int,
    max_exposed: int = 0,
) -> Answers:
    """List what the chosen pages teach.

    Args:
        table: all pages.
        chosen: pages to teach.
        target: one of the three, or several joined by ``+``.
        max_items: items of a page, at most, under ``page``.
        max_exposed: exposures after a page's positives, under ``page``.

    Raises:
        ConfigError: for an unknown target or limits below 1 item or 0 exposures.
    """
    if max_items < 1 or max_exposed < 0:
        raise ConfigError(f"max_page_items {max_items} must be at least 1, max_exposed {max_exposed} at least 0")
    chosen = np.sort(chosen)
    kinds = target.split("+")
    parts = [_answers(table, chosen, kind) for kind in kinds]
    pages, entries, knows = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(set(kinds)) > 1:  # a page's only positive is then taught by itself
        is_positive_alone = (max_exposed == 0) | (np.diff(table.item_offsets) == 1)
        is_single = (entries == WHOLE) & (table.positives_per_page == 1)[pages] & is_positive_alone[pages]
        pages, entries, knows = pages[~is_single], entries[~is_single], knows[~is_single]
    if len(kinds) > 1:
        pages, entries, knows = np.unique(np.stack([pages, entries, knows]), axis=1)
    order = np.lexsort((knows, np.cumsum(table.starts_user)[pages]))
    return Answers(table, pages[order], entries[order], knows[order], max_items, max_exposed)


def _answers(
    table: PageTable, chosen: Int[np.ndarray, " n"], target: str
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    if target not in get_args(Target):
        known = ", ".join(get_args(Target))
        raise ConfigError(
            f"target '{target}' is not one of {known}, or several with +{nearest(target, get_args(Target))}"
        )
    if target == "page":
        return chosen, np.full(len(chosen), WHOLE), table.history_end[chosen]
    is_chosen = np.zeros(len(table), bool)
    is_chosen[chosen] = True
    entries = np.flatnonzero(is_chosen[table.history_pages])
    entries = entries[np.argsort(table.history_pages[entries], kind="stable")]
    pages = table.history_pages[entries].astype(np.int64)
    knows = table.history_end[pages]
    if target == "running":
        knows = knows + _own_items_before(pages, entries - knows)
    return pages, entries, knows


def _own_items_before(pages: Int[np.ndarray, " m"], steps: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """Count the page's own items that directly follow its history, before each of its items.

    Where requests overlap in time another page's items lie between: nothing behind them is known, since it may be
    held out.
    """
    first = np.searchsorted(pages, pages)
    rank = np.arange(len(pages)) - first
    follows = np.concatenate([[0], np.cumsum(steps == rank)])
    return np.minimum(rank, follows[np.searchsorted(pages, pages, side="right")] - follows[first])
