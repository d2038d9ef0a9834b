"""The script around the baselines: settings that can be changed by name, and lists without what was seen."""

import numpy as np
import pytest

from benchmarks.accuracy_baselines import override, seen_last
from benchmarks.baselines import SETTINGS
from genrec_rl.errors import ConfigError
from tests.fixtures import make_context


def test_seen_items_move_behind_the_others_in_order():
    rows = np.array([[4, 1, 3, 2], [1, 2, 3, 4]])
    assert seen_last(rows, [make_context([1, 4]), make_context([9])]).tolist() == [[3, 2, 4, 1], [1, 2, 3, 4]]


def test_named_settings_change_and_the_others_stay():
    changed = override("sasrec_ce", '{"epochs": 2}')
    assert (changed.epochs, changed.loss, changed.dim) == (2, "ce", SETTINGS["sasrec_ce"].dim)


def test_unknown_setting_offers_the_nearest():
    with pytest.raises(ConfigError, match="hstu has no setting 'droput'; did you mean 'dropout'"):
        override("hstu", '{"droput": 0.1}')
