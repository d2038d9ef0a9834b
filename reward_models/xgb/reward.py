"""Trees as a reward model: sigmoid of the calibrated margin of a gradient-boosted ensemble."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import safetensors.numpy
import xgboost
from jaxtyping import Float, Float32, Int
from scipy.special import expit
from typing_extensions import override

from genrec_rl.errors import DataError
from genrec_rl.rewards.protocol import RewardModel
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Context
from reward_models.manifest import check_folder, digest_of, open_folder, read_files, seal_folder
from reward_models.members import describe_member, load_member, save_member
from reward_models.xgb.counts import LogCounts
from reward_models.xgb.extras import Extras, KnownNames
from reward_models.xgb.features import FEATURES, ItemTables, request_features

_CONFIG, _TREES, _TABLES = "config.json", "model.ubj", "tables.safetensors"
_COUNTED = tuple(column.name for column in fields(LogCounts) if column.name != "n_items")
_KNOWN = ("known_categories", "known_first_codes")
_SCORER = "scorer"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Platt:
    """Calibration: scores are sigmoid(slope margin + intercept)."""

    slope: float = 1.0
    intercept: float = 0.0


class XGB(RewardModel):
    """A trained ensemble with what it counts and its calibration. Read-only: train another with ``fit_xgb``.

    It may score the training requests of the users that it counted, as RL does: see ``LogCounts``.

    Args:
        booster: trees over ``FEATURES``.
        counts: what training pages say, of all users.
        items: the catalogue's tables.
        catalog_fingerprint: of the catalogue whose rows it scores.
        max_history: newest history items that it reads.
        calibration: Platt's.
        extras: columns beside ``FEATURES``.
    """

    def __init__(
        self,
        booster: xgboost.Booster,
        counts: LogCounts,
        items: ItemTables,
        *,
        catalog_fingerprint: str,
        max_history: int,
        calibration: Platt,
        extras: Extras = Extras(),  # noqa: B008 (frozen)
    ) -> None:
        self.booster = booster
        self.counts = counts
        self.items = items
        self.catalog_fingerprint = catalog_fingerprint
        self.max_history = max_history
        self.calibration = calibration
        self.extras = extras

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the columns that the trees see."""
        return (*FEATURES, *self.extras.columns)

    @cached_property
    @override
    def fingerprint(self) -> str:  # type: ignore[override]
        return digest_of(self._files())

    @override
    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        margins_PG = self.margins(contexts, candidates)
        return expit(self.calibration.slope * margins_PG + self.calibration.intercept)

    def margins(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float32[np.ndarray, "P G"]:
        """Return the trees' sums before calibration."""
        if not candidates.size:
            return np.zeros(candidates.shape, np.float32)
        features_PGF = request_features(self.counts, self.items, contexts, candidates, max_history=self.max_history)
        features_PGF = self.extras.append_to(features_PGF, self.items, contexts, candidates)
        margins = self.booster.inplace_predict(features_PGF.reshape(-1, len(self.features)), predict_type="margin")
        return np.asarray(margins.reshape(candidates.shape))

    @property
    def importance(self) -> dict[str, float]:
        """Share of the trees' total gain by feature, largest first."""
        found = self.booster.get_score(importance_type="total_gain")
        gains = {self.features[int(name.removeprefix("f"))]: float(np.sum(gain)) for name, gain in found.items()}
        shares = {name: gain / sum(gains.values()) for name, gain in gains.items()}
        return dict(sorted(shares.items(), key=lambda pair: -pair[1]))

    @override
    def save_pretrained(self, path: str | Path) -> None:
        root, files = open_folder(path), self._files()
        for name, content in files.items():
            (root / name).write_bytes(content)
        scorer = self.extras.scorer
        copied = [] if scorer is None else save_member(scorer, root, folder=_SCORER)
        seal_folder(root, [*files, *copied])

    @classmethod
    @override
    def from_pretrained(
        cls, path: str | Path, *, catalog: Catalog | None = None, trusted_packages: Sequence[str] = ()
    ) -> Self:
        """Load what ``save_pretrained`` wrote.

        Args:
            path: the folder.
            catalog: the catalogue in use, to make sure that its rows mean what the model learnt.
            trusted_packages: packages that the class of a scorer may come from, besides genrec_rl and reward_models.

        Raises:
            ConfigError: for a scorer of a foreign package.
            DataError: when a file is missing or differs from the manifest, or the catalogue is another one.
        """
        files = read_files(path, (_CONFIG, _TREES, _TABLES))
        values = json.loads(files[_CONFIG])
        features = values.get("features") or []
        if (values.get("model"), values.get("format"), features[: len(FEATURES)]) != ("XGB", _FORMAT, [*FEATURES]):
            raise DataError(
                f"{Path(path) / _CONFIG}: holds {values.get('model')} format {values.get('format')} with features "
                f"{features}, expected XGB format {_FORMAT} with this version's; train it again with "
                "`python recipes/train_xgb.py`"
            )
        if catalog is not None and catalog.fingerprint != values["catalog_fingerprint"]:
            raise DataError(
                f"{path}: trained for catalogue {values['catalog_fingerprint'][:12]}, but the catalogue in use is "
                f"{catalog.fingerprint[:12]}; train it again with `python recipes/train_xgb.py`"
            )
        tables = safetensors.numpy.load(files[_TABLES])
        scorer = None
        if "scorer" in values:
            check_folder(path)
            provided = {"catalog": catalog}
            scorer = load_member(values["scorer"], Path(path), provided=provided, trusted_packages=trusted_packages)
        names = KnownNames(*(tables[name] for name in _KNOWN)) if _KNOWN[0] in tables else None
        booster = xgboost.Booster()
        booster.load_model(bytearray(files[_TREES]))
        return cls(
            booster,
            LogCounts(values["n_items"], *(tables[name] for name in _COUNTED)),
            ItemTables(tables["codes"], tables["vectors"], tables["categories"], tables.get("attributes")),
            catalog_fingerprint=values["catalog_fingerprint"],
            max_history=values["max_history"],
            calibration=Platt(values["slope"], values["intercept"]),
            extras=Extras(scorer, names),
        )

    def _files(self) -> dict[str, bytes]:
        config = {
            "model": "XGB",
            "format": _FORMAT,
            "features": [*self.features],
            "n_items": self.counts.n_items,
            "max_history": self.max_history,
            "catalog_fingerprint": self.catalog_fingerprint,
            "slope": self.calibration.slope,
            "intercept": self.calibration.intercept,
        }
        if self.extras.scorer is not None:
            config["scorer"] = describe_member(self.extras.scorer, folder=_SCORER)
        names = self.extras.names
        tables = {
            **{name: getattr(self.counts, name) for name in _COUNTED},
            "codes": self.items.codes,
            "vectors": self.items.vectors,
            "categories": self.items.categories,
            **({} if self.items.attributes is None else {"attributes": self.items.attributes}),
            **({} if names is None else dict(zip(_KNOWN, (names.categories, names.first_codes), strict=True))),
        }
        return {
            _CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
            _TREES: bytes(self.booster.save_raw("ubj")),
            _TABLES: safetensors.numpy.save({name: np.ascontiguousarray(table) for name, table in tables.items()}),
        }
