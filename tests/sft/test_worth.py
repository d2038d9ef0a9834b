import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec_rl.data.values import ValueBuckets
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sft.targets import answers_of
from genrec_rl.sft.worth import (
    WeightPlan,
    clipped_to_mean_1,
    training_buckets,
    user_values,
    user_weights,
    vsl_total,
    worth_of,
)
from tests.fixtures import make_policy
from tests.sft.test_user_tree import TABLE, answers, with_values

BUCKETS = ValueBuckets((np.log1p(2.0),), (0.0, 1.5, 4.0))
VALUES = np.array([0.0, 1, 0, 3, 4, 0, 2, 0, 9, 1])


VALUED = with_values(TABLE, VALUES)


def worth(policy, *, target="item", table=VALUED, teaches_value=True, train=(0, 1, 2, 3, 4, 5), **plan):
    taught = answers(table, target=target)
    return worth_of(taught, np.array(train), policy, teaches_value=teaches_value, plan=WeightPlan(**plan))


@pytest.fixture
def valued_policy(catalog):
    return make_policy(catalog, values=BUCKETS)


@pytest.mark.parametrize("target", ["item", "running"])
def test_token_is_the_bucket_of_the_answers_own_item(valued_policy, target):
    found = worth(valued_policy, target=target)
    start = valued_policy.vocab.value_tokens.start
    by_item = {int(found.answers.items(i)[0]): int(found.value_tokens(i)[0]) - start for i in range(10)}
    assert by_item == dict(enumerate([0, 1, 0, 2, 2, 0, 1, 0, 2, 1]))


def test_items_are_found_on_their_own_page_in_target_order(valued_policy):
    """Pages hold ordered items first, histories the order of events."""
    table = dataclasses.replace(VALUED, history_items=np.array([1, 0, 2, 5, 3, 4, 6, 8, 7, 9], np.int32))
    found = worth(valued_policy, table=table)
    for i in range(10):
        item = int(found.answers.items(i)[0])
        assert found.value_tokens(i)[0] - valued_policy.vocab.value_tokens.start == BUCKETS.of(VALUES)[item]


def test_weights_are_behaviour_by_page_item(policy):
    table = with_values(TABLE, None, [3, 2, 2, 3, 2, 1, 3, 2, 2, 3])
    taught = answers_of(table, np.arange(6), target="page", max_items=10, max_exposed=1)
    plan = WeightPlan(actions=(4.0, 2.0, 1.0), clip=100)
    found = worth_of(taught, np.arange(6), policy, teaches_value=False, plan=plan)
    raw = [4, 2, 2, 4, 2, 1, 4, 2, 2, 4]
    np.testing.assert_allclose(found.weights, np.array(raw) / 2.7, rtol=1e-6)
    np.testing.assert_allclose(found.token_weights(2, n_levels=3), np.repeat([4, 2, 1], 3) / 2.7, rtol=1e-6)


@pytest.mark.parametrize("target", ["page", "item", "running", "page+running"])
def test_weights_of_what_is_taught_have_mean_1(policy, target):
    found = worth(policy, target=target, teaches_value=False, user=1.0, actions=(3.0, 1.0, 0.5))
    taught = np.concatenate([found.token_weights(i, n_levels=1) for i in range(len(found.answers))])
    assert taught.mean() == pytest.approx(1, abs=1e-6)
    assert len(set(taught.tolist())) > 1


def test_users_values_are_of_training_positives_alone():
    table = with_values(TABLE, np.ones(10), [2, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    assert user_values(table, np.array([0, 1, 3])).tolist() == [2, 1, 0]


def test_users_weight_grows_with_the_log_of_his_value_in_any_currency():
    values = np.array([0.0, 1.0, 5.0])
    expected = [1, 1 + 2 * np.log(1.5), 1 + 2 * np.log(3.5)]
    np.testing.assert_allclose(user_weights(values, strength=2), expected)
    np.testing.assert_allclose(user_weights(values * 100, strength=2), expected)


def test_weights_of_a_heavy_tail_are_cut_at_the_percentile_before_their_mean_is_1():
    weights = np.array([1.0, 1, 1, 1, 1e6])
    found = clipped_to_mean_1(weights, np.arange(5), percentile=75)
    np.testing.assert_allclose(found, np.ones(5))
    raw = np.random.default_rng(0).lognormal(sigma=3, size=5000)
    cut = clipped_to_mean_1(raw, np.arange(5000), percentile=99)
    assert cut.mean() == pytest.approx(1)
    assert cut.max() < clipped_to_mean_1(raw, np.arange(5000), percentile=100).max() / 5


def test_percentile_and_mean_are_those_of_what_is_taught():
    assert clipped_to_mean_1(np.array([1.0, 3.0, 500.0]), np.array([0, 1]), percentile=100).tolist() == [
        0.5,
        1.5,
        1.5,
    ]


def test_total_is_weighted_sids_plus_lambda_times_weighted_values():
    nll, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.5, 0.5])
    is_value = torch.tensor([False, False, True])
    assert vsl_total(nll, weights, is_value, value_coef=0.1).item() == pytest.approx(2.2)


def test_with_lambda_0_and_weights_1_the_total_is_plain_sfts_bit_for_bit():
    nll = torch.rand(4001) * 10
    is_value = torch.arange(4001) % 4 == 3
    plain = nll.masked_fill(is_value, 0).sum()
    assert vsl_total(nll, torch.ones(4001), is_value, value_coef=0).equal(plain)
    assert vsl_total(nll, torch.ones(4001), torch.zeros(4001, dtype=bool), value_coef=0.1).equal(nll.sum())


def test_edges_come_from_training_positives_alone():
    split = SimpleNamespace(train=np.array([0, 1]))
    data = SimpleNamespace(pages=with_values(TABLE, np.arange(1.0, 11), [1, *[2] * 9]), split=split)
    assert training_buckets(data, n_buckets=2) == ValueBuckets((np.log1p(2.0),), (0.0, 2.0, 3.0))
    assert training_buckets(data, n_buckets=0) is None


def test_nothing_is_looked_up_where_nothing_is_asked_for(policy):
    assert worth(policy, teaches_value=False) is None
    assert worth(policy, teaches_value=False, actions=(2.0, 2.0, 2.0)) is None


@pytest.mark.parametrize("target", ["page", "page+running"])
def test_value_behind_a_page_is_refused(valued_policy, target):
    with pytest.raises(ConfigError, match="target item or running"):
        worth(valued_policy, target=target)


@pytest.mark.parametrize("wanted", [{"teaches_value": True}, {"teaches_value": False, "user": 1.0}])
def test_data_without_values_are_refused(valued_policy, wanted):
    with pytest.raises(DataError, match="add a column `value`"):
        worth(valued_policy, table=TABLE, **wanted)
    with pytest.raises(DataError, match="add a column `value`"):
        training_buckets(SimpleNamespace(pages=TABLE), n_buckets=2)


def test_policy_without_value_tokens_cannot_be_taught_them(policy):
    with pytest.raises(ConfigError, match="has no value tokens"):
        worth(policy)


def test_users_worth_nothing_and_weights_of_0_are_refused(policy):
    with pytest.raises(DataError, match="value_user_weight: no user"):
        worth(policy, table=with_values(TABLE, np.zeros(10)), teaches_value=False, user=1.0)
    with pytest.raises(DataError, match="action_weights leave every answer"):
        worth(policy, table=TABLE, teaches_value=False, actions=(1.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"user": -1.0}, "value_user_weight -1.0"),
        ({"user": float("nan")}, "value_user_weight nan"),
        ({"actions": (1.0, 2.0, 1.0)}, "action_weights"),
        ({"actions": (1.0, 1.0)}, "three numbers"),
        ({"actions": (0.0, 0.0, 0.0)}, "action_weights"),
        ({"actions": (float("inf"), 1.0, 1.0)}, "action_weights"),
        ({"clip": 10}, "percentile: give 50 to 100"),
        ({"clip": float("nan")}, "percentile"),
    ],
)
def test_impossible_plans_are_refused(plan, message):
    with pytest.raises(ConfigError, match=message):
        WeightPlan(**plan)
