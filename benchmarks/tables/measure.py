"""From the lists that systems answered with to the numbers of a table.

P   requests        K   ranks        S   seeds
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from benchmarks.tables.protocols import NARROW_BEAMS
from genrec_rl import metrics
from genrec_rl.data.pages import DAY
from genrec_rl.evaluation.evaluate import PAIR
from genrec_rl.types import Example, Interval

COLUMNS = "columns.npz"
Columns = dict[str, Float[np.ndarray, " P"]]
METRICS = (("Recall", metrics.recall), ("NDCG", metrics.ndcg), ("HR", metrics.hit_rate))
BY_STRATUM = ("Recall@10", "NDCG@10", "HR@10")
KS = {"Recall": (5, 10), "NDCG": (5, 10), "HR": (1, 10, 50)}


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Rows of catalogue items, best first: constrained; and, of a policy, of fewer beams, free ones, free samples.

    NO_ITEM is an invalid SID.
    """

    constrained_PK: Int[np.ndarray, "P K"]
    narrow_PK: Int[np.ndarray, "P K"] | None = None
    free_PK: Int[np.ndarray, "P K"] | None = None
    sampled_PK: Int[np.ndarray, "P K"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """What was asked, in the form that measuring needs."""

    user_ids: np.ndarray
    positives: Sequence[np.ndarray]
    seen: Sequence[np.ndarray]
    is_same_day: Bool[np.ndarray, " P"]
    is_held_out: Bool[np.ndarray, " P"] | None = None

    @classmethod
    def of(cls, examples: Sequence[Example], *, is_held_out: Callable[[Example], bool] | None = None) -> "Requests":
        """Read them off a split's examples with their whole histories.

        ``is_held_out`` says whose validation requests were no unlabelled prompts of RL.
        """
        return cls(
            user_ids=np.array([example.context.user_id for example in examples]),
            positives=[example.positives for example in examples],
            seen=[example.context.seen for example in examples],
            is_same_day=np.array([follows_same_day(example) for example in examples]),
            is_held_out=None if is_held_out is None else np.array([is_held_out(example) for example in examples]),
        )

    @property
    def strata(self) -> dict[str, Bool[np.ndarray, " P"]]:
        """Return which requests are of each stratum, leaving out divisions of which one side is empty.

        By the newest history item's day, which is the request's own or an earlier one; by how many items are
        positive; and by whether the user's validation request was an unlabelled prompt of RL.
        """
        has_several = np.array([len(positives) > 1 for positives in self.positives])
        divisions = [("/same_day", "/new_day", self.is_same_day), ("/several", "/one", has_several)]
        if self.is_held_out is not None:
            divisions.append(("/held_out", "/unlabelled", self.is_held_out))
        return {
            name: part
            for yes, no, is_in in divisions
            if 0 < is_in.sum() < len(is_in)
            for name, part in ((yes, is_in), (no, ~is_in))
        }


def read_columns(folder: Path) -> Columns:
    """Return what a cell kept of each request."""
    with np.load(folder / COLUMNS, allow_pickle=False) as arrays:
        return dict(arrays)


def write_columns(folder: Path, columns: Columns) -> None:
    """Keep one number a request and metric."""
    np.savez_compressed(folder / COLUMNS, allow_pickle=False, **columns)


def follows_same_day(example: Example) -> bool:
    """Whether the newest history item is of the request's own day (UTC)."""
    times = example.context.history_times
    return len(times) > 0 and bool(times[-1] // DAY == example.context.time // DAY)


def measure(answers: Answers, requests: Requests) -> Columns:
    """Return one number a request for every metric: accuracy, the same without seen items, HaR of free answers."""
    columns: Columns = {}
    lists = {"": answers.constrained_PK, "/unseen": metrics.without_seen(answers.constrained_PK, requests.seen)}
    for suffix, rows_PK in lists.items():
        for name, metric in METRICS:
            for k in KS[name]:
                columns[f"{name}@{k}{suffix}"] = metric(rows_PK, requests.positives, k=k)
    if answers.narrow_PK is not None:
        for name, metric in METRICS[:2]:
            columns[f"{name}@10/{NARROW_BEAMS}_beams"] = metric(answers.narrow_PK, requests.positives, k=10)
    if answers.free_PK is not None:
        for k in (10, 50):
            columns[f"HaR@{k}"] = metrics.hallucination_rate(answers.free_PK, k=k)
    if answers.sampled_PK is not None:
        columns["HaR-s"] = metrics.hallucination_rate(answers.sampled_PK, k=answers.sampled_PK.shape[1])
    return columns


def summarise(columns: Columns, requests: Requests) -> dict[str, float]:
    """Return means: of all metrics over all requests, and of the main ones over each stratum.

    A request that a metric says nothing of is NaN and left out: value@K of a page that was worth nothing.
    """
    means = {name: float(np.nanmean(values)) for name, values in columns.items()}
    for suffix, is_in in requests.strata.items():
        means |= {name + suffix: float(columns[name][is_in].mean()) for name in BY_STRATUM}
    return means


def pair(
    systems: Mapping[str, Mapping[int, Columns]],
    pairs: Sequence[tuple[str, str]],
    requests: Requests,
    *,
    unseeded: Collection[str] = (),
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """Return a - b of each pair on the same users, the mean over the seeds that both have, strata included.

    The intervals hold the sampling of users, not of training seeds. A pair without a common seed is left out.

    Args:
        systems: columns by name and training seed.
        pairs: names.
        requests: what was asked.
        unseeded: systems in which nothing is drawn: their one answer stands against each seed of the other.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    found: dict[str, dict[str, Interval]] = {}
    for a, b in pairs:
        both = shared_seeds(systems, a, b, unseeded=unseeded)
        if not both:
            continue
        compared = [(systems[a][x], systems[b][y]) for x, y in both]
        differences = {
            name: np.mean([of_a[name] - of_b[name] for of_a, of_b in compared], axis=0)
            for name in compared[0][0]
            if all(name in of_a and name in of_b for of_a, of_b in compared)
        }
        key = f"{a}{PAIR}{b}"
        found[key] = metrics.bootstrap_columns(differences, requests.user_ids, n=draws, seed=seed)
        for suffix, is_in in requests.strata.items():
            part = {name + suffix: differences[name][is_in] for name in BY_STRATUM}
            found[key] |= metrics.bootstrap_columns(part, requests.user_ids[is_in], n=draws, seed=seed)
    return found


def shared_seeds(
    systems: Mapping[str, Mapping[int, Columns]], a: str, b: str, *, unseeded: Collection[str] = ()
) -> list[tuple[int, int]]:
    """Return the seeds of a and of b that are compared: equal ones, or an unseeded system's one with each."""
    if a in unseeded or b in unseeded:
        return [(x, y) for x in systems[a] for y in systems[b]]
    return [(seed, seed) for seed in sorted(systems[a]) if seed in systems[b]]
