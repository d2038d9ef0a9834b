from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec_rl.errors import ConfigError
from genrec_rl.sft.packing import pack
from genrec_rl.sft.rows import IGNORED
from genrec_rl.sft.user_tree import TreeCollator
from genrec_rl.sft.worth import WeightPlan
from tests.fixtures import make_policy
from tests.sft.test_user_tree import TABLE
from tests.sft.test_worth import BUCKETS, VALUED

DATASET = SimpleNamespace(
    pages=TABLE,
    split=SimpleNamespace(train=np.array([0, 1, 3]), valid=np.array([2, 4])),
    examples=lambda split, max_history: TABLE.select(getattr(DATASET.split, split), max_history=max_history),
)
LIMITS = {"max_items": 10, "max_exposed": 0}


def test_trees_have_one_row_a_user_and_their_collator(policy, catalog):
    packed = pack(DATASET, policy, catalog, packing="user_tree", target="page", **LIMITS)
    assert (len(packed.train), len(packed.valid)) == (2, 2)
    assert isinstance(packed.collator, TreeCollator)


def test_without_packing_there_is_one_row_a_page(policy, catalog):
    packed = pack(DATASET, policy, catalog, packing="none", target="page", **LIMITS)
    assert (len(packed.train), len(packed.valid)) == (3, 5)  # valid: one row a positive
    assert packed.collator is None


@pytest.mark.parametrize("packing", ["user_tree", "none"])
@pytest.mark.parametrize("target", ["page", "item", "running", "page+item"])
def test_valid_rows_ask_the_same_whatever_is_taught(policy, catalog, packing, target):
    packed = pack(DATASET, policy, catalog, packing=packing, target=target, **LIMITS)
    key = "shift_labels" if packing == "user_tree" else "labels"
    asked = sum(sum(token != IGNORED for token in row[key]) for row in packed.valid)
    assert asked == policy.vocab.n_levels * 5


def test_unknown_packing_is_refused(policy, catalog):
    with pytest.raises(ConfigError, match="packing_pages 'bins'"):
        pack(DATASET, policy, catalog, packing="bins", target="page", **LIMITS)


def test_softmax_over_children_needs_trees(catalog):
    policy = make_policy(catalog, softmax="children")
    with pytest.raises(ConfigError, match="set packing_pages user_tree"):
        pack(DATASET, policy, catalog, packing="none", target="page", **LIMITS)


def test_policy_with_a_softmax_over_children_has_rows_for_it(catalog):
    packed = pack(
        DATASET, make_policy(catalog, softmax="children"), catalog, packing="user_tree", target="page", **LIMITS
    )
    assert packed.collator.siblings is not None


@pytest.mark.parametrize("packing", ["user_tree", "none"])
def test_history_dropout_is_for_training_rows_alone(policy, catalog, packing):
    packed = pack(DATASET, policy, catalog, packing=packing, target="page", history_dropout=0.9, **LIMITS)
    whole = pack(DATASET, policy, catalog, packing=packing, target="page", **LIMITS)
    torch.manual_seed(0)
    places = [sum(len(row["input_ids"]) for row in part) for part in (packed.train, whole.train)]
    assert places[0] < places[1]
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(packed.valid, whole.valid, strict=True))


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_history_dropout_that_is_no_share_is_refused(policy, catalog, dropout):
    with pytest.raises(ConfigError, match=f"history_dropout {dropout}"):
        pack(DATASET, policy, catalog, packing="user_tree", target="page", history_dropout=dropout, **LIMITS)


@pytest.mark.parametrize("packing", ["user_tree", "none"])
def test_learn_valid_teaches_the_validation_pages_too(policy, catalog, packing):
    key = "shift_labels" if packing == "user_tree" else "labels"
    for learn_valid, n_items in ((False, 2 + 1 + 1), (True, 2 + 1 + 1 + 3 + 2)):
        packed = pack(DATASET, policy, catalog, packing=packing, target="running", learn_valid=learn_valid, **LIMITS)
        taught = sum(sum(token != IGNORED for token in row[key]) for row in packed.train)
        assert taught == policy.vocab.n_levels * n_items


@pytest.mark.parametrize("packing", ["user_tree", "none"])
def test_values_and_weights_are_for_training_rows_alone(catalog, packing):
    policy = make_policy(catalog, values=BUCKETS)
    data = SimpleNamespace(pages=VALUED, split=DATASET.split)
    given = {"packing": packing, "target": "item", **LIMITS}
    packed = pack(data, policy, catalog, teaches_value=True, weights=WeightPlan(user=1.0), **given)
    plain = pack(data, policy, catalog, **given)
    key = "shift_labels" if packing == "user_tree" else "labels"
    labels = [
        sum(sum(token != IGNORED for token in row[key]) for row in part) for part in (packed.train, plain.train)
    ]
    assert labels == [4 * 4, 4 * 3]
    assert "weights" in packed.train[0]
    assert packed.valid[0].keys() == plain.valid[0].keys() == plain.train[0].keys()
    assert [list(row[key]) for row in packed.valid] == [list(row[key]) for row in plain.valid]
