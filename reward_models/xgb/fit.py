"""Train the trees with early stopping on held-out requests, then calibrate their margin on the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import xgboost
from jaxtyping import Float32, Int

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Example
from reward_models.candidates import LabelledCandidates
from reward_models.quality import fit_platt
from reward_models.xgb.counts import LogCounts
from reward_models.xgb.extras import Extras, KnownNames
from reward_models.xgb.features import FEATURES, ItemTables, request_features
from reward_models.xgb.reward import XGB, Platt

_METRIC = {"binary:logistic": "logloss", "rank:ndcg": "ndcg@10"}


@dataclass(frozen=True)
class FitSettings:
    """How trees are trained."""

    objective: Literal["binary:logistic", "rank:ndcg"] = field(
        default="binary:logistic", metadata={"help": "a probability each | the order inside a request"}
    )
    n_trees: int = field(default=500, metadata={"help": "at most"})
    patience: int = field(default=20, metadata={"help": "trees without a better tuning metric before stopping"})
    learning_rate: float = field(default=0.1, metadata={"help": "shrinkage of each tree"})
    max_depth: int = field(default=6, metadata={"help": "of a tree"})
    min_child_weight: float = field(default=5.0, metadata={"help": "least weight of a leaf"})
    subsample: float = field(default=0.8, metadata={"help": "share of candidates a tree sees"})
    colsample: float = field(default=0.8, metadata={"help": "share of features a tree sees"})
    max_history: int = field(default=50, metadata={"help": "newest history items that are read"})
    named_columns: bool = field(
        default=False, metadata={"help": "trees also see an item's category and first SID code by name"}
    )
    n_threads: int = field(default=0, metadata={"help": "0: all cores; trees differ a little with the number"})

    def __post_init__(self) -> None:
        if self.objective not in _METRIC:
            raise ConfigError(f"XGB: objective '{self.objective}' is not one of {', '.join(_METRIC)}")
        for name, least in (("n_trees", 1), ("patience", 1), ("max_depth", 1), ("max_history", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"XGB: {name} {getattr(self, name)} must be at least {least}")
        for name in ("learning_rate", "subsample", "colsample"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"XGB: {name} {getattr(self, name)} must be above 0 and at most 1")


def fit_xgb(
    pages: Sequence[Example],
    taught: LabelledCandidates,
    tuning: LabelledCandidates,
    *,
    catalog: Catalog,
    categories: Int[np.ndarray, " n"],
    attributes: Float32[np.ndarray, "n A"] | None = None,
    settings: FitSettings,
    seed: int,
    scorer: RewardModel | None = None,
) -> XGB:
    """Count, train with early stopping, calibrate. Deterministic given the seed and the number of threads.

    Args:
        pages: all training pages: what is counted.
        taught: labelled candidates of training requests.
        tuning: labelled candidates of held-out requests: they choose the number of trees and the calibration.
        catalog: SID codes and vectors of the items.
        categories: each row's category, -1 for none.
        attributes: each row's ``attribute_vectors``; None: trees see none.
        settings: how to train.
        seed: of the trees' samples.
        scorer: another reward model, such as SIM, whose log-odds the trees see too.

    Raises:
        DataError: when there is nothing to learn from.
    """
    for name, part in (("taught", taught), ("tuning", tuning)):
        if len(np.unique(part.labels_PG[part.is_real_PG])) < 2:
            raise DataError(f"XGB: {part.is_real_PG.sum()} {name} candidates lack a positive or a negative")
    items = ItemTables(catalog.semantic_codes, np.asarray(catalog.vectors, np.float32), categories, attributes)
    counts = LogCounts.fit(pages, n_items=len(categories))
    learnt = taught.rows_PG[taught.is_real_PG]
    extras = Extras(scorer, KnownNames.of(items, learnt) if settings.named_columns else None)
    matrices = []
    for part in (taught, tuning):
        features_PGF = request_features(counts, items, part.contexts, part.rows_PG, max_history=settings.max_history)
        features_PGF = extras.append_to(features_PGF, items, part.contexts, part.rows_PG)
        matrices.append(_matrix(features_PGF, part, extras))
    booster = xgboost.train(
        {
            "objective": settings.objective,
            "eval_metric": _METRIC[settings.objective],
            "tree_method": "hist",
            "eta": settings.learning_rate,
            "max_depth": settings.max_depth,
            "min_child_weight": settings.min_child_weight,
            "subsample": settings.subsample,
            "colsample_bytree": settings.colsample,
            "nthread": settings.n_threads,
            "seed": seed,
        },
        matrices[0],
        num_boost_round=settings.n_trees,
        evals=[(matrices[1], "tuning")],
        early_stopping_rounds=settings.patience,
        verbose_eval=False,
    )
    booster = booster[: booster.best_iteration + 1]
    model = XGB(
        booster,
        counts,
        items,
        catalog_fingerprint=catalog.fingerprint,
        max_history=settings.max_history,
        calibration=Platt(),
        extras=extras,
    )
    margins = model.margins(tuning.contexts, tuning.rows_PG)[tuning.is_real_PG]
    model.calibration = Platt(*fit_platt(margins, tuning.labels_PG[tuning.is_real_PG]))
    return model


def _matrix(
    features_PGF: Float32[np.ndarray, "P G F"], candidates: LabelledCandidates, extras: Extras
) -> xgboost.DMatrix:
    """Lay real candidates out, each with its request's number."""
    is_real_PG = candidates.is_real_PG
    requests_PG = np.broadcast_to(np.arange(len(is_real_PG))[:, None], is_real_PG.shape)
    return xgboost.DMatrix(
        features_PGF[is_real_PG],
        label=candidates.labels_PG[is_real_PG],
        qid=requests_PG[is_real_PG],
        feature_types=["q"] * len(FEATURES) + extras.types if extras.columns else None,
        enable_categorical=extras.names is not None,
    )
