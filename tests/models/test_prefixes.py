import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from genrec_rl.models.prefixes import Prefixes

BRANCHES = torch.tensor([[[1, 2], [1, 3], [1, 2], [4, 2]], [[5, 6], [5, 6], [5, 6], [5, 6]]])
"""Two prompts with five and two distinct prefixes."""


def spelled(prefixes):
    """Write each branch's prefixes out, as the places that stand for them are read."""
    depths = torch.arange(prefixes.place_BGW.shape[2])
    lines = prefixes.line_BQW.gather(1, prefixes.place_BGW.flatten(1)[..., None].expand(-1, -1, len(depths)))
    tokens = prefixes.tokens_BQ[:, None].expand(-1, lines.shape[1], -1).gather(2, lines)
    tokens = tokens.unflatten(1, (-1, len(depths)))
    return [[[row[: depth + 1].tolist() for depth, row in enumerate(of)] for of in rows] for rows in tokens]


def test_equal_prefixes_share_a_place():
    prefixes = Prefixes.of(BRANCHES)
    assert prefixes.tokens_BQ.tolist() == [[1, 2, 3, 4, 2], [5, 6, 5, 5, 5]]
    assert prefixes.depth_BQ.tolist() == [[0, 1, 1, 0, 1], [0, 1, 0, 0, 0]]
    assert prefixes.place_BGW.tolist() == [[[0, 1], [0, 2], [0, 1], [3, 4]], [[0, 1]] * 4]


def test_prefixes_of_which_nobody_asks_have_no_place():
    is_asked = torch.tensor([[[True, False], [True, True], [True, False], [False, False]], [[False, False]] * 4])
    prefixes = Prefixes.of(BRANCHES, is_asked)
    assert prefixes.tokens_BQ.tolist() == [[1, 3], [5, 5]]
    assert prefixes.place_BGW[0, 1].tolist() == [0, 1]
    assert prefixes.place_BGW[0, :3, 0].tolist() == [0, 0, 0]


def test_a_prefix_that_anybody_asks_about_has_a_place_whoever_comes_first():
    is_asked = torch.tensor([[[True, True], [False, False], [False, False], [False, False]]])
    for order in ([0, 1, 2, 3], [2, 1, 0, 3]):
        prefixes = Prefixes.of(BRANCHES[:1, order], is_asked[:, order])
        assert prefixes.tokens_BQ.tolist() == [[1, 2]]
        assert prefixes.place_BGW[0, order.index(0)].tolist() == [0, 1]


def test_prefixes_are_read_where_nobody_asks_about_any():
    """Processes that train together must call the model equally often."""
    prefixes = Prefixes.of(BRANCHES, torch.zeros_like(BRANCHES, dtype=torch.bool))
    assert prefixes.tokens_BQ.shape == (2, 1)
    assert prefixes.place_BGW.eq(0).all()


def test_a_certain_prefix_is_read_where_a_longer_one_is_asked_about():
    is_asked = torch.tensor([[[False, True], [False, False], [False, True], [False, False]]])
    prefixes = Prefixes.of(BRANCHES[:1], is_asked)
    assert prefixes.tokens_BQ.tolist() == [[1, 2]]
    assert prefixes.line_BQW[0, 1].tolist() == [0, 1]


@given(
    branches=hnp.arrays(np.int64, hnp.array_shapes(min_dims=3, max_dims=3, max_side=4), elements=st.integers(0, 2)),
)
def test_every_place_spells_its_branches_prefix(branches):
    prefixes = Prefixes.of(torch.from_numpy(branches))
    steps = range(1, branches.shape[2] + 1)
    assert spelled(prefixes) == [[[branch[:n].tolist() for n in steps] for branch in row] for row in branches]
    distinct = [len({tuple(branch[:n]) for branch in row for n in steps}) for row in branches]
    assert prefixes.tokens_BQ.shape[1] == max(distinct)
