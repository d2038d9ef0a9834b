import numpy as np
import pytest

from genrec_rl.errors import ConfigError, DataError
from reward_models.scripted import Constant, Popularity

ROWS = np.array([[0, 1, 2], [2, 2, 0]])


def test_popularity_is_the_logarithm_of_counts_over_its_maximum():
    scores = Popularity([0, 1, 3]).score([], ROWS)
    np.testing.assert_allclose(scores, [[0, 0.5, 1], [1, 1, 0]], atol=1e-7)


def test_constant_gives_every_candidate_its_value():
    np.testing.assert_array_equal(Constant(0.25).score([], ROWS), np.full((2, 3), 0.25))


@pytest.mark.parametrize("model", [Constant(0.25), Popularity([0, 1, 3])])
def test_saved_and_loaded_models_agree(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.fingerprint == model.fingerprint
    np.testing.assert_array_equal(loaded.score([], ROWS), model.score([], ROWS))


def test_models_that_score_differently_have_different_fingerprints():
    models = [Constant(0.25), Constant(0.5), Popularity([0, 1, 3]), Popularity([0, 1, 4])]
    assert len({m.fingerprint for m in models}) == 4


def test_a_changed_file_is_refused_by_name(tmp_path):
    Constant(0.25).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"value": 0.75}')
    with pytest.raises(DataError, match=r"config\.json: sha256"):
        Constant.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
def test_a_missing_file_is_refused_by_name(tmp_path, name):
    Constant(0.25).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name):
        Constant.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_constant_outside_the_range_is_refused(value):
    with pytest.raises(ConfigError, match=str(value)):
        Constant(value)


@pytest.mark.parametrize("counts", [[], [0, 0], [1, -1]])
def test_counts_that_rank_nothing_are_refused(counts):
    with pytest.raises(ConfigError, match="counts"):
        Popularity(counts)
