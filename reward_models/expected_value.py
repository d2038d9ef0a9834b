"""What showing an item is worth: a reward model's probability times the item's value (eCPM, GR4AD section 4).

A policy that is rewarded for what users take learns what is taken most; one that sells learns what pays. Both factors
lie in [0, 1], so their product is a reward like any other: gates, calibration and diagnostics work on it unchanged.

    P   requests        G   candidates per request        N   catalogue items
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

_CONFIG, _WORTH, _MEMBER = "config.json", "worth.npy", "member"
_FORMAT = 1


def relative_worth(
    values_N: Float[np.ndarray, " N"], counts_N: Int[np.ndarray, " N"], *, percentile: float, prior: float
) -> Float32[np.ndarray, " N"]:
    """Return what one taken item brings, as a share of the ``percentile`` of all items that were taken.

    An item's mean value is drawn towards the catalogue's by ``prior`` events of that mean, so that an item that was
    never taken is worth an average one. Dearer items than the percentile are worth 1.

    Raises:
        ConfigError: for a prior that is not above 0, or a percentile outside 0..100.
    """
    if not 0 < prior < np.inf or not 0 <= percentile <= 100:
        raise ConfigError(f"value_prior {prior} must be above 0, and value_percentile {percentile} in 0..100")
    mean = values_N.sum() / max(counts_N.sum(), 1)
    each_N = (values_N + prior * mean) / (counts_N + prior)
    taken = each_N[counts_N > 0]
    top = float(np.percentile(taken, percentile)) if len(taken) else 0.0
    return (each_N / top).clip(0, 1).astype(np.float32) if top > 0 else np.zeros(len(values_N), np.float32)


class ExpectedValue(RewardModel):
    """A member's score times what the item is worth. Read-only, as its member is.

    Args:
        member: the probability that the item is taken.
        worth: of each catalogue row, in [0, 1]: ``relative_worth``.

    Raises:
        ConfigError: for worths outside [0, 1], or all 0.
    """

    def __init__(self, member: RewardModel, worth: Float[np.ndarray, " N"]) -> None:
        if not np.isfinite(worth).all() or worth.min() < 0 or worth.max() > 1:
            raise ConfigError("ExpectedValue: worth must lie in [0, 1]; make it with relative_worth")
        if not worth.any():
            raise ConfigError("ExpectedValue: no item is worth anything; prepare data with a value column")
        self.member = member
        self.worth = worth.astype(np.float32)

    @cached_property
    @override
    def fingerprint(self) -> str:  # type: ignore[override]
        return digest_of({_CONFIG: self._config(), _WORTH: self.worth.tobytes()})

    @override
    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        return score_candidates(self.member, contexts, candidates) * self.worth[candidates]

    @override
    def save_pretrained(self, path: str | Path) -> None:
        """Write the member's folder, the worths, and a manifest of all files."""
        root = open_folder(path)
        names = [_CONFIG, _WORTH, *save_member(self.member, root, folder=_MEMBER)]
        (root / _CONFIG).write_bytes(self._config())
        np.save(root / _WORTH, self.worth, allow_pickle=False)
        seal_folder(root, names)

    @classmethod
    @override
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        catalog: Catalog | None = None,
        device: str = "cpu",
        trusted_packages: Sequence[str] = (),
    ) -> Self:
        """Load what ``save_pretrained`` wrote, wherever the folder lies now.

        Args:
            path: the folder.
            catalog: the catalogue in use, for members that check it.
            device: where a member that can choose scores.
            trusted_packages: packages that the member's class may come from, besides genrec_rl and reward_models.

        Raises:
            ConfigError: for a member of a foreign package.
            DataError: when a file is missing or differs from the manifest, or the catalogue has other items.
        """
        root = Path(path)
        values = json.loads(read_files(root, (_CONFIG,))[_CONFIG])
        if (values.get("model"), values.get("format")) != ("ExpectedValue", _FORMAT):
            raise DataError(
                f"{root / _CONFIG}: holds {values.get('model')} format {values.get('format')}, expected "
                f"ExpectedValue format {_FORMAT}; make it with `python recipes/combine_rewards.py --by_value true`"
            )
        check_folder(root)
        worth = np.load(root / _WORTH, allow_pickle=False)
        if catalog is not None and len(worth) != catalog.n_items:
            raise DataError(
                f"{root / _WORTH}: {len(worth)} items, the catalogue has {catalog.n_items}; make it again"
            )
        provided = {"catalog": catalog, "device": device}
        member = load_member(values["member"], root, provided=provided, trusted_packages=trusted_packages)
        return cls(member, worth)

    def _config(self) -> bytes:
        member = describe_member(self.member, folder=_MEMBER)
        return (json.dumps({"model": "ExpectedValue", "format": _FORMAT, "member": member}, indent=2) + "\n").encode()
