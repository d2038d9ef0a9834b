import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from genrec_rl.errors import ConfigError, DataError, RewardError
from reward_models.ensemble import Ensemble, careful_mean
from reward_models.scripted import Constant, Popularity
from tests.fixtures import make_context

ROWS = np.array([[0, 1, 2]])
CONTEXTS = [make_context([1])]


def ensemble(kappa=1.0) -> Ensemble:
    return Ensemble([Constant(0.5), Popularity([0, 1, 3])], kappa=kappa)  # .5 .5 .5 and 0 .5 1


def test_score_is_the_mean_less_kappa_standard_deviations():
    # stds are .25, 0, .25
    np.testing.assert_allclose(ensemble(1.0).score(CONTEXTS, ROWS), [[0.0, 0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(ensemble(0.0).score(CONTEXTS, ROWS), [[0.25, 0.5, 0.75]], atol=1e-6)


def test_it_never_falls_below_zero():
    assert ensemble(9.0).score(CONTEXTS, ROWS).min() == 0


@given(arrays(np.float64, (3, 2, 4), elements=st.floats(0, 1)), st.floats(0, 5))
def test_it_lies_between_zero_and_the_mean_whatever_the_members_say(scores, kappa):
    found = careful_mean(scores, kappa=kappa)
    assert found.min() >= 0
    assert (found <= scores.mean(axis=0) + 1e-6).all()
    np.testing.assert_allclose(careful_mean(scores[:1], kappa=kappa), scores[0], atol=1e-6)


@pytest.mark.parametrize("kappa", [-0.1, float("nan"), float("inf")])
def test_a_kappa_that_rewards_disagreement_or_is_no_number_is_refused(kappa):
    with pytest.raises(ConfigError, match=f"kappa {kappa}"):
        ensemble(kappa)


def test_no_members_are_refused():
    with pytest.raises(ConfigError, match="no members"):
        Ensemble([])


def test_a_members_wrong_answer_names_the_member():
    class TooHigh(Constant):
        def score(self, contexts, candidates):
            return np.full(candidates.shape, 2.0)

    with pytest.raises(RewardError, match=r"TooHigh\.score returned 2\.0"):
        Ensemble([Constant(0.5), TooHigh(0.5)]).score(CONTEXTS, ROWS)


def test_a_moved_folder_loads_with_its_members(tmp_path):
    ensemble().save_pretrained(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    loaded = Ensemble.from_pretrained(tmp_path / "there")
    assert loaded.fingerprint == ensemble().fingerprint
    np.testing.assert_array_equal(loaded.score(CONTEXTS, ROWS), ensemble().score(CONTEXTS, ROWS))


def test_kappa_can_be_chosen_anew_and_shows_in_the_fingerprint(tmp_path):
    ensemble().save_pretrained(tmp_path)
    assert Ensemble.from_pretrained(tmp_path, kappa=0.0).fingerprint == ensemble(0.0).fingerprint
    assert ensemble(0.0).fingerprint != ensemble(1.0).fingerprint


def test_an_ensemble_of_ensembles_is_one(tmp_path):
    nested = Ensemble([ensemble(), Constant(0.1)], kappa=0.5)
    nested.save_pretrained(tmp_path)
    assert Ensemble.from_pretrained(tmp_path).fingerprint == nested.fingerprint


@pytest.mark.parametrize("name", ["config.json", "member_1/config.json", "member_0/manifest.json"])
def test_a_changed_or_missing_file_is_refused_by_name(tmp_path, name):
    ensemble().save_pretrained(tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=f"{name}: sha256"):
        Ensemble.from_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing"):
        Ensemble.from_pretrained(tmp_path)


class Foreign(Constant):
    """Stands in for a class of somebody else's package, which this module's is."""


def test_a_member_of_a_foreign_package_is_refused_unless_it_is_trusted(tmp_path):
    made = Ensemble([Foreign(0.25)])
    made.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="outside the trusted packages"):
        Ensemble.from_pretrained(tmp_path)
    package = Foreign.__module__.split(".")[0]
    assert Ensemble.from_pretrained(tmp_path, trusted_packages=[package]).fingerprint == made.fingerprint


def test_another_kind_of_model_is_refused(tmp_path):
    Constant(0.5).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="expected Ensemble format 1"):
        Ensemble.from_pretrained(tmp_path)


def test_the_members_are_written_down_with_class_and_fingerprint(tmp_path):
    ensemble().save_pretrained(tmp_path)
    first = json.loads((tmp_path / "config.json").read_text())["members"][0]
    assert first == {
        "class_path": "reward_models.scripted.Constant",
        "folder": "member_0",
        "fingerprint": Constant(0.5).fingerprint,
    }
