from dataclasses import replace

import numpy as np
import pytest

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids.hash_level import HashLevel
from genrec_rl.types import NO_ITEM
from reward_models.candidates import label_proposals
from reward_models.xgb import XGB
from reward_models.xgb.features import NO_CATEGORY
from reward_models.xgb.fit import FitSettings, fit_xgb
from tests.fixtures import make_catalog, make_example

CATEGORIES = np.full(12, NO_CATEGORY)


def market(n_users: int, *, seed: int):
    """Users who take item i + 1 after item i, and are proposed it among others."""
    rng = np.random.default_rng(seed)
    examples, proposed = [], []
    for user in range(n_users):
        last = int(rng.integers(0, 11))
        example = make_example([int(rng.integers(0, 12)), last], [last + 1])
        object.__setattr__(example.context, "user_id", f"u{user}")
        others = rng.permutation(np.setdiff1d(np.arange(12), [last + 1]))[:5]
        examples.append(example)
        proposed.append(rng.permutation(np.append(others, last + 1)))
    return examples, label_proposals(examples, np.array(proposed), catalog=make_catalog())


def fit(objective="binary:logistic", **settings):
    examples, taught = market(200, seed=0)
    _, tuning = market(60, seed=1)
    settings = FitSettings(objective=objective, n_trees=30, n_threads=1, min_child_weight=1.0, **settings)
    return fit_with(examples, taught, tuning, settings)


def fit_with(examples, taught, tuning, settings):
    return fit_xgb(examples, taught, tuning, catalog=make_catalog(), categories=CATEGORIES, settings=settings, seed=0)


def test_attributes_are_seen_by_what_is_saved_too(tmp_path):
    (examples, taught), (_, tuning) = market(200, seed=0), market(60, seed=1)
    settings = FitSettings(n_trees=5, n_threads=1, min_child_weight=1.0)
    given = {"catalog": make_catalog(), "categories": CATEGORIES, "settings": settings, "seed": 0}
    model = fit_xgb(examples, taught, tuning, attributes=np.eye(12, dtype=np.float32), **given)
    model.save_pretrained(tmp_path)
    loaded = XGB.from_pretrained(tmp_path, catalog=make_catalog())
    np.testing.assert_array_equal(loaded.items.attributes, np.eye(12))
    assert model.fingerprint != fit_xgb(examples, taught, tuning, **given).fingerprint


@pytest.mark.parametrize("objective", ["binary:logistic", "rank:ndcg"])
def test_it_learns_what_follows_what_and_promises_as_much_as_there_is(objective):
    model = fit(objective)
    examples, judged = market(80, seed=2)
    scores = model.score(judged.contexts, judged.rows_PG)
    best = judged.rows_PG[np.arange(80), scores.argmax(1)]
    assert np.mean(best == [example.positives[0] for example in examples]) > 0.9
    assert scores.mean() == pytest.approx(1 / 6, abs=0.03)
    assert max(model.importance, key=model.importance.get) in ("follows_last", "follows", "follows_share")


def test_the_same_seed_fits_the_same():
    assert fit().fingerprint == fit().fingerprint


def test_labels_of_one_kind_are_refused():
    examples, taught = market(20, seed=0)
    nothing = label_proposals(examples, np.full_like(taught.rows_PG, NO_ITEM), catalog=make_catalog())
    with pytest.raises(DataError, match="0 tuning candidates lack a positive or a negative"):
        fit_with(examples, taught, nothing, FitSettings())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"objective": "rank:map"}, "objective 'rank:map'"),
        ({"max_depth": 0}, "max_depth 0 must be at least 1"),
        ({"subsample": 0.0}, "subsample 0.0 must be above 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        FitSettings(**setting)


def test_prefixes_are_those_of_semantic_codes():
    catalog = replace(make_catalog(), policy="bucket", hash_level=HashLevel(("seller",), size=4))
    (examples, taught), (_, tuning) = market(60, seed=0), market(20, seed=1)
    settings = FitSettings(n_trees=2, n_threads=1)
    model = fit_xgb(examples, taught, tuning, catalog=catalog, categories=CATEGORIES, settings=settings, seed=0)
    assert (model.items.codes == catalog.codes[:, :2]).all()
