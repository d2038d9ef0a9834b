"""Recommenders and test requests in, per-request metrics and an EvalReport out.

A system is anything that recommends: a policy behind its beam search, popularity, a re-ranker. All systems
answer the same requests, so that any two can be compared user by user.

    P   requests        K   ranks predicted        L   SID levels        N   catalogue items
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from genrec_rl import metrics
from genrec_rl.data.store import Dataset
from genrec_rl.decoding.recommender import Recommender
from genrec_rl.errors import ConfigError, DataError, RolloutError
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.rewards.scoring import score_candidates
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import NO_ITEM, Action, EvalReport, Example, Interval

Decoding = Literal["constrained", "unconstrained"]
DECODINGS: tuple[Decoding, ...] = ("constrained", "unconstrained")
PAIR = "-"
EXCLUDE_SEEN, POSITIVES_SEEN = "exclude_seen", "positives_seen"
REQUESTS_AT_ONCE = 512
"""Requests between two steps of the progress bar; a recommender cuts them into batches of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """A named recommender, loaded when its turn comes, so that one policy at a time holds memory."""

    name: str
    load: Callable[[], Recommender]
    decodings: tuple[Decoding, ...] = DECODINGS

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name):
            raise ConfigError(f"system name '{self.name}': use letters, digits and _, as in grpo_sr")


@dataclass(frozen=True, slots=True)
class Plan:
    """How systems are compared: ranks reported, items asked for, and the bootstrap."""

    ks: tuple[int, ...] = (1, 10, 50)
    beams: int = 50
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or max(self.ks) > self.beams:
            raise ConfigError(f"ks {list(self.ks)} must lie in 1..{self.beams} (beams); lower them or raise beams")
        if self.draws < 1:
            raise ConfigError(f"bootstrap draws {self.draws} must be at least 1")


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What one system answered under one decoding, parallel to the requests; ``scores`` are log-probabilities."""

    system: str
    decoding: Decoding
    rows_PK: Int[np.ndarray, "P K"]
    sids_PKL: Int[np.ndarray, "P K L"]
    scores_PK: Float[np.ndarray, "P K"]
    rewards: Mapping[str, Float[np.ndarray, "P K"]] = field(default_factory=dict)


def evaluate(
    systems: Sequence[System],
    examples: Sequence[Example],
    *,
    catalog: Catalog,
    popularity: Int[np.ndarray, " N"],
    item_values: Float[np.ndarray, " N"] | None = None,
    plan: Plan,
    scorers: Mapping[str, RewardModel] | None = None,
    protocol: Mapping[str, str | int | float] | None = None,
    sinks: Sequence[Callable[[Predictions], None]] = (),
) -> EvalReport:
    """Ask every system about every request and report metrics with intervals over users.

    Args:
        systems: with distinct names; paired differences are later minus earlier.
        examples: requests with at least one positive each.
        catalog: what rows and SIDs mean.
        popularity: positives of each item in training pages, which tell head from long tail.
        item_values: what each item was worth in training pages; adds ``value@k`` and ``value_head@k``, where requests
            are worth something.
        plan: ranks, beams, batches and bootstrap.
        scorers: reward models whose ungated scores are reported, by metric name: ``{"R": sim}`` gives ``R@10``
            (the maximum) and ``R_mean@10``; an invalid SID scores 0.
        protocol: facts to print with the numbers, such as split and fingerprints.
        sinks: called with each system's answers while they are in memory.

    Raises:
        ConfigError: for two systems of one name.
        DataError: when there is no request, or one without a positive.
        RolloutError: when a constrained answer holds an invalid SID.
    """
    _check(systems, examples)
    examples = list(examples)
    user_ids = np.array([example.context.user_id for example in examples])
    columns: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    report: dict[str, dict[str, dict[str, Interval]]] = {}
    for system in systems:
        recommender = system.load()
        for decoding in system.decodings:
            answers = predict(
                recommender, examples, name=system.name, decoding=decoding, plan=plan, scorers=scorers or {}
            )
            for sink in sinks:
                sink(answers)
            values = measure_requests(
                answers, examples, catalog=catalog, popularity=popularity, item_values=item_values, ks=plan.ks
            )
            columns.setdefault(decoding, {})[system.name] = values
            report.setdefault(system.name, {})[decoding] = metrics.bootstrap_columns(
                values, user_ids, n=plan.draws, seed=plan.seed
            ) | measure_catalogue(answers, n_items=catalog.n_items, ks=plan.ks)
    facts: dict[str, str | int | float] = {"requests": len(examples), "users": len(set(user_ids.tolist()))}
    facts |= {POSITIVES_SEEN: round(positives_seen(examples), 4)}
    facts |= {"ks": ", ".join(map(str, plan.ks)), "beams": plan.beams}
    facts |= {"bootstrap_draws": plan.draws, "bootstrap_seed": plan.seed}
    return EvalReport(protocol=dict(protocol or {}) | facts, systems=report, paired=_pair(columns, user_ids, plan))


def describe(
    dataset: Dataset,
    catalog: Catalog,
    scorers: Mapping[str, RewardModel],
    *,
    split: str,
    max_history: int,
    max_requests: int | None = None,
    exclude_seen: bool = False,
) -> dict[str, str | int | float]:
    """Return the protocol in words: all that must be known to compare the numbers with another table."""
    facts: dict[str, str | int | float] = {
        "data": dataset.card.source,
        "split": f"{split} pages of {dataset.card.split}",
        "page_rule": dataset.card.page_rule,
        "page": dataset.card.page,
        "positives": "clicked and ordered items of the page",
        "exposed": "taken and not liked" if dataset.card.exposed_is_taken else "shown",
        "history": f"newest {max_history} clicked or ordered items before the page",
        "ranking": f"all {catalog.n_items} items, those taken before {'' if exclude_seen else 'not '}excluded",
        EXCLUDE_SEEN: "true" if exclude_seen else "false",
        "hits": "by item; a SID that items share means the most popular of them; an invalid SID keeps its rank",
        "hallucination": "share of free beams that are no item; under the constraint 0 by construction",
        "catalogue": catalog.fingerprint,
    }
    if dataset.card.value is not None:
        facts["value"] = f"of the page's positives, over pages worth more than 0. {dataset.card.value.meaning}"
    facts |= {
        f"scores_of_{name}": f"ungated, invalid = 0, model {model.fingerprint}" for name, model in scorers.items()
    }
    return facts | ({} if max_requests is None else {"max_requests": max_requests})


def positives_seen(examples: Sequence[Example]) -> float:
    """Return the share of positives that their request's user has taken before; 0 without a positive."""
    again = [np.isin(example.positives, example.context.seen) for example in examples]
    return float(np.concatenate(again).mean()) if sum(map(len, again)) else 0.0


def predict(
    recommender: Recommender,
    examples: Sequence[Example],
    *,
    name: str,
    decoding: Decoding,
    plan: Plan,
    scorers: Mapping[str, RewardModel],
) -> Predictions:
    """Collect a recommender's answers batch by batch, scored by the reward models.

    Raises:
        RolloutError: when a constrained answer holds an invalid SID.
    """
    rows, sids, scores = [], [], []
    rewards: dict[str, list[np.ndarray]] = {scorer: [] for scorer in scorers}
    with _progress() as progress:
        task = progress.add_task(f"{name}, {decoding}", total=len(examples))
        for start in range(0, len(examples), REQUESTS_AT_ONCE):
            contexts = [example.context for example in examples[start : start + REQUESTS_AT_ONCE]]
            answer = recommender.recommend(contexts, k=plan.beams, constrained=decoding == "constrained")
            rows.append(answer.rows_PG.cpu().numpy().astype(np.int64))
            sids.append(answer.sids_PGL.cpu().numpy().astype(np.int32))
            scores.append(answer.log_probs_PG.float().cpu().numpy())
            for scorer, model in scorers.items():
                rewards[scorer].append(score_candidates(model, contexts, rows[-1]))
            progress.advance(task, len(contexts))
    rows_PK, scores_PK = np.concatenate(rows), np.concatenate(scores)
    is_invalid = (rows_PK == NO_ITEM) & (scores_PK > -np.inf)  # (-inf: growing beam widths left no answer there)
    if decoding == "constrained" and is_invalid.any():
        raise RolloutError(
            f"{name}: {is_invalid.sum()} invalid SIDs from constrained decoding; "
            "its trie and its catalogue differ, load both from one folder"
        )
    return Predictions(
        system=name,
        decoding=decoding,
        rows_PK=rows_PK,
        sids_PKL=np.concatenate(sids),
        scores_PK=scores_PK,
        rewards={scorer: np.concatenate(parts) for scorer, parts in rewards.items()},
    )


def measure_requests(
    answers: Predictions,
    examples: Sequence[Example],
    *,
    catalog: Catalog,
    popularity: Int[np.ndarray, " N"],
    item_values: Float[np.ndarray, " N"] | None = None,
    ks: Sequence[int],
) -> dict[str, Float[np.ndarray, " P"]]:
    """Return every metric that has one number per request.

    ``_valid_first`` moves invalid SIDs behind valid ones, as a system that filters would; ``_sid`` counts a
    hit when the SID is right, whichever of its items was meant, and appears where items share SIDs. ``value`` is the
    share of the page's value that was found (NaN for a page that was worth nothing), ``value_head`` the share of
    ranks given to the 1 % of items that brought most value; both appear with ``item_values``.
    """
    rows_PK = answers.rows_PK
    positives = [example.positives for example in examples]
    gains = [metrics.action_gains(example.actions[example.actions >= Action.CLICK]) for example in examples]
    variants = {"": (rows_PK, positives)}
    if answers.decoding == "unconstrained":
        order_PK = np.argsort(rows_PK == NO_ITEM, axis=1, kind="stable")
        variants["_valid_first"] = (np.take_along_axis(rows_PK, order_PK, axis=1), positives)
    bucket_N = catalog.rows_of(catalog.codes)
    if (bucket_N != np.arange(catalog.n_items)).any():
        bucket_PK = np.where(rows_PK == NO_ITEM, NO_ITEM, bucket_N[rows_PK])
        variants["_sid"] = (bucket_PK, [bucket_N[page] for page in positives])
    values = {}
    for k in ks:
        for suffix, (rows, pages) in variants.items():
            values[f"HR{suffix}@{k}"] = metrics.hit_rate(rows, pages, k=k)
            values[f"NDCG{suffix}@{k}"] = metrics.ndcg(rows, pages, k=k)
        values[f"Recall@{k}"] = metrics.recall(rows_PK, positives, k=k)
        values[f"NDCG_graded@{k}"] = metrics.ndcg(rows_PK, positives, k=k, gains=gains)
        values[f"HaR@{k}"] = metrics.hallucination_rate(rows_PK, k=k)
        values[f"seen@{k}"] = metrics.seen_share(rows_PK, [example.context.seen for example in examples], k=k)
        values[f"long_tail@{k}"] = metrics.long_tail_share(rows_PK, popularity, k=k)
        for scorer, rewards_PK in answers.rewards.items():
            values[f"{scorer}@{k}"] = metrics.reward_at_k(rewards_PK, k=k)
            values[f"{scorer}_mean@{k}"] = metrics.reward_at_k(rewards_PK, k=k, reduce="mean")
    worth = [example.positive_values for example in examples]
    if item_values is not None and any(value.any() for value in worth):
        for k in ks:
            values[f"value@{k}"] = metrics.value_recall(rows_PK, positives, worth, k=k)
            values[f"value_head@{k}"] = metrics.head_share(rows_PK, item_values, k=k)
    return values


def measure_catalogue(answers: Predictions, *, n_items: int, ks: Sequence[int]) -> dict[str, Interval]:
    """Return the metrics of all lists together.

    They have no interval (NaN): a bootstrap repeats users, and repeated users cover less of the catalogue.
    """
    values: dict[str, float] = {"distinct@1": metrics.distinct_at_1(answers.rows_PK)}
    for k in ks:
        values[f"coverage@{k}"] = metrics.coverage(answers.rows_PK, k=k, n_items=n_items)
        values[f"top_item_share@{k}"] = metrics.top_item_share(answers.rows_PK, k=k)
        values[f"gini@{k}"] = metrics.gini(answers.rows_PK, k=k, n_items=n_items)
    return {name: Interval(float(value), math.nan, math.nan) for name, value in values.items()}


def _check(systems: Sequence[System], examples: Sequence[Example]) -> None:
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        raise ConfigError(f"systems {', '.join(names)}: each needs a name of its own")
    if not len(examples):
        raise DataError("0 requests to evaluate on; choose a split that holds some")


def _pair(
    columns: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], user_ids: np.ndarray, plan: Plan
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Return later minus earlier for every two systems under one decoding."""
    paired: dict[str, dict[str, dict[str, Interval]]] = {}
    for decoding, by_system in columns.items():
        names = list(by_system)
        pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
        differences = {
            (a, b, metric): value - by_system[b][metric] for a, b in pairs for metric, value in by_system[a].items()
        }
        for (a, b, metric), interval in metrics.bootstrap_columns(
            differences, user_ids, n=plan.draws, seed=plan.seed
        ).items():
            paired.setdefault(f"{a}{PAIR}{b}", {}).setdefault(decoding, {})[metric] = interval
    return paired


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
