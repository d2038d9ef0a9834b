"""Value-aware supervised learning (VSL; GR4AD, arXiv:2602.22732): what an answer is worth, and how much it counts.

    L_NTP = L_SID + lambda_e L_value          L_VSL = E[w L_NTP + lambda_mtp L_MTP]          w = w_user w_behavior

``L_value`` is the negative log-probability of one more token behind the item: the bucket of its value. E is over the
answers' SID tokens, as in plain SFT; L_MTP is of LazyAR policies (``sft/mtp.py``).

    N items of all pages     M history items     U users     m items of an answer     n weights
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from genrec_rl.data.pages import PageTable
from genrec_rl.data.store import Dataset
from genrec_rl.data.values import ValueBuckets, fit_buckets, is_training_positive
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.models.policy import Policy
from genrec_rl.sft.targets import WHOLE, Answers

NO_VALUES = (
    "n_value_buckets and value_user_weight need to know what events are worth: add a column `value` to "
    "events.parquet and prepare the data again, or set both to 0"
)


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """How much answers count; with the defaults all alike.

    Attributes:
        user: strength of a user's value in his weight, see ``user_weights``; 0: users count alike.
        actions: w_behavior of an ordered, a clicked and an exposed item.
        clip: percentile of the weights that larger ones are cut to; 100: none is.

    Raises:
        ConfigError: for a strength below 0, weights that do not fall from order to exposure, or a clip outside
            50..100.
    """

    user: float = 0.0
    actions: tuple[float, float, float] = (1.0, 1.0, 1.0)
    clip: float = 99.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.user) and self.user >= 0):
            raise ConfigError(f"value_user_weight {self.user} must be a number of at least 0; 0 leaves it out")
        is_falling = len(self.actions) == 3 and self.actions[0] >= self.actions[1] >= self.actions[2] >= 0
        if not (is_falling and np.isfinite(self.actions).all() and self.actions[0] > 0):
            raise ConfigError(
                f"action_weights {list(self.actions)} must be three numbers of at least 0, those of order, click and "
                "exposure, of which none is larger than the one before, as in 2 1 0.5"
            )
        if not 50 <= self.clip <= 100:
            raise ConfigError(
                f"value_weight_clip {self.clip} is a percentile: give 50 to 100 (100: no weight is cut)"
            )

    @property
    def weighs(self) -> bool:
        """Whether any answer counts more than another."""
        return self.user > 0 or len(set(self.actions)) > 1


@dataclass(frozen=True, slots=True, eq=False)
class Worth:
    """The value token and the weight of each item of each page; None where there are none."""

    answers: Answers
    places: Int[np.ndarray, " M"]
    tokens: Int[np.ndarray, " N"] | None = None
    weights: Float32[np.ndarray, " N"] | None = None

    def value_tokens(self, i: int) -> Int[np.ndarray, " m"]:
        """Return the tokens that stand behind answer i: one, or none."""
        if self.tokens is None:
            return np.zeros(0, np.int64)
        return self.tokens[item_places(self.answers, i, self.places)]

    def token_weights(self, i: int, *, n_levels: int) -> Float32[np.ndarray, " c"]:
        """Return the weight of each token of answer i, its value tokens behind the SIDs."""
        here = item_places(self.answers, i, self.places)
        weights = np.ones(len(here), np.float32) if self.weights is None else self.weights[here]
        return np.concatenate([weights.repeat(n_levels), weights[: len(self.value_tokens(i))]])


def worth_of(
    answers: Answers, train: Int[np.ndarray, " n"], policy: Policy, *, teaches_value: bool, plan: WeightPlan
) -> Worth | None:
    """Look up what the answers are worth; None where neither tokens nor weights are wanted.

    Args:
        answers: what is taught.
        train: the pages that users' values are summed over.
        policy: has the value tokens.
        teaches_value: whether an answer ends with its value token.
        plan: how much answers count.

    Raises:
        ConfigError: for value tokens behind whole pages.
        DataError: when values are wanted of data that have none, or all weights are 0.
    """
    if not teaches_value and not plan.weighs:
        return None
    table, tokens, weights = answers.table, None, None
    places = table.item_places()
    if table.values is None and (teaches_value or plan.user > 0):
        raise DataError(NO_VALUES)
    if teaches_value:
        if (answers.entries == WHOLE).any():
            raise ConfigError(
                "n_value_buckets needs target item or running: in the answer of a whole page the next item would be "
                "written behind a value, which nobody knows when items are recommended"
            )
        if policy.values is None or table.values is None:
            raise ConfigError("the policy has no value tokens to teach: make it with `create_policy(values=...)`")
        tokens = policy.vocab.value_tokens.start + policy.values.of(table.values)
    if plan.weighs:
        raw_N = np.array([np.nan, *reversed(plan.actions)])[table.actions]
        if plan.user > 0:
            users = np.cumsum(table.starts_user) - 1
            raw_N = raw_N * user_weights(user_values(table, train), strength=plan.user)[users[table.item_pages]]
        taught = np.concatenate([item_places(answers, i, places) for i in range(len(answers))])
        weights = clipped_to_mean_1(raw_N, taught, percentile=plan.clip).astype(np.float32)
    return Worth(answers, places, tokens, weights)


def training_buckets(dataset: Dataset, *, n_buckets: int) -> ValueBuckets | None:
    """Fit the value buckets to the clicked and ordered items of training pages; None for 0 buckets.

    Raises:
        ConfigError: for less than 0 buckets.
        DataError: when no such item is worth anything.
    """
    if n_buckets == 0:
        return None
    pages = dataset.pages
    if pages.values is None:
        raise DataError(NO_VALUES)
    return fit_buckets(pages.values[is_training_positive(pages, dataset.split.train)], n_buckets=n_buckets)


def vsl_total(
    nll: Float[Tensor, "*labels"],
    weights: Float[Tensor, "*labels"],
    is_value: Bool[Tensor, "*labels"],
    *,
    value_coef: float,
) -> Float[Tensor, ""]:
    """Return the sum over labels of w L_SID + lambda_e w L_value (GR4AD, VSL), of which a mean is made."""
    weighted = nll * weights
    return weighted.masked_fill(is_value, 0).sum() + value_coef * weighted.masked_fill(~is_value, 0).sum()


def item_places(answers: Answers, i: int, places: Int[np.ndarray, " M"]) -> Int[np.ndarray, " m"]:
    """Return where the items of answer i stand among all pages' items; a page's own begin with its positives."""
    if answers.entries[i] != WHOLE:
        return places[answers.entries[i] : answers.entries[i] + 1]
    return answers.table.item_offsets[answers.pages[i]] + np.arange(len(answers.items(i)))


def user_values(table: PageTable, train: Int[np.ndarray, " n"]) -> Float[np.ndarray, " U"]:
    """Return what each user's clicked and ordered items of these pages are worth together."""
    is_taught = is_training_positive(table, train)
    users = np.cumsum(table.starts_user) - 1
    values = np.zeros(len(table.items)) if table.values is None else table.values
    return np.bincount(users[table.item_pages][is_taught], weights=values[is_taught], minlength=users[-1] + 1)


def user_weights(values_U: Float[np.ndarray, " U"], *, strength: float) -> Float[np.ndarray, " U"]:
    """Return w_user = 1 + strength * log1p(V_u / mean of V): 1 for a user worth nothing, whatever the currency.

    GR4AD names a user's long-run value and no formula; this one is ours.

    Raises:
        DataError: when no user is worth anything.
    """
    if not values_U.any():
        raise DataError("value_user_weight: no user's training pages are worth more than 0; set it to 0")
    return 1 + strength * np.log1p(values_U / values_U.mean())


def clipped_to_mean_1(
    weights_N: Float[np.ndarray, " N"], taught: Int[np.ndarray, " n"], *, percentile: float
) -> Float[np.ndarray, " N"]:
    """Return min(w, percentile of w) / mean of that, percentile and mean being those of the taught items.

    Raises:
        DataError: when all of these weigh 0.
    """
    limit = np.percentile(weights_N[taught], percentile)
    cut_N = np.minimum(weights_N, limit)
    mean = cut_N[taught].mean()
    if mean == 0:
        raise DataError("action_weights leave every answer a weight of 0; give what is taught a larger one")
    return cut_N / mean
