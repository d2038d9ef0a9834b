"""Gates: is a candidate relevant to this user at all (GenRec, eq. 6)?

These gates know nothing of the reward model, so that what fools the one need not fool the other; a fourth,
``reward_models.sim.gate.SearchGate``, asks SIM's own search. The paper prints neither its similarity nor its tau, so
several definitions are offered, and tau can be fitted to real positives.

    s_i = max over v in the reference set of similarity(candidate i, v),   candidate i passes when s_i > tau

The reference set is the user's history; with ``reference="history+page"`` also the page's positives wherever
they are given, that is in training. With an empty reference set s_i = 1: nothing to be irrelevant to.

    P   requests        G   candidates per request        L   SID levels        m   items of a reference set
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float32, Int
from typing_extensions import override

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.rewards.protocol import Gate
from genrec_rl.rewards.scoring import pass_gate
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import NO_ITEM, Context, Example

Reference = Literal["history", "history+page"]


class ReferenceGate(Gate, ABC):
    """What gates share: a similarity to each item of the reference set, of which the largest counts.

    Args:
        tau: a number in ``tau_range``, its end excluded, or ``{percentile: 5}`` (see ``fit_tau``).
        reference: what to compare with.
        examples: validation pages, needed to fit tau.
        tau_range: least and largest similarity.
    """

    def __init__(
        self,
        *,
        tau: float | dict[str, float],
        reference: Reference,
        examples: Sequence[Example] | None,
        tau_range: tuple[float, float],
    ) -> None:
        if reference not in get_args(Reference):
            raise ConfigError(f"gate: reference '{reference}' is not one of {', '.join(get_args(Reference))}")
        self.reference = reference
        self._tau = self._resolve_tau(tau, examples, tau_range)

    @property
    @override
    def tau(self) -> float:
        return self._tau

    @override
    def similarity(
        self,
        contexts: Sequence[Context],
        candidates: Int[np.ndarray, "P G"],
        positives: Sequence[Int[np.ndarray, " m"]] | None,
    ) -> Float[np.ndarray, "P G"]:
        references = [context.history for context in contexts]
        if self.reference == "history+page" and positives is not None:
            pairs = zip(references, positives, strict=True)
            references = [np.concatenate([history, page]) for history, page in pairs]
        similarity_PG = np.ones(candidates.shape, dtype=np.float32)
        for p, rows in enumerate(references):
            if len(rows):
                similarity_PG[p] = self._largest(candidates[p], rows)
        return similarity_PG

    @abstractmethod
    def _largest(
        self, candidates: Int[np.ndarray, " G"], reference: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, " G"]:
        """Return each candidate's largest similarity to the items of a reference set that is not empty."""

    def _resolve_tau(
        self,
        tau: float | Mapping[str, float],
        examples: Sequence[Example] | None,
        limits: tuple[float, float],
    ) -> float:
        if isinstance(tau, Mapping):
            if set(tau) != {"percentile"}:
                raise ConfigError(f"gate: tau {dict(tau)} is neither a number nor {{percentile: 5}}")
            if examples is None:
                raise ConfigError(
                    f"gate: tau {dict(tau)} is fitted on validation pages; pass examples, or give a number"
                )
            return fit_tau(self, examples, percentile=tau["percentile"])
        low, high = limits
        if not low <= tau < high:
            raise ConfigError(f"gate: tau {tau} is outside [{low}, {high}); s_i must be able to exceed it")
        return float(tau)


class EmbeddingGate(ReferenceGate):
    """s_i = largest cosine between the frozen item vectors that fed the quantiser.

    Args:
        catalog: its unit-norm ``vectors``.
        tau: a number in [-1, 1), or ``{percentile: 5}``: fitted on ``examples`` (see ``fit_tau``).
        reference: what to compare with.
        examples: validation pages, needed to fit tau.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        tau: float | dict[str, float] = {"percentile": 5.0},  # noqa: B006 (read only)
        reference: Reference = "history+page",
        examples: Sequence[Example] | None = None,
    ) -> None:
        self._vectors: Float32[np.ndarray, "n D"] = catalog.vectors
        super().__init__(tau=tau, reference=reference, examples=examples, tau_range=(-1.0, 1.0))

    @override
    def _largest(
        self, candidates: Int[np.ndarray, " G"], reference: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, " G"]:
        return (self._vectors[candidates] @ self._vectors[reference].T).max(axis=1)


class SidPrefixGate(ReferenceGate):
    """s_i = longest SID prefix shared with an item of the reference set, over the number of levels.

    A hash level is no level here: it says nothing of what an item is like.

    Args:
        catalog: its ``semantic_codes``.
        tau: a number in [0, 1), 0 asking for one shared code; or ``{percentile: 5}`` (see ``fit_tau``).
        reference: what to compare with.
        n_levels: leading levels to compare (None: all), without one that only tells colliding items apart.
        examples: validation pages, needed to fit tau.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        tau: float | dict[str, float] = 0.0,
        reference: Reference = "history+page",
        n_levels: int | None = None,
        examples: Sequence[Example] | None = None,
    ) -> None:
        n_all = catalog.semantic_codes.shape[1]
        if n_levels is not None and not 1 <= n_levels <= n_all:
            raise ConfigError(f"gate: n_levels {n_levels} is outside 1 to {n_all}, the catalogue's semantic levels")
        self._codes: Int[np.ndarray, "n L"] = catalog.semantic_codes[:, :n_levels]
        super().__init__(tau=tau, reference=reference, examples=examples, tau_range=(0.0, 1.0))

    @override
    def _largest(
        self, candidates: Int[np.ndarray, " G"], reference: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, " G"]:
        is_shared_GmL = self._codes[candidates][:, None] == self._codes[reference][None]
        prefix_Gm = np.cumprod(is_shared_GmL, axis=-1).sum(axis=-1)
        return (prefix_Gm.max(axis=1) / self._codes.shape[1]).astype(np.float32)


class ValidGate(Gate):
    """s_i = 1 for every item: only an invalid SID is stopped. For ablations; equal to no gate."""

    @property
    @override
    def tau(self) -> float:
        return 0.5

    @override
    def similarity(
        self,
        contexts: Sequence[Context],
        candidates: Int[np.ndarray, "P G"],
        positives: Sequence[Int[np.ndarray, " m"]] | None,
    ) -> Float[np.ndarray, "P G"]:
        return np.ones(candidates.shape, dtype=np.float32)


def fit_tau(gate: Gate, examples: Sequence[Example], *, percentile: float) -> float:
    """Return the largest tau that lets at least ``100 - percentile`` % of true positives pass.

    Positives are compared with the history alone, whatever the gate's reference: with its own page a positive
    would match itself. Pages without a history are left out. Where s_i takes few values (``SidPrefixGate``),
    more than the asked share may pass.

    Raises:
        ConfigError: for a percentile outside [0, 100).
        DataError: when no page has both a history and a positive.
    """
    if not 0 <= percentile < 100:
        raise ConfigError(f"gate: percentile {percentile} is outside [0, 100); 5 stops 5 % of true positives")
    pages = _pages_to_judge(examples)
    similarity = np.concatenate([gate.similarity([e.context], e.positives[None], None)[0] for e in pages])
    n_stopped = int(len(similarity) * percentile // 100)
    smallest_passing = np.sort(similarity.astype(np.float64))[n_stopped]
    return float(np.nextafter(smallest_passing, -np.inf))


@dataclass(frozen=True, slots=True)
class GateReport:
    """What a gate lets pass: shares of ``n_positives`` items each, with the history alone as reference."""

    tau: float
    positives_pass: float
    random_pass: float
    invalid_pass: float
    n_positives: int


def gate_report(gate: Gate, examples: Sequence[Example], catalog: Catalog, *, seed: int) -> GateReport:
    """Measure a gate on pages: its pass rate on true positives, and on as many random valid items and invalid SIDs.

    Raises:
        DataError: when no page has both a history and a positive.
    """
    rng = np.random.default_rng(seed)
    positives_pass, random_pass, invalid_pass = [], [], []
    for example in _pages_to_judge(examples):
        rows = example.positives[None]
        random_rows = rng.integers(len(catalog.codes), size=rows.shape)
        positives_pass.append(pass_gate(gate, [example.context], rows, None)[0])
        random_pass.append(pass_gate(gate, [example.context], random_rows, None)[0])
        invalid_pass.append(pass_gate(gate, [example.context], np.full_like(rows, NO_ITEM), None)[0])
    passed = [np.concatenate(part) for part in (positives_pass, random_pass, invalid_pass)]
    real, random, invalid = (float(part.mean()) for part in passed)
    return GateReport(gate.tau, real, random, invalid, n_positives=len(passed[0]))


def _pages_to_judge(examples: Sequence[Example]) -> list[Example]:
    pages = [e for e in examples if len(e.context.history) and len(e.positives)]
    if not pages:
        raise DataError(
            f"gate: none of {len(examples)} pages has both a history and a positive; give validation pages"
        )
    return pages
