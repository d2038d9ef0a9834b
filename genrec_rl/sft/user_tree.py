"""Page-wise SFT with a user's history read once: the trunk is the history, every page a branch along it.

One row a page repeats the history for each of a user's pages. Here a row is a user (a window of one, if the
history is long), and a page's answer attends to the history up to its request: the same loss and gradients.

    trunk:   <|history|> item <|sep|> item <|sep|> item <|sep|> ...
    branch:                         ^ the place it hangs at, once more, then the answer without its last token

Windows differ in length, so several of a batch share a row, blind to each other: less padding, nothing else changes.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Int
from torch import Tensor

from genrec_rl.data.pages import PageTable
from genrec_rl.errors import ConfigError
from genrec_rl.models.prefix_tree import PADDING, TRUNK, as_attention_mask, tree_mask, use_tree_attention
from genrec_rl.models.prompts import PromptEncoder
from genrec_rl.sft.rows import IGNORED, target_items
from genrec_rl.types import Context

COLUMNS = ("input_ids", "position_ids", "owner", "limit", "shift_labels")
ROOM = 1.5
"""Width of a batch's rows in longest windows, at most: padding falls with it, the square of attention grows."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of one user's history, as a range of the table's history, and the pages that hang along it."""

    start: int
    end: int
    pages: Int[np.ndarray, " m"]


def cut_windows(table: PageTable, chosen: Int[np.ndarray, " n"], *, max_history: int) -> list[Window]:
    """Share each user's chosen pages out among windows of at most ``max_history`` history items.

    A page with no more history than that sees all of it. Of a longer one it sees at least the newest half of
    ``max_history``: a window begins half a length before the first page that the one before could not hold.
    """
    windows: list[Window] = []
    open_pages: list[int] = []
    start = -1
    user = -1

    def close() -> None:
        if open_pages:
            pages = np.array(open_pages)
            windows.append(Window(start, int(table.history_end[pages].max()), pages))

    for page in np.sort(chosen):
        end, user_start = int(table.history_end[page]), int(table.history_start[page])
        if user_start != user or table.user_ids[page] != table.user_ids[open_pages[-1]]:
            close()
            open_pages, user, start = [], user_start, user_start
        if end - start > max_history:
            close()
            open_pages, start = [], max(user_start, end - (max_history + 1) // 2)
        open_pages.append(page)
    close()
    return windows


def tree_row(
    table: PageTable, window: Window, prompts: PromptEncoder, *, max_items: int, max_exposed: int
) -> dict[str, Int[np.ndarray, " S"]]:
    """Write one window as parallel arrays, one entry a place: see ``COLUMNS`` and ``prefix_tree.tree_mask``."""
    span = slice(window.start, window.end)
    history = table.history_items[span]
    context = Context("", 0, history, table.history_times[span], table.history_pages[span])
    trunk = prompts.prompt(context)
    places_per_item = (len(trunk) - 1) // max(len(history), 1)
    ids, positions = [trunk], [np.arange(len(trunk))]
    owners, limits = [np.full(len(trunk), TRUNK)], [np.arange(1, len(trunk) + 1)]
    labels = [np.full(len(trunk), IGNORED)]
    for branch, page in enumerate(window.pages):
        hangs_at = places_per_item * (int(table.history_end[page]) - window.start)
        answer = prompts.answer(target_items(table.example(page), max_items=max_items, max_exposed=max_exposed))
        ids.append(np.concatenate([trunk[hangs_at : hangs_at + 1], answer[:-1]]))
        positions.append(hangs_at + np.arange(len(answer)))
        owners.append(np.full(len(answer), branch))
        limits.append(np.full(len(answer), hangs_at))
        labels.append(answer)
    columns = (ids, positions, owners, limits, labels)
    return {name: np.concatenate(parts) for name, parts in zip(COLUMNS, columns, strict=True)}


def build_trees(
    table: PageTable,
    chosen: Int[np.ndarray, " n"],
    prompts: PromptEncoder,
    *,
    max_items: int,
    max_exposed: int = 0,
) -> Dataset:
    """Return a dataset of windows, written when a row is read.

    Raises:
        ConfigError: with separators between pages, where a history's last item is written differently in its
            middle than at its end.
    """
    if prompts.grammar.separator == "page":
        raise ConfigError(
            "packing user_tree needs separator item or none; with separator page set `packing_pages: none`"
        )
    windows = cut_windows(table, chosen, max_history=prompts.grammar.max_history)

    def write(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [
            tree_row(table, windows[i], prompts, max_items=max_items, max_exposed=max_exposed)
            for i in batch["window"]
        ]
        return {name: [row[name] for row in rows] for name in COLUMNS}

    return Dataset.from_dict({"window": np.arange(len(windows))}).with_transform(write)


def share_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Share windows out among rows so that the padded rows have the fewest places.

    For each number of rows the longest window left goes to the emptiest row. Rows are at most ``ROOM`` times as
    wide as the longest window.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest = lengths[longest_first[0]]
    found: list[tuple[int, int, list[list[int]]]] = []
    for n_rows in range(math.ceil(sum(lengths) / (ROOM * longest)), len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(n_rows)]
        filled = [(0, row) for row in range(n_rows)]
        for i in longest_first:
            length, row = filled[0]
            heapq.heapreplace(filled, (length + lengths[i], row))
            rows[row].append(i)
        width = max(filled)[0]
        if width <= ROOM * longest:
            found.append((n_rows * width, width, rows))
        if width == longest:
            break
    return min(found)[2]


class TreeCollator:
    """Lays windows side by side into rows, pads them on the right and builds their attention mask.

    The loss and its gradient are those of one window a row.

    Args:
        model: tells how its attention reads a mask.
        pad_id: token of padded places.
    """

    def __init__(self, model: Any, *, pad_id: int) -> None:
        use_tree_attention(model)  # here, and not in a data loader's process, which has a copy of the model
        self.model = model
        self.padding = dict(zip((*COLUMNS, "start"), (pad_id, 0, PADDING, 0, IGNORED, 0), strict=True))

    def __call__(self, windows: Sequence[dict[str, Int[np.ndarray, " S"]]]) -> dict[str, Tensor]:
        """Return what the model's forward takes; only places with a label reach the head, as one row."""
        rows = share_rows([len(window["input_ids"]) for window in windows])
        joined = [_join([windows[i] for i in row]) for row in rows]
        shape = (len(rows), max(len(row["input_ids"]) for row in joined))
        padded = {name: np.full(shape, fill) for name, fill in self.padding.items()}
        for b, row in enumerate(joined):
            for name, values in row.items():
                padded[name][b, : len(values)] = values
        tensors = {name: torch.from_numpy(values) for name, values in padded.items()}
        mask = tree_mask(tensors.pop("owner"), tensors.pop("limit"), tensors.pop("start"))
        labels = tensors.pop("shift_labels").flatten()
        places = (labels != IGNORED).nonzero().squeeze(1)
        labels_1N = labels[places].unsqueeze(0)
        return tensors | {
            "attention_mask": as_attention_mask(self.model, mask, self.model.dtype),
            "kept_places": places,
            "labels": labels_1N,
            "shift_labels": labels_1N,
        }


def _join(windows: Sequence[dict[str, Int[np.ndarray, " S"]]]) -> dict[str, Int[np.ndarray, " S"]]:
    """Lay windows end to end, counting places and branches on; ``start`` is where each begins."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*COLUMNS, "start")}
    start = n_branches = 0
    for window in windows:
        owner = window["owner"]
        shifted = {"owner": np.where(owner >= 0, owner + n_branches, owner), "limit": window["limit"] + start}
        for name, values in (window | shifted | {"start": np.full(len(owner), start)}).items():
            parts[name].append(values)
        start += len(owner)
        n_branches += int(owner.max()) + 1
    return {name: np.concatenate(values) for name, values in parts.items()}
