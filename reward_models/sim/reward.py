"""SIM as a reward model: sigmoid of the calibrated log-odds of a click or order (GenRec's r_SIM)."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Context
from reward_models.manifest import digest_of, read_files, write_files
from reward_models.sim.frozen import FrozenSIM
from reward_models.sim.model import ItemTables, SIMConfig, SIMNetwork

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_FORMAT = 1


class SIM(RewardModel):
    """A trained SIM network with its calibration. Read-only: train another with ``fit_sim``.

    Args:
        network: the trained network.
        catalog_fingerprint: of the catalogue whose rows it scores.
        slope: Platt's a; scores are sigmoid(a logit + b).
        intercept: Platt's b.
        cache_mb: MiB of users' sides kept from one call of ``score`` to the next, for users who come again; 0 keeps
            none. It changes no score.
    """

    def __init__(
        self,
        network: SIMNetwork,
        *,
        catalog_fingerprint: str,
        slope: float = 1.0,
        intercept: float = 0.0,
        cache_mb: int = 256,
    ) -> None:
        if cache_mb < 0:
            raise ConfigError(f"SIM: cache_mb {cache_mb} must be at least 0; 0 keeps no user between calls")
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.catalog_fingerprint = catalog_fingerprint
        self.slope, self.intercept = slope, intercept
        self.cache_mb = cache_mb

    @cached_property
    def _frozen(self) -> FrozenSIM:
        return FrozenSIM(self.network, cache_bytes=self.cache_mb << 20)

    @cached_property
    @override
    def fingerprint(self) -> str:  # type: ignore[override]
        return digest_of(self._files())

    @override
    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        logits_PG = self.logits(contexts, candidates)
        return torch.sigmoid(self.slope * logits_PG + self.intercept).cpu().numpy()

    def logits(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[Tensor, "P G"]:
        """Return log-odds before calibration."""
        return self._frozen.logits(contexts, candidates)

    @override
    def save_pretrained(self, path: str | Path) -> None:
        write_files(path, self._files())

    @classmethod
    @override
    def from_pretrained(
        cls, path: str | Path, *, catalog: Catalog | None = None, device: str = "cpu", cache_mb: int = 256
    ) -> Self:
        """Load what ``save_pretrained`` wrote.

        Args:
            path: the folder.
            catalog: the catalogue in use, to make sure that its rows mean what the model learnt.
            device: where to score.
            cache_mb: MiB of users' sides kept between calls.

        Raises:
            DataError: when a file is missing or differs from the manifest, or the catalogue is another one.
        """
        files = read_files(path, (_CONFIG, _WEIGHTS))
        values = json.loads(files[_CONFIG])
        if values.get("format") != _FORMAT or values.get("model") != "SIM":
            raise DataError(
                f"{Path(path) / _CONFIG}: holds {values.get('model')} format {values.get('format')}, expected "
                f"SIM format {_FORMAT}; train it again with `python recipes/train_reward.py`"
            )
        if catalog is not None and catalog.fingerprint != values["catalog_fingerprint"]:
            raise DataError(
                f"{path}: trained for catalogue {values['catalog_fingerprint'][:12]}, but the catalogue in use is "
                f"{catalog.fingerprint[:12]}; train it again with `python recipes/train_reward.py`"
            )
        weights = safetensors.torch.load(files[_WEIGHTS])
        network = SIMNetwork(_tables_of(weights), SIMConfig(**values["config"]))
        network.load_state_dict(weights)
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"SIM: device '{device}' is not available here; use device: cpu")
        return cls(
            network.to(device),
            catalog_fingerprint=values["catalog_fingerprint"],
            slope=values["slope"],
            intercept=values["intercept"],
            cache_mb=cache_mb,
        )

    def _files(self) -> dict[str, bytes]:
        config = {
            "model": "SIM",
            "format": _FORMAT,
            "config": asdict(self.network.config),
            "catalog_fingerprint": self.catalog_fingerprint,
            "slope": self.slope,
            "intercept": self.intercept,
        }
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        return {
            _CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
            _WEIGHTS: safetensors.torch.save(weights),
        }


def _tables_of(weights: dict[str, Tensor]) -> ItemTables:
    return ItemTables(
        codes=weights["items.codes"], vectors=weights["items.vectors"], search_keys=weights["search_keys"]
    )
