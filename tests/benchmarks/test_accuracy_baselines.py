"""The script around the baselines: settings that can be changed by name."""

import pytest

from benchmarks.accuracy_baselines import override
from benchmarks.baselines import SETTINGS
from genrec_rl.errors import ConfigError


def test_named_settings_change_and_the_others_stay():
    changed = override("sasrec_ce", '{"epochs": 2}')
    assert (changed.epochs, changed.loss, changed.dim) == (2, "ce", SETTINGS["sasrec_ce"].dim)


def test_unknown_setting_offers_the_nearest():
    with pytest.raises(ConfigError, match="hstu has no setting 'droput'; did you mean 'dropout'"):
        override("hstu", '{"droput": 0.1}')
