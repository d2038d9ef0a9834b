"""What trees see of a request and a candidate, nothing of its page.

Popularity and recency are of the time before the request; transitions are of other users whenever they were, and of
the user before the request.

Steps count back from the newest history item, which is step 0. What does not apply is NaN: trees send a missing
value to the side that fits best.

    P   requests        G   candidates per request        H   history items, newest first        F   features
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64

from genrec_rl.data.pages import DAY
from genrec_rl.types import Context
from reward_models.xgb.counts import DECAY, N_LAST, LogCounts

PRIOR_TAKEN = 5
"""Showings before which an item's share of being taken counts as one half: as many taken, as many left."""
NO_CATEGORY = -1
_REQUESTS_AT_ONCE = 256

FEATURES = (
    "log_popularity",
    "log_popularity_90_days",
    "days_since_taken",
    "taken_share",
    "follows_last",
    "follows",
    "follows_share",
    "precedes",
    "cosine_last",
    "cosine_max",
    "cosine_mean_last",
    "attributes_last",
    "attributes_max",
    "attributes_mean_last",
    "prefix_1_share",
    "prefix_1_steps",
    "prefix_2_share",
    "prefix_2_steps",
    "category_share",
    "category_steps",
    "times_seen",
    "seen_steps",
    "history_length",
    "days_since_last",
    "items_today",
)
"""Names and order of the columns; a saved model is refused if they differ."""


@dataclass(frozen=True, eq=False)
class ItemTables:
    """What is known of catalogue rows.

    Semantic ``codes`` (N L), unit ``vectors`` (N D), ``categories`` (N), -1 for none; ``attributes`` (N A), unit
    vectors of what items have in common (``attribute_vectors``), zero for an item without any, None where the table
    has none.
    """

    codes: Int[np.ndarray, "N L"]
    vectors: Float32[np.ndarray, "N D"]
    categories: Int[np.ndarray, " N"]
    attributes: Float32[np.ndarray, "N A"] | None = None

    @cached_property
    def prefixes(self) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """Numbers of the SID prefixes of one code and of two."""
        short, long = (prefix_keys(self.codes, depth=depth) for depth in (1, min(2, self.codes.shape[1])))
        return short, long


def request_features(
    counts: LogCounts,
    items: ItemTables,
    contexts: Sequence[Context],
    rows_PG: Int[np.ndarray, "P G"],
    *,
    max_history: int,
) -> Float32[np.ndarray, "P G F"]:
    """Return ``FEATURES`` of every candidate, some requests at a time.

    Args:
        counts: of training pages.
        items: the catalogue.
        contexts: P contexts.
        rows_PG: valid catalogue rows.
        max_history: newest history items that are read.
    """
    features_PGF = np.empty((*rows_PG.shape, len(FEATURES)), np.float32)
    for start in range(0, len(contexts), _REQUESTS_AT_ONCE):
        some = slice(start, start + _REQUESTS_AT_ONCE)
        features_PGF[some] = _features(counts, items, contexts[some], rows_PG[some], max_history=max_history)
    return features_PGF


def _features(
    counts: LogCounts,
    items: ItemTables,
    contexts: Sequence[Context],
    rows_PG: Int[np.ndarray, "P G"],
    *,
    max_history: int,
) -> Float32[np.ndarray, "P G F"]:
    history_PH, is_item_PH = newest_first(contexts, max_history=max_history)
    time_P = np.array([context.time for context in contexts], np.int64)
    time_PG = np.broadcast_to(time_P[:, None], rows_PG.shape)
    popularity_PG = counts.taken_before(rows_PG, time_PG)
    columns = [
        np.log1p(popularity_PG),
        np.log1p(counts.taken_before(rows_PG, time_PG, days=90)),
        counts.days_since_taken(rows_PG, time_PG),
        (popularity_PG + PRIOR_TAKEN) / (counts.shown_before(rows_PG, time_PG) + 2 * PRIOR_TAKEN),
        *_transitions(counts, contexts, history_PH[:, :N_LAST], is_item_PH[:, :N_LAST], rows_PG, popularity_PG),
        *_cosines(items.vectors, history_PH, is_item_PH, rows_PG),
        *_cosines(items.attributes, history_PH, is_item_PH, rows_PG),
    ]
    for key in (*items.prefixes, items.categories):
        is_same_PGH = (key[rows_PG][..., None] == key[history_PH][:, None]) & is_item_PH[:, None]
        is_same_PGH &= (key[rows_PG] != NO_CATEGORY)[..., None]
        columns += [_share(is_same_PGH, is_item_PH), _first_step(is_same_PGH)]
    is_seen_PGH = (rows_PG[..., None] == history_PH[:, None]) & is_item_PH[:, None]
    columns += [is_seen_PGH.sum(-1), _first_step(is_seen_PGH)]
    last_P = np.array([context.history_times[-1] if len(context.history) else np.nan for context in contexts])
    newest = [context.history_times[-max_history:] for context in contexts]
    today_P = [(times // DAY == time // DAY).sum() for times, time in zip(newest, time_P, strict=True)]
    days_P = ((time_P - last_P) / DAY).clip(min=0)
    for column_P in (is_item_PH.sum(1), days_P, np.array(today_P)):
        columns.append(np.broadcast_to(column_P[:, None], rows_PG.shape))
    return np.stack(columns, axis=-1).astype(np.float32)


def newest_first(
    contexts: Sequence[Context], *, max_history: int
) -> tuple[Int64[np.ndarray, "P H"], Bool[np.ndarray, "P H"]]:
    """Return histories as rows, newest item first, and which places hold one; there is at least one place."""
    lengths_P = np.array([min(len(context.history), max_history) for context in contexts])
    history_PH = np.zeros((len(contexts), max(int(lengths_P.max(initial=0)), 1)), np.int64)
    for p, (context, length) in enumerate(zip(contexts, lengths_P, strict=True)):
        history_PH[p, :length] = context.history[::-1][:length]
    return history_PH, np.arange(history_PH.shape[1]) < lengths_P[:, None]


def prefix_keys(codes: Int[np.ndarray, "N L"], *, depth: int) -> Int[np.ndarray, " N"]:
    """Number the SID prefixes of a depth."""
    return np.unique(codes[:, :depth], axis=0, return_inverse=True)[1].reshape(-1)


def _transitions(
    counts: LogCounts,
    contexts: Sequence[Context],
    history_PH: Int64[np.ndarray, "P H"],
    is_item_PH: Bool[np.ndarray, "P H"],
    rows_PG: Int[np.ndarray, "P G"],
    popularity_PG: Int[np.ndarray, "P G"],
) -> list[np.ndarray]:
    """Return how often a candidate followed the last item; the last few, by decay; that by popularity; preceded."""
    weights_PH = DECAY ** np.arange(history_PH.shape[1]) * is_item_PH
    follows_PGH = counts.transitions(contexts, history_PH[:, None], rows_PG[..., None])
    precedes_PGH = counts.transitions(contexts, rows_PG[..., None], history_PH[:, None])
    follows_PG = (follows_PGH * weights_PH[:, None]).sum(-1)
    last_PG = follows_PGH[..., 0] * weights_PH[:, :1]
    return [last_PG, follows_PG, follows_PG / (popularity_PG + 1), (precedes_PGH * weights_PH[:, None]).sum(-1)]


def _cosines(
    vectors: Float32[np.ndarray, "N D"] | None,
    history_PH: Int64[np.ndarray, "P H"],
    is_item_PH: Bool[np.ndarray, "P H"],
    rows_PG: Int[np.ndarray, "P G"],
) -> list[np.ndarray]:
    """Return a candidate's cosine to the last item, the largest to any, and the mean to the last few."""
    if vectors is None:
        return [np.full(rows_PG.shape, np.nan)] * 3
    cosine_PGH = vectors[rows_PG] @ vectors[history_PH].transpose(0, 2, 1)
    has_any_P1 = is_item_PH[:, :1]
    largest_PG = np.where(is_item_PH[:, None], cosine_PGH, -np.inf).max(-1)
    is_last_PH = is_item_PH[:, :N_LAST]
    mean_PG = (cosine_PGH[..., :N_LAST] * is_last_PH[:, None]).sum(-1) / is_last_PH.sum(1).clip(min=1)[:, None]
    return [np.where(has_any_P1, cosine, np.nan) for cosine in (cosine_PGH[..., 0], largest_PG, mean_PG)]


def _share(is_same_PGH: Bool[np.ndarray, "P G H"], is_item_PH: Bool[np.ndarray, "P H"]) -> np.ndarray:
    """Return the share of history items that match; NaN without history."""
    n_items_P1 = is_item_PH.sum(1)[:, None]
    return np.where(n_items_P1 > 0, is_same_PGH.sum(-1) / n_items_P1.clip(min=1), np.nan)


def _first_step(is_same_PGH: Bool[np.ndarray, "P G H"]) -> np.ndarray:
    """Return the step of the newest match, NaN without one."""
    return np.where(is_same_PGH.any(-1), is_same_PGH.argmax(-1), np.nan)
