"""The nouns. Read this file and you know what flows between the folders.

Items are referred to by their catalogue row (0-based position in ``items.parquet``) everywhere inside the
framework; the user's own ``item_id`` appears only where tables are read and written.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

NO_ITEM = -1
"""The row of a semantic id that maps to no item: an invalid SID, which is data to be counted."""


class Action(IntEnum):
    """What a user did with an item, by intensity (GenRec, eq. 3: ordered, then clicked, then exposed)."""

    EXPOSE = 1
    CLICK = 2
    ORDER = 3


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What is known of a user strictly before a request: all that a policy, gate or reward model may see.

    ``history`` holds the clicked and ordered items, oldest first; the three arrays have one length ``n``
    (0 for a new user). ``history_pages`` numbers the page of each item, so that equal neighbours share one.
    ``disliked`` are items that were taken and not liked, as low ratings say, oldest first and never cut; none where
    an exposed item was only shown.
    """

    user_id: str
    time: int
    history: Int[np.ndarray, " n"]
    history_times: Int[np.ndarray, " n"]
    history_pages: Int[np.ndarray, " n"]
    disliked: Int[np.ndarray, " d"] = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def seen(self) -> Int[np.ndarray, " n+d"]:
        """What the user has taken, liked or not: what nobody takes again, where nobody takes an item twice."""
        return np.concatenate([self.history, self.disliked]) if len(self.disliked) else self.history

    def only(self, kept: Bool[np.ndarray, " n"] | slice) -> "Context":
        """Return the context with those history items alone that are kept."""
        history, times, pages = (column[kept] for column in (self.history, self.history_times, self.history_pages))
        return Context(self.user_id, self.time, history, times, pages, self.disliked)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One request: its context, and the page that followed in target order (GenRec, eq. 3).

    ``items`` and ``actions`` are parallel: ordered items first, then clicked, then exposed. So is ``values``, what
    each item was worth (at least 0); None where the data do not say.
    """

    request_id: str
    context: Context
    items: Int[np.ndarray, " m"]
    actions: Int8[np.ndarray, " m"]
    values: Float[np.ndarray, " m"] | None = None

    @property
    def positives(self) -> Int[np.ndarray, " p"]:
        """Rows of D+ = ordered and clicked, in target order."""
        return self.items[self.actions >= Action.CLICK]

    @property
    def positive_values(self) -> Float[np.ndarray, " p"]:
        """What each of D+ was worth, in target order: 0 where the data do not say."""
        is_positive = self.actions >= Action.CLICK
        return np.zeros(int(is_positive.sum())) if self.values is None else self.values[is_positive]


@dataclass(frozen=True, slots=True, eq=False)
class Rollouts:
    """What a policy proposes for P prompts: G semantic ids each, best first, resolved to catalogue rows."""

    sids_PGL: Int[Tensor, "P G L"]
    rows_PG: Int[Tensor, "P G"]
    log_probs_PG: Float[Tensor, "P G"]

    @property
    def is_valid_PG(self) -> Bool[Tensor, "P G"]:
        """Whether each SID belongs to an item of the catalogue."""
        return self.rows_PG != NO_ITEM


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedRewards:
    """Every stage of a reward, so that each can be logged (GenRec, eq. 6 and 7)."""

    raw_PG: Float[Tensor, "P G"]
    is_relevant_PG: Bool[Tensor, "P G"]
    gated_PG: Float[Tensor, "P G"]
    is_positive_PG: Bool[Tensor, "P G"]
    calibrated_PG: Float[Tensor, "P G"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % bootstrap interval over users."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Measured quality: ``systems[system][decoding][metric]``, and the paired differences ``"a-b"`` alike."""

    protocol: dict[str, str | int | float]
    systems: dict[str, dict[str, dict[str, Interval]]]
    paired: dict[str, dict[str, dict[str, Interval]]] = field(default_factory=dict)
