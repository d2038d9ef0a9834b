"""Page-wise SFT with a user's history read once: the trunk is the history, every page a branch along it.

One row a page repeats the history for each of a user's pages. Here a row is a user (a window of one, if the
history is long), and a page's answer attends to the history up to its request: the same loss and gradients.

    trunk:   <|history|> item <|sep|> item <|sep|> item <|sep|> ...
    branch:                         ^ the place it hangs at, once more, then the answer without its last token

    B rows        S places of a row
"""

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
from genrec_rl.models.prefix_tree import PADDING, TRUNK, as_attention_mask, tree_mask
from genrec_rl.models.prompts import PromptEncoder
from genrec_rl.sft.rows import IGNORED, target_items
from genrec_rl.types import Context

COLUMNS = ("input_ids", "position_ids", "owner", "limit", "shift_labels")


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


def tree_row(table: PageTable, window: Window, prompts: PromptEncoder, *, max_items: int, max_exposed: int) -> dict:
    """Write one window as parallel lists, one entry a place: see ``COLUMNS`` and ``prefix_tree.tree_mask``."""
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
    return {name: np.concatenate(parts).tolist() for name, parts in zip(COLUMNS, columns, strict=True)}


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


class TreeCollator:
    """Pads windows on the right and builds their attention mask.

    Args:
        model: tells how its attention reads a mask.
        pad_id: token of padded places.
    """

    def __init__(self, model: Any, *, pad_id: int) -> None:
        self.model = model
        self.padding = dict(zip(COLUMNS, (pad_id, 0, PADDING, 0, IGNORED), strict=True))

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return what the model's forward takes, ``shift_labels`` being one label a place."""
        width = max(len(row["input_ids"]) for row in rows)
        padded = {
            name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])
            for name, fill in self.padding.items()
        }
        mask = tree_mask(padded.pop("owner"), padded.pop("limit"))
        labels = padded["shift_labels"]
        return padded | {"attention_mask": as_attention_mask(self.model, mask, self.model.dtype), "labels": labels}
