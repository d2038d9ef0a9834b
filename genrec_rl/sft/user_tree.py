"""SFT with a user's history read once: the trunk is the history, every answer a branch along it.

One row an answer repeats the history for each of a user's pages. Here a row is a user (a window of one, if the
history is long), and an answer attends to the history that it knows: the same loss and gradients.

    trunk:   <|history|> item <|sep|> item <|sep|> item <|sep|> ...
    branch:                         ^ the answer without its last token

An answer's first token is predicted by the trunk itself. Of several answers at one place all but the first begin
with a copy of that place, and so does one that is asked for on another day than the trunk says.

Windows differ in length, so several of a batch share a row, blind to each other: less padding, nothing else changes.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from genrec_rl.errors import ConfigError
from genrec_rl.models.prefix_tree import PADDING, TRUNK, as_attention_mask, tree_mask, use_tree_attention
from genrec_rl.models.prompts import PromptEncoder
from genrec_rl.sft.rows import IGNORED, draw_kept
from genrec_rl.sft.siblings import Siblings
from genrec_rl.sft.targets import Answers
from genrec_rl.sft.worth import Worth

COLUMNS = ("input_ids", "position_ids", "owner", "limit", "shift_labels", "node")
KEPT_ROWS = 1 << 15
"""Windows whose rows are kept for the next epoch, at 2 to 13 KB each: less than half a gigabyte."""
KEPT_BRANCHES = 1 << 18
"""Answers that are kept, at about half a kilobyte each."""
ROOM = 1.5
"""Width of a batch's rows in longest windows, at most: padding falls with it, the square of attention grows."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of one user's history, as a range of the table's history, and the answers that hang along it."""

    start: int
    end: int
    answers: range


def cut_windows(answers: Answers, *, max_history: int) -> list[Window]:
    """Share each user's answers out among windows of at most ``max_history`` history items.

    An answer that knows no more history than that sees all of it. One that knows more sees at least the newest
    half of ``max_history``: a window begins half a length before the first answer that the one before could not hold.
    """
    users = np.cumsum(answers.table.starts_user)[answers.pages].tolist()
    starts = answers.table.history_start[answers.pages].tolist()
    knows = answers.knows.tolist()
    windows: list[Window] = []
    first = start = 0
    for i in range(len(answers) + 1):
        is_new = i == len(answers) or i == 0 or users[i] != users[i - 1]
        if is_new or knows[i] - start > max_history:
            if i > 0:
                windows.append(Window(start, knows[i - 1], range(first, i)))
            if i < len(answers):
                first, start = i, starts[i] if is_new else max(starts[i], knows[i] - (max_history + 1) // 2)
    return windows


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One answer, whatever it hangs on: its labels, what is read in their places, and the prefixes they go on from.

    ``nodes`` are 0 where nothing is chosen among siblings; ``weights`` are None where all labels weigh the same.
    """

    labels: Int[np.ndarray, " c"]
    read: Int[np.ndarray, " c"]
    nodes: Int[np.ndarray, " c"]
    weights: Float32[np.ndarray, " c"] | None


def branches(
    answers: Answers, prompts: PromptEncoder, siblings: Siblings | None = None, worth: Worth | None = None
) -> Callable[[int], Branch]:
    """Return what writes the i-th answer, and keeps it: histories are thinned anew each epoch, answers are not.

    With ``siblings`` an answer ends where the rest is certain. With ``worth`` it has weights, and may end with its
    value token.
    """

    @lru_cache(maxsize=KEPT_BRANCHES)
    def branch_of(i: int) -> Branch:
        value_tokens = None if worth is None else worth.value_tokens(i)
        labels, read, nodes = _branch(answers.items(i), prompts, siblings, value_tokens)
        weights = None
        if worth is not None:
            weights = worth.token_weights(i, n_levels=prompts.vocab.n_levels)[: len(labels)]
        return Branch(labels, read, nodes, weights)

    return branch_of


def tree_row(
    answers: Answers,
    window: Window,
    prompts: PromptEncoder,
    branch_of: Callable[[int], Branch],
    kept: Bool[np.ndarray, " h"] | None = None,
) -> dict[str, np.ndarray]:
    """Write one window as parallel arrays, one entry a place: see ``COLUMNS`` and ``prefix_tree.tree_mask``.

    With ``kept`` the trunk has those history items alone, and an answer knows the kept ones of what it knew. There
    is a column ``weights`` where answers have them.
    """
    history = answers.history(window.start, window.end, time=answers.time(window.answers[-1]))
    n_kept = np.arange(len(history.history) + 1)
    if kept is not None:
        history, n_kept = history.only(kept), np.append(0, np.cumsum(kept))
    trunk = prompts.prompt(history)
    places_per_item = (len(trunk) - 1) // max(len(history.history), 1)
    trunk_labels = np.full(len(trunk), IGNORED)
    ids, positions = [trunk], [np.arange(len(trunk))]
    owners, limits = [np.full(len(trunk), TRUNK)], [np.arange(1, len(trunk) + 1)]
    labels = [trunk_labels]
    trunk_nodes = np.zeros(len(trunk), np.int64)
    trunk_weights = np.zeros(len(trunk), np.float32)
    nodes, weights = [trunk_nodes], [trunk_weights]
    for branch, i in enumerate(window.answers):
        n_known = int(n_kept[answers.knows[i] - window.start])
        hangs_at = places_per_item * n_known
        begins_with = trunk[hangs_at : hangs_at + 1]
        if prompts.grammar.separator == "day" and n_known:
            newest = history.history_times[n_known - 1 : n_known]
            begins_with = prompts.separators(newest, np.array([answers.time(i)]))
        answer = branch_of(i)
        n_labels = len(answer.labels)
        is_the_trunks = begins_with[0] == trunk[hangs_at] and trunk_labels[hangs_at] == IGNORED
        skipped = int(n_labels > 0 and is_the_trunks)
        if skipped:
            trunk_labels[hangs_at], trunk_nodes[hangs_at] = answer.labels[0], answer.nodes[0]
        ids.append(np.concatenate([begins_with, answer.read])[:-1][skipped:])
        positions.append(hangs_at + np.arange(skipped, n_labels))
        owners.append(np.full(n_labels - skipped, branch))
        limits.append(np.full(n_labels - skipped, hangs_at + skipped))
        labels.append(answer.labels[skipped:])
        nodes.append(answer.nodes[skipped:])
        if answer.weights is not None:
            trunk_weights[hangs_at] = answer.weights[0] if skipped else trunk_weights[hangs_at]
            weights.append(answer.weights[skipped:])
    columns = dict(zip(COLUMNS, (ids, positions, owners, limits, labels, nodes), strict=True))
    if len(weights) > 1:
        columns["weights"] = weights
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _branch(
    items: Int[np.ndarray, " m"],
    prompts: PromptEncoder,
    siblings: Siblings | None,
    value_tokens: Int[np.ndarray, " v"] | None,
) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"], Int[np.ndarray, " c"]]:
    """Return the labels of an answer, what is read in their places, and the prefixes that they go on from.

    Codes that are certain are left out at the end; before a value token, which is read behind them, they stay without
    a label.
    """
    answer, read = prompts.answer(items), prompts.read_answer(items)
    node = np.zeros(len(answer), np.int64)
    n_open = len(answer)
    if siblings is not None:
        node = siblings.nodes[items].reshape(-1)
        n_open += int(siblings.n_open[items[-1]]) - siblings.nodes.shape[1]
    if value_tokens is None or not len(value_tokens):
        return answer[:n_open], read[:n_open], node[:n_open]
    answer[n_open:] = IGNORED
    value_node = np.full(len(value_tokens), 0 if siblings is None else siblings.value_node)
    parts = ((answer, value_tokens), (read, value_tokens), (node, value_node))
    return tuple(np.concatenate(part) for part in parts)  # type: ignore[return-value]


def build_trees(
    answers: Answers,
    prompts: PromptEncoder,
    siblings: Siblings | None = None,
    worth: Worth | None = None,
    *,
    history_dropout: float = 0.0,
) -> Dataset:
    """Return a dataset of windows, written when a row is first read; with ``siblings``, for a softmax over children.

    With ``worth`` labels have weights, and items their value tokens.

    ``history_dropout`` is the share of the trunk's items that are left out, others each time: rows are then written
    each time as well.

    Raises:
        ConfigError: with separators between pages, where a history's last item is written differently in its
            middle than at its end.
    """
    if prompts.grammar.separator == "page":
        raise ConfigError(
            "packing user_tree needs separator item, day or none; with separator page set `packing_pages: none`"
        )
    windows = cut_windows(answers, max_history=prompts.grammar.max_history)

    branch_of = branches(answers, prompts, siblings, worth)

    @lru_cache(maxsize=KEPT_ROWS)
    def row_of(i: int) -> dict[str, np.ndarray]:
        row = tree_row(answers, windows[i], prompts, branch_of)
        for values in row.values():
            values.flags.writeable = False
        return row

    def thinned(i: int) -> dict[str, np.ndarray]:
        kept = draw_kept(windows[i].end - windows[i].start, dropout=history_dropout)
        return tree_row(answers, windows[i], prompts, branch_of, kept)

    def write(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [thinned(i) if history_dropout else row_of(i) for i in batch["window"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

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
        siblings: also say which tokens each label is chosen among (``allowed``).
    """

    def __init__(self, model: Any, *, pad_id: int, siblings: Siblings | None = None) -> None:
        use_tree_attention(model)  # here, and not in a data loader's process, which has a copy of the model
        self.model = model
        self.siblings = siblings
        fills = (pad_id, 0, PADDING, 0, IGNORED, 0, 0, np.float32(0))
        self.padding = dict(zip((*COLUMNS, "start", "weights"), fills, strict=True))

    def __call__(self, windows: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """Return what the model's forward takes; only places with a label reach the head, as one row."""
        rows = share_rows([len(window["input_ids"]) for window in windows])
        joined = [_join([windows[i] for i in row]) for row in rows]
        shape = (len(rows), max(len(row["input_ids"]) for row in joined))
        padded = {name: np.full(shape, self.padding[name]) for name in joined[0]}
        for b, row in enumerate(joined):
            for name, values in row.items():
                padded[name][b, : len(values)] = values
        tensors = {name: torch.from_numpy(values) for name, values in padded.items()}
        mask = tree_mask(tensors.pop("owner"), tensors.pop("limit"), tensors.pop("start"))
        labels = tensors.pop("shift_labels").flatten()
        places = (labels != IGNORED).nonzero().squeeze(1)
        labels_1N = labels[places].unsqueeze(0)
        nodes_N = tensors.pop("node").flatten()[places]
        added = {} if self.siblings is None else {"allowed": self.siblings.of(nodes_N)}
        if "weights" in tensors:
            added["weights"] = tensors.pop("weights").flatten()[places].unsqueeze(0)
        return (
            tensors
            | added
            | {
                "attention_mask": as_attention_mask(self.model, mask, self.model.dtype),
                "kept_places": places,
                "labels": labels_1N,
                "shift_labels": labels_1N,
            }
        )


def _join(windows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Lay windows end to end, counting places and branches on; ``start`` is where each begins."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*windows[0], "start")}
    start = n_branches = 0
    for window in windows:
        owner = window["owner"]
        shifted = {"owner": np.where(owner >= 0, owner + n_branches, owner), "limit": window["limit"] + start}
        for name, values in (window | shifted | {"start": np.full(len(owner), start)}).items():
            parts[name].append(values)
        start += len(owner)
        n_branches += int(owner.max()) + 1
    return {name: np.concatenate(values) for name, values in parts.items()}
