"""Ask a reward model or a gate about rollouts, and believe nothing that is not a reward.

The optimiser hides a broken reward: group-normalised, a reward in [-50, 50] trains like one in [0, 1], and a
NaN turns the loss into 0.0 without an error. So every answer is checked here, before anything else uses it.

    P   requests        G   candidates per request
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from genrec_rl.errors import RewardError
from genrec_rl.rewards.protocol import Gate, RewardModel
from genrec_rl.types import NO_ITEM, Context

_PLACEHOLDER_ROW = 0


def score_candidates(
    model: "RewardModel | GatedReward", contexts: Sequence[Context], rows_PG: Int[np.ndarray, "P G"]
) -> Float[np.ndarray, "P G"]:
    """Return r_pref in [0, 1] for every candidate; an invalid SID (``NO_ITEM``) earns exactly 0.

    The model never sees an invalid SID: a placeholder item stands in for it, and its score is thrown away.

    Raises:
        RewardError: when the model raises, or returns anything but finite floats in [0, 1] of the candidates' shape.
    """
    is_valid_PG = rows_PG != NO_ITEM
    name = type(model).__name__
    candidates = _without_invalid(contexts, rows_PG)
    try:
        scores_PG = model.score(contexts, candidates)
    except Exception as error:  # (somebody else's code: whatever it raises, say whose it is)
        raise RewardError(
            f"{name}.score raised {type(error).__name__}: {error}; call it on these candidates to see where"
        ) from error
    _check_array(scores_PG, rows_PG, f"{name}.score")
    is_outside = (scores_PG < 0) | (scores_PG > 1)
    if is_outside.any():
        raise RewardError(
            f"{_first(scores_PG, is_outside, rows_PG, f'{name}.score')}, outside [0, 1]; "
            "squash it with a sigmoid or divide by its known maximum"
        )
    return np.where(is_valid_PG, scores_PG, 0).astype(np.float32)


def pass_gate(
    gate: Gate | None,
    contexts: Sequence[Context],
    rows_PG: Int[np.ndarray, "P G"],
    positives: Sequence[Int[np.ndarray, " m"]] | None,
) -> Bool[np.ndarray, "P G"]:
    """Return whether each candidate is relevant: s_i > tau, strictly (GenRec, eq. 6).

    An invalid SID never passes. Without a gate (None) every valid item does: the paper's "w/o gate".

    Args:
        gate: the gate, or None.
        contexts: P contexts.
        rows_PG: catalogue rows, ``NO_ITEM`` where invalid.
        positives: P arrays of the pages' ordered and clicked items in training; None at evaluation.

    Raises:
        RewardError: when the gate returns anything but finite floats of the candidates' shape.
    """
    is_valid_PG = rows_PG != NO_ITEM
    if gate is None:
        return is_valid_PG
    similarity_PG = gate.similarity(contexts, _without_invalid(contexts, rows_PG), positives)
    _check_array(similarity_PG, rows_PG, f"{type(gate).__name__}.similarity")
    # in float64, because a fitted tau lies one float64 step below a similarity (see fit_tau)
    return is_valid_PG & (similarity_PG.astype(np.float64) > gate.tau)


@dataclass(frozen=True, slots=True)
class GatedReward:
    """A reward model behind its gate (eq. 6): what a rollout earns that is no positive of the page.

    The gate sees the history alone, whatever its reference: the page would tell it the answer.
    """

    reward_model: RewardModel
    gate: Gate | None

    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        """Score valid catalogue rows; 0 where the gate is closed."""
        rewards_PG = score_candidates(self.reward_model, contexts, candidates)
        return np.where(pass_gate(self.gate, contexts, candidates, None), rewards_PG, 0).astype(np.float32)


def _without_invalid(contexts: Sequence[Context], rows_PG: Int[np.ndarray, "P G"]) -> Int[np.ndarray, "P G"]:
    if rows_PG.ndim != 2 or len(contexts) != len(rows_PG):
        raise RewardError(
            f"candidates have shape {rows_PG.shape} for {len(contexts)} contexts; pass one row per context"
        )
    return np.where(rows_PG == NO_ITEM, _PLACEHOLDER_ROW, rows_PG).astype(np.int64)


def _check_array(answer: object, rows_PG: Int[np.ndarray, "P G"], source: str) -> None:
    """Refuse what is not a float array of the candidates' shape holding finite numbers."""
    if not isinstance(answer, np.ndarray):
        raise RewardError(f"{source} returned {type(answer).__name__}; return a numpy array of floats")
    if answer.shape != rows_PG.shape:
        raise RewardError(
            f"{source} returned shape {answer.shape} for candidates of shape {rows_PG.shape}; "
            "return one number per candidate, in their order"
        )
    if not np.issubdtype(answer.dtype, np.floating):
        raise RewardError(f"{source} returned dtype {answer.dtype}; return floats, such as float32")
    is_bad = ~np.isfinite(answer)
    if is_bad.any():
        raise RewardError(
            f"{_first(answer, is_bad, rows_PG, source)}, which is not finite; "
            "look for a division by zero or an item unknown to it"
        )


def _first(
    answer: Num[np.ndarray, "P G"],
    is_bad: Bool[np.ndarray, "P G"],
    rows_PG: Int[np.ndarray, "P G"],
    source: str,
) -> str:
    p, g = (int(i) for i in np.argwhere(is_bad)[0])
    return f"{source} returned {answer[p, g]} at request {p}, candidate {g} (catalogue row {rows_PG[p, g]})"
