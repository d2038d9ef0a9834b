"""A market small enough to work out by hand, shared by the tests: 12 items, 3 levels of 4 codes, 6 pages."""

import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled", "CI": "1"}

import numpy as np
import pytest
import torch

from genrec_rl.data.sources.synthetic import make_synthetic
from genrec_rl.data.store import Dataset, load_dataset, write_dataset
from genrec_rl.models.policy import BackboneSize, Policy, create_policy
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.sids.catalog import Catalog
from genrec_rl.tracking import finish_stage
from genrec_rl.types import Action, Context, Example

torch.set_num_threads(1)

CODES = np.array(
    [
        *([0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 2, 3], [1, 0, 0], [1, 1, 1]),
        *([1, 1, 2], [2, 0, 3], [2, 3, 3], [3, 0, 0], [3, 2, 1], [3, 3, 3]),
    ],
    dtype=np.int32,
)


def make_catalog(codes: np.ndarray = CODES, sizes: tuple[int, ...] = (4, 4, 4)) -> Catalog:
    vectors = np.random.default_rng(0).normal(size=(len(codes), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Catalog(
        codes=codes.astype(np.int32),
        codebook_sizes=sizes,
        item_ids=np.array([f"item{i}" for i in range(len(codes))]),
        vectors=vectors,
        centroids=[],
        items_fingerprint="items",
        popularity=np.arange(len(codes)),
    )


def make_context(
    history: list[int], pages: list[int] | None = None, user: str = "u", disliked: list[int] = ()
) -> Context:
    n = len(history)
    return Context(
        user_id=user,
        time=1000,
        history=np.array(history, np.int32),
        history_times=np.arange(n, dtype=np.int64),
        history_pages=np.array(pages if pages is not None else range(n), np.int32),
        disliked=np.array(disliked, np.int32),
    )


def make_example(
    history: list[int],
    orders: list[int],
    clicks: list[int] = (),
    exposed: list[int] = (),
    *,
    disliked: list[int] = (),
) -> Example:
    actions = [Action.ORDER] * len(orders) + [Action.CLICK] * len(clicks) + [Action.EXPOSE] * len(exposed)
    return Example(
        request_id=f"r{history}{orders}",
        context=make_context(history, disliked=disliked),
        items=np.array([*orders, *clicks, *exposed], np.int32),
        actions=np.array(actions, np.int8),
    )


def make_policy(catalog: Catalog, *, grammar: PromptGrammar | None = None, seed: int = 0, **settings) -> Policy:
    size = BackboneSize(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48)
    policy = create_policy(catalog, grammar=grammar or PromptGrammar(), backbone=size, seed=seed, **settings)
    with torch.no_grad():  # far enough from uniform that no two beams tie
        for weights in policy.model.parameters():
            weights.add_(torch.randn_like(weights) * 0.1)
    policy.model.eval()
    return policy


@pytest.fixture
def catalog() -> Catalog:
    return make_catalog()


@pytest.fixture
def policy(catalog: Catalog) -> Policy:
    return make_policy(catalog)


@pytest.fixture
def examples() -> list[Example]:
    return [
        make_example([0, 4], [1], [5]),
        make_example([7], [8, 9, 3]),
        make_example([], [2]),
        make_example([3, 3, 10, 11, 6], [0], [1], [5]),
        make_example([1, 2], [4, 6]),
        make_example([9, 8, 7], [11]),
    ]


def write_market(root: Path) -> tuple[Dataset, Catalog]:
    """Write a synthetic market of 60 items and its catalogue as finished stages, ``data`` and ``sids``."""
    write_dataset(make_synthetic(n_users=40, n_items=60, n_requests=500, seed=0), root / "data")
    dataset = load_dataset(root / "data")
    catalog = Catalog(
        codes=np.stack(np.unravel_index(np.arange(60), (4, 4, 4)), axis=1).astype(np.int32),
        codebook_sizes=(4, 4, 4),
        item_ids=np.array(dataset.item_ids),
        vectors=np.eye(60, dtype=np.float32),
        centroids=[],
        items_fingerprint=dataset.items_fingerprint,
        popularity=dataset.popularity,
    )
    catalog.save(root / "sids")
    for stage in ("data", "sids"):
        finish_stage(root / stage, stage=stage, settings={}, inputs={}, seconds=0)
    return dataset, catalog
