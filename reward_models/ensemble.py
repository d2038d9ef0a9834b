"""Several reward models as one that is careful where they disagree: mean - kappa * standard deviation.

A policy that is optimised against one model finds what that one is wrong about. Models that were trained apart are
wrong about different items, so where their scores spread, the reward is lowered (Coste et al. 2024, arXiv:2310.02743,
penalise the variance; kappa is ours to choose).

    P   requests        G   candidates per request        E   members
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, Float32, Int
from typing_extensions import override

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.rewards.scoring import score_candidates
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Context
from reward_models.manifest import check_folder, digest_of, open_folder, read_files, seal_folder
from reward_models.members import describe_member, load_member, save_member

_CONFIG = "config.json"
_FORMAT = 1


def careful_mean(scores_EPG: Float[np.ndarray, "E P G"], *, kappa: float) -> Float32[np.ndarray, "P G"]:
    """Return mean - kappa * std over the members, at least 0; std divides by their number."""
    lowered_PG = scores_EPG.mean(axis=0) - kappa * scores_EPG.std(axis=0)
    return lowered_PG.clip(0, 1).astype(np.float32)


class Ensemble(RewardModel):
    """Mean of its members' scores less ``kappa`` standard deviations. Read-only, as its members are.

    A score is no calibrated probability any more, though each member's may be.

    Args:
        members: reward models of any class over one catalogue.
        kappa: standard deviations to take off; 0 is the mean.

    Raises:
        ConfigError: without members, or for a kappa that is negative or not finite.
    """

    def __init__(self, members: Sequence[RewardModel], *, kappa: float = 1.0) -> None:
        if not members:
            raise ConfigError("Ensemble: no members; name at least one reward model")
        if not 0 <= kappa < np.inf:
            raise ConfigError(f"Ensemble: kappa {kappa} must be finite and at least 0; 0 is the plain mean")
        self.members = tuple(members)
        self.kappa = float(kappa)

    @cached_property
    @override
    def fingerprint(self) -> str:  # type: ignore[override]
        return digest_of({_CONFIG: self._config()})

    @override
    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        scores_EPG = np.stack([score_candidates(member, contexts, candidates) for member in self.members])
        return careful_mean(scores_EPG.astype(np.float64), kappa=self.kappa)

    @override
    def save_pretrained(self, path: str | Path) -> None:
        """Write the members' own folders, ``member_0`` and so on, and a manifest of all files."""
        root = open_folder(path)
        names = [_CONFIG]
        for number, member in enumerate(self.members):
            names += save_member(member, root, folder=_folder(number))
        (root / _CONFIG).write_bytes(self._config())
        seal_folder(root, names)

    @classmethod
    @override
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        catalog: Catalog | None = None,
        kappa: float | None = None,
        device: str = "cpu",
        trusted_packages: Sequence[str] = (),
    ) -> Self:
        """Load what ``save_pretrained`` wrote, wherever the folder lies now.

        Args:
            path: the folder.
            catalog: the catalogue in use, for members that check it.
            kappa: in place of the saved one.
            device: where members that can choose score.
            trusted_packages: packages that members' classes may come from, besides genrec_rl and reward_models.

        Raises:
            ConfigError: for a member of a foreign package.
            DataError: when a file is missing or differs from the manifest, or belongs to another catalogue.
        """
        root = Path(path)
        values = json.loads(read_files(root, (_CONFIG,))[_CONFIG])
        if (values.get("model"), values.get("format")) != ("Ensemble", _FORMAT):
            raise DataError(
                f"{root / _CONFIG}: holds {values.get('model')} format {values.get('format')}, expected Ensemble "
                f"format {_FORMAT}; make it again with `python recipes/combine_rewards.py`"
            )
        check_folder(root)
        provided = {"catalog": catalog, "device": device}
        members = [
            load_member(entry, root, provided=provided, trusted_packages=trusted_packages)
            for entry in values["members"]
        ]
        return cls(members, kappa=values["kappa"] if kappa is None else kappa)

    def _config(self) -> bytes:
        members = [describe_member(member, folder=_folder(number)) for number, member in enumerate(self.members)]
        values = {"model": "Ensemble", "format": _FORMAT, "kappa": self.kappa, "members": members}
        return (json.dumps(values, indent=2) + "\n").encode()


def _folder(number: int) -> str:
    return f"member_{number}"
