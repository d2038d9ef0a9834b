"""The neural baselines of the accuracy tables: one training loop, five models, answers like any recommender's.

recommender = BASELINES["sasrec_ce"](dataset, catalog, settings=SETTINGS["sasrec_ce"], seed=0)
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from benchmarks.baselines import bert4rec, hstu, sasrec, tiger
from benchmarks.baselines.training import FitSettings
from genrec_rl.decoding.recommender import Recommender

SETTINGS: Mapping[str, FitSettings] = MappingProxyType(
    {
        "sasrec_bce": sasrec.BCE,
        "sasrec_ce": sasrec.CE,
        "bert4rec": bert4rec.DEFAULTS,
        "tiger": tiger.DEFAULTS,
        "hstu": hstu.DEFAULTS,
    }
)
"""Sizes and training that suit Amazon Beauty on one CPU thread; change some with ``dataclasses.replace``."""

_FITS: Mapping[str, Callable[..., Recommender]] = {
    "sasrec_bce": sasrec.fit_sasrec,
    "sasrec_ce": sasrec.fit_sasrec,
    "bert4rec": bert4rec.fit_bert4rec,
    "tiger": tiger.fit_tiger,
    "hstu": hstu.fit_hstu,
}

BASELINES: Mapping[str, Callable[..., Recommender]] = MappingProxyType(
    {name: partial(fit, settings=SETTINGS[name]) for name, fit in _FITS.items()}
)
"""``fit(dataset, catalog, *, settings=SETTINGS[name], seed, on_epoch=None)`` of each."""
