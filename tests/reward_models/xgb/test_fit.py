import numpy as np
import pytest

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.types import NO_ITEM
from reward_models.candidates import label_proposals
from reward_models.xgb.counts import LogCounts
from reward_models.xgb.features import FEATURES, NO_CATEGORY, ItemTables
from reward_models.xgb.fit import FitSettings, crossfit_features, fit_xgb
from tests.fixtures import CODES, make_catalog, make_example

ITEMS = ItemTables(CODES, np.eye(12, dtype=np.float32), np.full(12, NO_CATEGORY))


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
    return examples, label_proposals(examples, np.array(proposed))


def fit(objective="binary:logistic", **settings):
    examples, taught = market(200, seed=0)
    _, tuning = market(60, seed=1)
    settings = FitSettings(objective=objective, n_trees=30, n_threads=1, min_child_weight=1.0, **settings)
    return fit_with(examples, taught, tuning, settings)


def fit_with(examples, taught, tuning, settings):
    return fit_xgb(
        examples, taught, tuning, catalog=make_catalog(), categories=ITEMS.categories, settings=settings, seed=0
    )


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


def test_a_users_own_pages_are_not_in_the_features_of_its_requests():
    examples, _ = market(2, seed=0)
    for user, items in enumerate(([0, 1], [4, 5])):
        examples[user] = make_example(items[:1], items[1:])
        object.__setattr__(examples[user].context, "user_id", f"u{user}")
    taught = label_proposals(examples, np.array([[1, 5], [1, 5]]))
    settings = FitSettings(n_folds=2)
    features_PGF = crossfit_features(examples, taught, ITEMS, settings=settings, seed=0)
    assert (features_PGF[..., FEATURES.index("follows")] == 0).all()
    whole = LogCounts.fit(examples, n_items=12)
    assert whole.transitions(np.array([0, 4]), np.array([1, 5])).tolist() == [1, 1]


def test_labels_of_one_kind_are_refused():
    examples, taught = market(20, seed=0)
    nothing = label_proposals(examples, np.full_like(taught.rows_PG, NO_ITEM))
    with pytest.raises(DataError, match="0 tuning candidates lack a positive or a negative"):
        fit_with(examples, taught, nothing, FitSettings())


def test_fewer_users_than_folds_are_refused():
    examples, taught = market(3, seed=0)
    with pytest.raises(DataError, match="3 users cannot be dealt into 5 folds"):
        crossfit_features(examples, taught, ITEMS, settings=FitSettings(), seed=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"objective": "rank:map"}, "objective 'rank:map'"),
        ({"n_folds": 1}, "n_folds 1 must be at least 2"),
        ({"subsample": 0.0}, "subsample 0.0 must be above 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        FitSettings(**setting)
