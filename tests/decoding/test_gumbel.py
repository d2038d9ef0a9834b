from itertools import permutations

import pytest
import torch

from genrec_rl.decoding.gumbel import perturb_children


def draw(log_probs, parents, perturbed, seed=0):
    return perturb_children(
        torch.tensor([perturbed]), torch.tensor([log_probs]), torch.tensor([parents]),
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def test_best_child_has_its_parents_score():
    for seed in range(20):
        found = draw([-1.0, -2.0, -0.5, -3.0, -1.5], [0, 0, 1, 1, 1], [0.3, -4.0], seed)[0]
        assert found[:2].max().item() == pytest.approx(0.3, abs=1e-6)
        assert found[2:].max().item() == pytest.approx(-4.0, abs=1e-6)


def test_what_is_no_child_is_never_drawn():
    found = draw([-1.0, -torch.inf, -torch.inf, -torch.inf], [0, 0, 1, 1], [0.0, 0.0])[0]
    assert found.tolist() == [0.0, -torch.inf, -torch.inf, -torch.inf]


def test_equal_seeds_draw_alike():
    arguments = ([-1.0, -2.0], [0, 0], [0.0])
    assert draw(*arguments, seed=3).equal(draw(*arguments, seed=3))
    assert not draw(*arguments, seed=3).equal(draw(*arguments, seed=4))


def test_two_levels_sample_leaves_without_replacement():
    """Leaves .5*.8, .5*.2, .3*1, .2*1: the first two drawn must follow p_i p_j / (1 - p_i)."""
    leaves = torch.tensor([0.4, 0.1, 0.3, 0.2])
    n = 40_000
    generator = torch.Generator().manual_seed(0)
    inner = torch.tensor([0.5, 0.3, 0.2]).log().expand(n, -1)
    first = perturb_children(torch.zeros(n, 1), inner, torch.zeros(n, 3, dtype=torch.long), generator=generator)
    parents = torch.tensor([0, 0, 1, 2]).expand(n, -1)
    second = perturb_children(first, leaves.log().expand(n, -1), parents, generator=generator)
    order = second.topk(2, dim=1).indices
    for i, j in permutations(range(4), 2):
        expected = leaves[i] * leaves[j] / (1 - leaves[i])
        found = ((order[:, 0] == i) & (order[:, 1] == j)).float().mean()
        assert found.item() == pytest.approx(expected.item(), abs=0.01)
