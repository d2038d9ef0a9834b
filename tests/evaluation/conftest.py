"""Six items, three requests, and a recommender that answers from a table."""

import numpy as np
import pytest
import torch

from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Action, Context, Example, Rollouts

CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]], dtype=np.int32)


def make_catalog(codes=CODES):
    n_items = len(codes)
    return Catalog(
        codes=codes,
        codebook_sizes=(3, 2),
        item_ids=np.array([f"item{i}" for i in range(n_items)]),
        vectors=np.eye(n_items, dtype=np.float32),
        centroids=[],
        items_fingerprint="items",
        popularity=np.arange(n_items, 0, -1),
    )


def make_example(name, history, items, actions):
    context = Context(
        user_id=f"user_{name}",
        time=10,
        history=np.array(history, dtype=np.int32),
        history_times=np.arange(len(history)),
        history_pages=np.arange(len(history)),
    )
    return Example(f"request_{name}", context, np.array(items), np.array(actions, dtype=np.int8))


class Scripted:
    """Answers each user with the SIDs of a table; the unconstrained table may hold SIDs without an item."""

    def __init__(self, catalog, constrained, unconstrained=None):
        self.catalog, self.tables = catalog, {True: constrained, False: unconstrained}
        self.asked = []

    def recommend(self, contexts, *, k, constrained):
        self.asked.append((len(contexts), k, constrained))
        sids = torch.tensor([self.tables[constrained][context.user_id] for context in contexts])[:, :k]
        scores = -torch.arange(sids.shape[1], dtype=torch.float).expand(len(contexts), -1)
        return Rollouts(sids_PGL=sids, rows_PG=self.catalog.rows_of(sids), log_probs_PG=scores)


@pytest.fixture
def catalog():
    return make_catalog()


@pytest.fixture
def examples():
    return [
        make_example("a", [0, 1], [2, 5], [Action.ORDER, Action.EXPOSE]),
        make_example("b", [3], [1, 3], [Action.ORDER, Action.CLICK]),
        make_example("c", [4, 5, 0], [4], [Action.CLICK]),
    ]


@pytest.fixture
def good(catalog):
    """Hits at rank 1 for a, at rank 2 for b, never for c; free decoding loses a's hit to an invalid SID."""
    constrained = {
        "user_a": [[1, 0], [0, 0], [0, 1]],
        "user_b": [[0, 0], [0, 1], [2, 0]],
        "user_c": [[0, 0], [0, 1], [1, 0]],
    }
    free = constrained | {"user_a": [[9, 9], [1, 0], [0, 1]]}
    return Scripted(catalog, constrained, free)


@pytest.fixture
def bad(catalog):
    """One list without a hit for everyone; no valid SID when free."""
    return Scripted(
        catalog,
        {f"user_{name}": [[0, 0], [2, 1], [0, 0]] for name in "abc"},
        {f"user_{name}": [[9, 9], [9, 0], [0, 9]] for name in "abc"},
    )
