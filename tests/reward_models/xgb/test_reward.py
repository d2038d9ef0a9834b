import json

import numpy as np
import pytest

from genrec_rl.errors import DataError
from reward_models.xgb import XGB
from tests.fixtures import make_catalog
from tests.reward_models.xgb.test_fit import fit, market


@pytest.fixture(scope="module")
def model() -> XGB:
    return fit()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("xgb")
    model.save_pretrained(folder)
    return folder


def test_what_is_loaded_scores_as_what_was_saved(model, saved):
    loaded = XGB.from_pretrained(saved, catalog=make_catalog())
    _, judged = market(20, seed=3)
    np.testing.assert_array_equal(
        loaded.score(judged.contexts, judged.rows_PG), model.score(judged.contexts, judged.rows_PG)
    )
    assert loaded.fingerprint == model.fingerprint


def test_scores_do_not_depend_on_who_else_is_asked(model, monkeypatch):
    _, judged = market(20, seed=3)
    together = model.score(judged.contexts, judged.rows_PG)
    monkeypatch.setattr("reward_models.xgb.features._REQUESTS_AT_ONCE", 3)
    np.testing.assert_array_equal(model.score(judged.contexts, judged.rows_PG), together)
    np.testing.assert_array_equal(model.score(judged.contexts[:1], judged.rows_PG[:1, :2]), together[:1, :2])


@pytest.mark.parametrize("name", ["model.ubj", "tables.safetensors", "config.json"])
def test_a_flipped_byte_is_refused(saved, tmp_path, name):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = bytearray((tmp_path / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(DataError, match="sha256"):
        XGB.from_pretrained(tmp_path)


def test_another_catalogue_is_refused(saved):
    with pytest.raises(DataError, match="trained for catalogue"):
        XGB.from_pretrained(saved, catalog=make_catalog(codes=make_catalog().codes[::-1]))


def test_features_of_another_version_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr("reward_models.xgb.reward.FEATURES", ("log_popularity",))
    model.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert json.loads((tmp_path / "config.json").read_text())["features"] == ["log_popularity"]
    with pytest.raises(DataError, match="train it again"):
        XGB.from_pretrained(tmp_path)


def test_nobody_asked_is_no_error(model):
    assert model.score([], np.zeros((0, 4), np.int64)).shape == (0, 4)
