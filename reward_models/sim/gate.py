"""SIM's own search as a gate (eq. 6): is a candidate like something that the user took, as the soft search sees it?

It shares its errors with the reward model, so it is the weakest defence against a policy that fools SIM.

    G   candidates        m   items of a reference set        D   item dimension
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from scipy.special import expit
from typing_extensions import override

from genrec_rl.errors import ConfigError
from genrec_rl.rewards.gates import Reference, ReferenceGate
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Example
from reward_models.sim.reward import SIM


class SearchGate(ReferenceGate):
    """s_i = largest sigmoid((W_b e_j) . (W_a e_i)) over the reference set: relevance in SIM's soft search (GSU).

    Args:
        sim: a trained SIM with soft search, or the folder of one.
        catalog: the catalogue in use.
        tau: a number in [0, 1), or ``{percentile: 5}``: fitted on ``examples`` (see ``fit_tau``).
        reference: what to compare with.
        examples: validation pages, needed to fit tau.

    Raises:
        ConfigError: when its search is hard: equal keys have no degree of relevance.
        DataError: when the folder holds no whole SIM of this catalogue.
    """

    def __init__(
        self,
        sim: SIM | str | Path,
        catalog: Catalog,
        *,
        tau: float | dict[str, float] = {"percentile": 5.0},  # noqa: B006 (read only)
        reference: Reference = "history+page",
        examples: Sequence[Example] | None = None,
    ) -> None:
        network = (sim if isinstance(sim, SIM) else SIM.from_pretrained(sim, catalog=catalog)).network
        if network.config.search != "soft":
            raise ConfigError("gate: this SIM searches by key (search: hard); SidPrefixGate compares keys without it")
        with torch.inference_mode():
            vectors = network.items.encode(torch.arange(len(network.items.codes), device=network.search_keys.device))
            self._candidates: Float32[np.ndarray, "n D"] = network.gsu_candidate(vectors).cpu().numpy()
            self._behaviours: Float32[np.ndarray, "n D"] = network.gsu_behaviour(vectors).cpu().numpy()
        super().__init__(tau=tau, reference=reference, examples=examples, tau_range=(0.0, 1.0))

    @override
    def _largest(
        self, candidates: Int[np.ndarray, " G"], reference: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, " G"]:
        return expit((self._candidates[candidates] @ self._behaviours[reference].T).max(axis=1))
