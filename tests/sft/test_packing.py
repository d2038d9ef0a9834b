from types import SimpleNamespace

import numpy as np
import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.sft.packing import pack
from genrec_rl.sft.rows import IGNORED
from genrec_rl.sft.user_tree import TreeCollator
from tests.fixtures import make_policy
from tests.sft.test_user_tree import TABLE

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
