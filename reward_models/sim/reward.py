"""SIM as a reward model: sigmoid of the calibrated log-odds of a click or order (GenRec's r_SIM).

With a second output the reward is r = (w_c p_click + w_o p_order) / (w_c + w_o), each probability with its own
calibration; p_click is that of a click or order. The paper has one output.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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


@dataclass(frozen=True, slots=True)
class OrderOutput:
    """The second output, p_order: its calibration, and what both probabilities weigh in the reward."""

    slope: float
    intercept: float
    click_weight: float
    order_weight: float

    def __post_init__(self) -> None:
        check_weights(self.click_weight, self.order_weight)


def check_weights(click_weight: float, order_weight: float) -> None:
    """Refuse weights under which a better item could earn less, or nothing be earned at all.

    Raises:
        ConfigError: naming both.
    """
    weights = (click_weight, order_weight)
    if not all(0 <= weight < np.inf for weight in weights) or not sum(weights):
        raise ConfigError(
            f"SIM: click_weight {click_weight} and order_weight {order_weight} must be at least 0, and one above"
        )


class SIM(RewardModel):
    """A trained SIM network with its calibration. Read-only: train another with ``fit_sim``.

    Args:
        network: the trained network.
        catalog_fingerprint: of the catalogue whose rows it scores.
        slope: Platt's a; scores are sigmoid(a logit + b).
        intercept: Platt's b.
        cache_mb: MiB of users' sides kept from one call of ``score`` to the next, for users who come again; 0 keeps
            none. It changes no score.
        order: of the network's second output, where it predicts orders.
    """

    def __init__(
        self,
        network: SIMNetwork,
        *,
        catalog_fingerprint: str,
        slope: float = 1.0,
        intercept: float = 0.0,
        cache_mb: int = 256,
        order: OrderOutput | None = None,
    ) -> None:
        if network.predicts_orders != (order is not None):
            raise ConfigError(
                f"SIM: the network predicts {'' if network.predicts_orders else 'no '}orders, but order is {order}"
            )
        if cache_mb < 0:
            raise ConfigError(f"SIM: cache_mb {cache_mb} must be at least 0; 0 keeps no user between calls")
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.catalog_fingerprint = catalog_fingerprint
        self.slope, self.intercept = slope, intercept
        self.cache_mb = cache_mb
        self.order = order

    @cached_property
    def _frozen(self) -> FrozenSIM:
        return FrozenSIM(self.network, cache_bytes=self.cache_mb << 20)

    @cached_property
    @override
    def fingerprint(self) -> str:  # type: ignore[override]
        return digest_of(self._files())

    @override
    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        probabilities = self.probabilities(contexts, candidates)
        if self.order is None:
            return probabilities["click"]
        click, order = self.order.click_weight, self.order.order_weight
        mixed_PG = (click * probabilities["click"] + order * probabilities["order"]) / (click + order)
        return mixed_PG.clip(0, 1)  # (a mean of two numbers may round to above the larger)

    def probabilities(
        self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]
    ) -> dict[str, Float[np.ndarray, "P G"]]:
        """Return the calibrated probability of a ``click`` (or order) and, where it is predicted, of an ``order``."""
        logits_PGO = self._frozen.all_logits(contexts, candidates)
        found = {"click": torch.sigmoid(self.slope * logits_PGO[..., 0] + self.intercept).cpu().numpy()}
        if self.order is not None:
            calibrated_PG = self.order.slope * logits_PGO[..., 1] + self.order.intercept
            found["order"] = torch.sigmoid(calibrated_PG).cpu().numpy()
        return found

    def logits(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[Tensor, "P G"]:
        """Return log-odds of a click or order before calibration."""
        return self._frozen.logits(contexts, candidates)

    @override
    def save_pretrained(self, path: str | Path) -> None:
        write_files(path, self._files())

    @classmethod
    @override
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        catalog: Catalog | None = None,
        device: str = "cpu",
        cache_mb: int = 256,
        click_weight: float | None = None,
        order_weight: float | None = None,
    ) -> Self:
        """Load what ``save_pretrained`` wrote.

        Args:
            path: the folder.
            catalog: the catalogue in use, to make sure that its rows mean what the model learnt.
            device: where to score.
            cache_mb: MiB of users' sides kept between calls.
            click_weight: of p_click in the reward, in place of the saved one; for a model that predicts orders.
            order_weight: of p_order, alike.

        Raises:
            ConfigError: for weights of a model that does not predict orders, or a device that is not there.
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
        order = _reweighed(values.get("order"), path, click_weight=click_weight, order_weight=order_weight)
        config = SIMConfig(**values["config"])
        network = SIMNetwork(_tables_of(weights), config, predicts_orders=order is not None)
        network.load_state_dict(weights)
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"SIM: device '{device}' is not available here; use device: cpu")
        return cls(
            network.to(device),
            catalog_fingerprint=values["catalog_fingerprint"],
            slope=values["slope"],
            intercept=values["intercept"],
            cache_mb=cache_mb,
            order=order,
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
        config |= {"order": asdict(self.order)} if self.order else {}
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        return {
            _CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
            _WEIGHTS: safetensors.torch.save(weights),
        }


def _reweighed(saved: dict[str, float] | None, path: str | Path, **weights: float | None) -> OrderOutput | None:
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if saved is not None:
        return replace(OrderOutput(**saved), **given)
    if given:
        raise ConfigError(
            f"SIM: {path} does not predict orders, so {' and '.join(given)} weigh nothing; leave them out, or "
            "train it with `python recipes/train_reward.py --order_weight 1`"
        )
    return None


def _tables_of(weights: dict[str, Tensor]) -> ItemTables:
    return ItemTables(
        codes=weights["items.codes"], vectors=weights["items.vectors"], search_keys=weights["search_keys"]
    )
