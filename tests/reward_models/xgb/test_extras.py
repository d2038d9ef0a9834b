import numpy as np
import pytest

from genrec_rl.errors import ConfigError, DataError
from reward_models.scripted import Constant, Popularity
from reward_models.xgb import XGB
from reward_models.xgb.extras import Extras, KnownNames
from reward_models.xgb.features import FEATURES, NO_CATEGORY, ItemTables
from reward_models.xgb.fit import FitSettings, fit_xgb
from tests.fixtures import CODES, make_catalog, make_context
from tests.reward_models.xgb.test_fit import CATEGORIES, market

ITEMS = ItemTables(CODES, np.eye(12, dtype=np.float32), np.array([*[7] * 4, *[3] * 4, *[NO_CATEGORY] * 4]))


def columns(extras, rows):
    rows_PG = np.array([rows])
    features = np.zeros((1, len(rows), len(FEATURES)), np.float32)
    found = extras.append_to(features, ITEMS, [make_context([0])], rows_PG)[0, :, len(FEATURES) :]
    assert found.shape[1] == len(extras.columns) == len(extras.types)
    assert found.dtype == np.float32
    return found.T.tolist()


def test_names_that_were_not_learnt_are_missing():
    extras = Extras(names=KnownNames.of(ITEMS, np.array([0, 1, 9])))  # category 7; first codes 0 and 3
    category, first_code = columns(extras, [2, 5, 10])
    assert category == pytest.approx([0, np.nan, np.nan], nan_ok=True)
    assert first_code == pytest.approx([0, np.nan, 1], nan_ok=True)


def test_the_other_model_is_seen_by_its_log_odds():
    (scored,) = columns(Extras(scorer=Constant(0.9)), [1, 2])
    assert scored == pytest.approx([np.log(9)] * 2, rel=1e-5)


def test_without_extras_nothing_is_added():
    assert Extras().columns == ()
    assert columns(Extras(), [1, 2]) == []


def fit(**settings) -> XGB:
    examples, taught = market(120, seed=0)
    _, tuning = market(60, seed=1)
    chosen = FitSettings(n_trees=15, n_threads=1, min_child_weight=1.0, named_columns=True)
    given = {"catalog": make_catalog(), "categories": CATEGORIES, "settings": chosen, "seed": 0}
    return fit_xgb(examples, taught, tuning, **given | settings)


def test_trees_with_extras_load_as_they_were_saved(tmp_path):
    model = fit(scorer=Popularity(np.arange(1, 13)))
    model.save_pretrained(tmp_path)
    loaded = XGB.from_pretrained(tmp_path, catalog=make_catalog())
    assert loaded.features == (*FEATURES, "scorer_log_odds", "category", "first_code")
    assert loaded.fingerprint == model.fingerprint
    _, judged = market(20, seed=3)
    scores = loaded.score(judged.contexts, judged.rows_PG)
    np.testing.assert_array_equal(scores, model.score(judged.contexts, judged.rows_PG))
    assert set(loaded.importance) <= set(loaded.features)


def test_a_changed_scorer_is_refused(tmp_path):
    fit(scorer=Constant(0.5)).save_pretrained(tmp_path)
    Constant(0.25).save_pretrained(tmp_path / "scorer")
    with pytest.raises(DataError, match=r"scorer/.*sha256"):
        XGB.from_pretrained(tmp_path)


class Foreign(Constant):
    """Of a package that is not trusted."""


def test_a_scorer_of_a_foreign_package_is_refused(tmp_path):
    fit(scorer=Foreign(0.5)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="outside the trusted packages"):
        XGB.from_pretrained(tmp_path)
