"""Ranking, validity and concentration metrics, and the bootstrap over users that gives them intervals.

Definitions: an invalid SID (``NO_ITEM``) keeps its rank, and a repeated item counts once, at its best rank.
Accuracy, validity and reward metrics return one number per request, so that any of them can be averaged,
paired and resampled; NaN stands for a request that a metric is not defined for, which is left out of its mean.
Concentration metrics describe all lists together and return one number.

    P   requests    K   ranks, best first    D   positives of all requests    U   users    C   columns
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.types import NO_ITEM, Action, Interval

Rows = Int[np.ndarray, "P K"]
PerRequest = Float[np.ndarray, " P"]
Ragged = Sequence[np.ndarray]
Name = TypeVar("Name", bound=Hashable)

CLICK_GAIN, ORDER_GAIN = 1.0, 2.0
_CELLS_PER_CHUNK = 4_000_000


def action_gains(actions: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Return the graded relevance of actions: an order is worth two clicks, an exposure nothing."""
    gains = np.zeros(len(actions))
    gains[actions == Action.CLICK] = CLICK_GAIN
    gains[actions == Action.ORDER] = ORDER_GAIN
    return gains


def hit_rate(rows_PK: Rows, positives: Ragged, *, k: int) -> PerRequest:
    """Return HR@k: 1 where any of the first k ranks is one of the request's positives."""
    return np.any(_gains_by_rank(rows_PK, positives, None, k) > 0, axis=1).astype(np.float64)


def recall(rows_PK: Rows, positives: Ragged, *, k: int) -> PerRequest:
    """Return the share of each request's positives found in its first k ranks.

    Raises:
        DataError: when a request has no positive, for which a share is undefined.
    """
    found = (_gains_by_rank(rows_PK, positives, None, k) > 0).sum(axis=1)
    return found / _ideal_gains(positives, None, k=None).sum(axis=1)


def ndcg(rows_PK: Rows, positives: Ragged, *, k: int, gains: Ragged | None = None) -> PerRequest:
    """Return NDCG@k, whose ideal list holds min(k, number of positives) items in order of gain.

    Args:
        rows_PK: recommended rows, best first.
        positives: rows of D+ per request.
        k: ranks that count.
        gains: relevance above 0, parallel to ``positives``; None makes every positive worth 1.

    Raises:
        DataError: when a request has no positive.
    """
    discounts = 1 / np.log2(np.arange(k) + 2)
    reached = _gains_by_rank(rows_PK, positives, gains, k) @ discounts
    ideal = _ideal_gains(positives, gains, k=k)
    return reached / (ideal @ discounts[: ideal.shape[1]])


def value_recall(rows_PK: Rows, positives: Ragged, values: Ragged, *, k: int) -> PerRequest:
    """Return value@k: the value of each request's positives found in its first k ranks over the value of all of them.

    NaN where no positive has a value above 0.

    Args:
        rows_PK: recommended rows, best first.
        positives: rows of D+ per request.
        values: what each is worth, at least 0, parallel to ``positives``.
        k: ranks that count.
    """
    found = value_by_rank(rows_PK, positives, values, k=k).sum(axis=1)
    request_D, _, gain_D = _distinct_positives(*_worthy(positives, values))
    total = np.bincount(request_D, weights=gain_D, minlength=len(positives))
    return np.divide(found, total, out=np.full(len(positives), np.nan), where=total > 0)


def value_by_rank(rows_PK: Rows, positives: Ragged, values: Ragged, *, k: int) -> Float[np.ndarray, "P k"]:
    """Return what each of the first k ranks was worth: its item's value, if it is a positive not found before."""
    return _gains_by_rank(rows_PK, *_worthy(positives, values), k)


def hallucination_rate(rows_PK: Rows, *, k: int) -> PerRequest:
    """Return HaR@k: the share of invalid SIDs in the first k ranks. A trie makes it 0 by construction."""
    return (_top(rows_PK, k) == NO_ITEM).mean(axis=1)


def without_seen(rows_PK: Rows, seen: Ragged) -> Rows:
    """Take out what each request's user has taken before; those behind move up, and the end is NO_ITEM."""
    result = np.full_like(rows_PK, NO_ITEM)
    for kept, rows, taken in zip(result, rows_PK, seen, strict=True):
        new = rows[~np.isin(rows, taken)]
        kept[: len(new)] = new
    return result


def seen_share(rows_PK: Rows, seen: Ragged, *, k: int) -> PerRequest:
    """Return the share of the first k ranks given to what the request's user has taken before."""
    pairs = zip(_top(rows_PK, k), seen, strict=True)
    return np.array([np.isin(rows, taken).mean() for rows, taken in pairs])


def reward_at_k(
    rewards_PK: Float[np.ndarray, "P K"], *, k: int, reduce: Literal["max", "mean"] = "max"
) -> PerRequest:
    """Return R@k: the highest (or mean) reward of the first k ranks, where an invalid SID earned 0."""
    top_PK = _top(rewards_PK, k)
    return top_PK.max(axis=1) if reduce == "max" else top_PK.mean(axis=1)


def long_tail_share(
    rows_PK: Rows, popularity: Int[np.ndarray, " n_items"], *, k: int, head: float = 0.8
) -> PerRequest:
    """Return the share of the first k ranks given to items outside the head.

    The head is the smallest set of items that holds the share ``head`` of all past positives.
    """
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    is_tail = np.ones(len(popularity) + 1, dtype=bool)
    is_tail[order[before < head * popularity.sum()]] = False
    is_tail[NO_ITEM] = False  # the last cell, where an invalid SID looks
    return is_tail[_top(rows_PK, k)].mean(axis=1)


def head_share(rows_PK: Rows, amounts_N: Float[np.ndarray, " N"], *, k: int, share: float = 0.01) -> PerRequest:
    """Return the share of the first k ranks given to the top ``share`` of items by an amount, such as past value."""
    is_head = np.zeros(len(amounts_N) + 1, dtype=bool)
    is_head[_head(amounts_N, share)] = True
    return is_head[_top(rows_PK, k)].mean(axis=1)  # NO_ITEM looks at the last cell, which is False


def top_share(amounts_N: Float[np.ndarray, " N"], *, share: float) -> float:
    """Return what part of a total the top ``share`` of items holds, at least one item; NaN if the total is 0."""
    total = amounts_N.sum()
    return float(amounts_N[_head(amounts_N, share)].sum() / total) if total > 0 else float("nan")


def coverage(rows_PK: Rows, *, k: int, n_items: int) -> float:
    """Return the share of the catalogue that stands in at least one request's first k ranks."""
    return int((_exposures(rows_PK, k=k, n_items=n_items) > 0).sum()) / n_items


def distinct_at_1(rows_PK: Rows) -> int:
    """Count the different items that stand first for at least one request: a collapse shows here early."""
    return len(np.setdiff1d(_top(rows_PK, 1), [NO_ITEM]))


def top_item_share(rows_PK: Rows, *, k: int) -> float:
    """Return the share of valid recommendations taken by the most recommended item; NaN if none is valid."""
    rows = _top(rows_PK, k)
    counts = np.unique(rows[rows != NO_ITEM], return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) else float("nan")


def gini(rows_PK: Rows, *, k: int, n_items: int) -> float:
    """Return the Gini coefficient of exposure over the whole catalogue: 0 equal, towards 1 one item gets all.

    NaN if no recommendation is valid.
    """
    return gini_of(_exposures(rows_PK, k=k, n_items=n_items))


def gini_of(amounts_N: Int[np.ndarray, " N"] | Float[np.ndarray, " N"]) -> float:
    """Return the Gini coefficient of amounts of at least 0; NaN if all are 0."""
    amounts = np.sort(amounts_N)
    if amounts[-1] == 0:
        return float("nan")
    weights = 2 * np.arange(1, len(amounts) + 1) - len(amounts) - 1
    return float(weights @ amounts / (len(amounts) * amounts.sum()))


def user_bootstrap(
    values_P: Float[np.ndarray, " P"], user_ids: Sequence[str] | np.ndarray, *, n: int = 1000, seed: int
) -> Interval:
    """Return the mean over requests with its 95 % percentile interval from resampling users."""
    return bootstrap_columns({"value": values_P}, user_ids, n=n, seed=seed)["value"]


def paired_bootstrap(
    a_P: Float[np.ndarray, " P"],
    b_P: Float[np.ndarray, " P"],
    user_ids: Sequence[str] | np.ndarray,
    *,
    n: int = 1000,
    seed: int,
) -> Interval:
    """Return the mean of a - b over the same requests, with its interval from resampling users."""
    if len(a_P) != len(b_P):
        raise DataError(f"paired bootstrap: {len(a_P)} against {len(b_P)} requests; score both on the same ones")
    return user_bootstrap(np.asarray(a_P) - np.asarray(b_P), user_ids, n=n, seed=seed)


def bootstrap_columns(
    columns: Mapping[Name, Float[np.ndarray, " P"]],
    user_ids: Sequence[str] | np.ndarray,
    *,
    n: int = 1000,
    seed: int,
) -> dict[Name, Interval]:
    """Return an interval for each column; all columns see the same draws of users.

    A draw takes as many users as there are, with replacement, each with all its requests. Of a column with NaN only
    the other requests count, and only draws that hold one.
    """
    if not columns:
        return {}
    values_PC = np.stack([np.asarray(v, dtype=np.float64) for v in columns.values()], axis=1)
    if len(values_PC) != len(user_ids) or not len(values_PC):
        raise DataError(f"bootstrap: {len(values_PC)} values for {len(user_ids)} user ids; give one id a value")
    users, user_of_request = np.unique(np.asarray(user_ids), return_inverse=True)
    n_columns = values_PC.shape[1]
    is_defined_PC = ~np.isnan(values_PC)
    partial = np.flatnonzero(~is_defined_PC.all(axis=0))
    added = (np.where(is_defined_PC, values_PC, 0.0), np.ones(len(values_PC)), is_defined_PC[:, partial])
    totals_UC = np.zeros((len(users), n_columns + 1 + len(partial)))
    np.add.at(totals_UC, user_of_request, np.column_stack(added))
    drawn = _draw_users(totals_UC, n=n, seed=seed)
    means = drawn[:, :n_columns] / drawn[:, n_columns, None]
    low_C, high_C = np.percentile(means, [2.5, 97.5], axis=0)
    mean_C = values_PC.mean(axis=0)
    for place, column in enumerate(partial):
        count = drawn[:, n_columns + 1 + place]
        held = drawn[count > 0, column] / count[count > 0]
        low_C[column], high_C[column] = np.percentile(held, [2.5, 97.5]) if len(held) else (np.nan, np.nan)
        defined = values_PC[is_defined_PC[:, column], column]
        mean_C[column] = defined.mean() if len(defined) else np.nan
    return {
        name: Interval(float(mean), float(low), float(high))
        for name, mean, low, high in zip(columns, mean_C, low_C, high_C, strict=True)
    }


def _draw_users(totals_UC: Float[np.ndarray, "U C"], *, n: int, seed: int) -> Float[np.ndarray, "n C"]:
    rng = np.random.default_rng(seed)
    n_users = len(totals_UC)
    per_chunk = max(1, _CELLS_PER_CHUNK // n_users)
    chunks = []
    for start in range(0, n, per_chunk):
        draws = min(per_chunk, n - start)
        picks = rng.integers(n_users, size=(draws, n_users)) + n_users * np.arange(draws)[:, None]
        times_drawn = np.bincount(picks.ravel(), minlength=draws * n_users).reshape(draws, n_users)
        chunks.append(times_drawn.astype(np.float64) @ totals_UC)
    return np.concatenate(chunks)


def _top(values_PK: np.ndarray, k: int) -> np.ndarray:
    ranks = values_PK.shape[1]
    if not 1 <= k <= ranks:
        raise ConfigError(f"k={k} is outside 1..{ranks}, the ranks predicted; lower k or predict more candidates")
    return values_PK[:, :k]


def _head(amounts_N: Float[np.ndarray, " N"], share: float) -> Int[np.ndarray, " n"]:
    if not 0 < share <= 1:
        raise ConfigError(f"share {share} of items must be above 0 and at most 1")
    return np.argsort(-amounts_N, kind="stable")[: int(np.ceil(share * len(amounts_N)))]


def _exposures(rows_PK: Rows, *, k: int, n_items: int) -> Int[np.ndarray, " n_items"]:
    rows = _top(rows_PK, k)
    return np.bincount(rows[rows != NO_ITEM], minlength=n_items)


def _gains_by_rank(rows_PK: Rows, positives: Ragged, gains: Ragged | None, k: int) -> Float[np.ndarray, "P k"]:
    """Return each rank's gain: its item's, if the item is a positive that no earlier rank held; else 0."""
    rows_PK = _top(rows_PK, k)
    if len(rows_PK) != len(positives):
        raise DataError(f"{len(rows_PK)} lists for {len(positives)} requests; give one list a request")
    request_D, row_D, gain_D = _distinct_positives(positives, gains)
    stride = max(rows_PK.max(initial=0), row_D.max(initial=0)) + 1
    key_D = request_D * stride + row_D
    key_PK = np.arange(len(rows_PK))[:, None] * stride + rows_PK
    place_PK = np.searchsorted(key_D, key_PK)
    padded_key_D, padded_gain_D = np.append(key_D, -1), np.append(gain_D, 0.0)
    is_counted_PK = (padded_key_D[place_PK] == key_PK) & (rows_PK != NO_ITEM) & _is_first(rows_PK)
    return np.where(is_counted_PK, padded_gain_D[place_PK], 0.0)


def _worthy(positives: Ragged, values: Ragged) -> tuple[Ragged, Ragged]:
    """Leave out positives that are worth nothing."""
    is_worthy = [np.asarray(value) > 0 for value in values]
    return tuple(  # type: ignore[return-value]
        [np.asarray(part)[chosen] for part, chosen in zip(parts, is_worthy, strict=True)]
        for parts in (positives, values)
    )


def _ideal_gains(positives: Ragged, gains: Ragged | None, *, k: int | None) -> Float[np.ndarray, "P width"]:
    """Return the gains of the best possible lists, padded with 0; k=None keeps every positive."""
    request_D, _, gain_D = _distinct_positives(positives, gains)
    count_P = np.bincount(request_D, minlength=len(positives))
    if (empty := np.flatnonzero(count_P == 0)).size:
        raise DataError(f"request {empty[0]} has no positive ({empty.size} such); leave these pages out")
    by_gain = np.lexsort((-gain_D, request_D))
    place_D = np.arange(len(request_D)) - np.repeat(np.cumsum(count_P) - count_P, count_P)
    width = int(count_P.max()) if k is None else min(k, int(count_P.max()))
    ideal = np.zeros((len(positives), width))
    kept = place_D < width
    ideal[request_D[kept], place_D[kept]] = gain_D[by_gain][kept]
    return ideal


def _distinct_positives(
    positives: Ragged, gains: Ragged | None
) -> tuple[Int[np.ndarray, " D"], Int[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    """Flatten to (request, row, gain), sorted by request and row; a repeated row keeps its best gain."""
    request_D = np.repeat(np.arange(len(positives)), [len(page) for page in positives])
    row_D = np.concatenate([np.asarray(page, dtype=np.int64) for page in positives] or [np.zeros(0, np.int64)])
    gain_D = np.ones(len(row_D)) if gains is None else np.concatenate([np.asarray(g, float) for g in gains])
    if len(gain_D) != len(row_D) or (gain_D <= 0).any() or (row_D < 0).any():
        raise DataError("positives need rows of at least 0 and one gain above 0 each; leave exposed items out")
    order = np.lexsort((-gain_D, row_D, request_D))
    request_D, row_D, gain_D = request_D[order], row_D[order], gain_D[order]
    is_new_D = np.append(True, (np.diff(request_D) != 0) | (np.diff(row_D) != 0))[: len(row_D)]
    return request_D[is_new_D], row_D[is_new_D], gain_D[is_new_D]


def _is_first(rows_PK: Rows) -> Bool[np.ndarray, "P K"]:
    """Whether no earlier rank of the same list holds the same row."""
    order_PK = np.argsort(rows_PK, axis=1, kind="stable")
    sorted_PK = np.take_along_axis(rows_PK, order_PK, axis=1)
    is_new_PK = np.ones(rows_PK.shape, dtype=bool)
    is_new_PK[:, 1:] = sorted_PK[:, 1:] != sorted_PK[:, :-1]
    is_first_PK = np.empty_like(is_new_PK)
    np.put_along_axis(is_first_PK, order_PK, is_new_PK, axis=1)
    return is_first_PK
