"""The two contracts that scorers implement: RewardModel (how good) and Gate (relevant at all, eq. 6).

    P   requests        G   candidates per request

Both see a request's Context, never its page, so a score cannot leak the answer. Both score catalogue rows: an
invalid SID never reaches them (its reward is 0 by rule, see ``rewards.scoring``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from genrec_rl.types import Context


@runtime_checkable
class RewardModel(Protocol):
    """Preference of a user for an item, in [0, 1] (GenRec's r_SIM)."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the weights and settings; two models that may score differently differ here."""
        ...

    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        """Score valid catalogue rows for each request: finite values in [0, 1], of the candidates' shape."""
        ...

    def save_pretrained(self, path: str | Path) -> None:
        """Write weights (safetensors or JSON, never pickle) and a manifest into a folder."""
        ...

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Load what ``save_pretrained`` wrote.

        Raises:
            DataError: when a file is missing or differs from the manifest.
        """
        ...


@runtime_checkable
class Gate(Protocol):
    """Relevance s_i of a candidate; it passes when s_i > tau (GenRec, eq. 6)."""

    @property
    def tau(self) -> float:
        """The threshold; a candidate passes strictly above it."""
        ...

    def similarity(
        self,
        contexts: Sequence[Context],
        candidates: Int[np.ndarray, "P G"],
        positives: Sequence[Int[np.ndarray, " m"]] | None,
    ) -> Float[np.ndarray, "P G"]:
        """Return s_i of valid catalogue rows.

        ``positives`` are the page's ordered and clicked items; they are given in training only, and a gate
        whose reference is ``history+page`` compares with them too.
        """
        ...
