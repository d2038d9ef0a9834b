from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.nn import functional

from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.errors import ConfigError
from genrec_rl.models.prefix_tree import attached_logits
from genrec_rl.models.trunk import Branches, branch_attention, read_trunk, unwrap
from tests.fixtures import make_context, make_policy

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def whole_attention(queries, keys, values, sees):
    """Softmax attention with repeated key heads and a full mask: what the two pieces must add up to."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=sees)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("n_past", [0, 1])
def test_two_pieces_equal_one_softmax_over_trunk_and_own_past(width, n_past):
    n_branches, n_trunk, n_own = 3, 5, n_past + width
    queries = normal(2, 4, n_branches * width, 8)
    trunk = (normal(2, 2, n_trunk, 8), normal(2, 2, n_trunk, 8))
    own = (normal(2, 2, n_branches, n_own, 8), normal(2, 2, n_branches, n_own, 8))
    is_prompt = torch.tensor([[False, True, True, True, True], [True] * 5])
    bias = torch.zeros(2, 5).masked_fill(~is_prompt, torch.finfo(torch.float32).min)[:, None, None]
    found = branch_attention(queries, trunk, own, bias=bias, scaling=8**-0.5)

    keys, values = (torch.cat([far, near.flatten(2, 3)], dim=2) for far, near in zip(trunk, own, strict=True))
    sees = torch.zeros(2, 1, n_branches * width, n_trunk + n_branches * n_own, dtype=torch.bool)
    sees[..., :n_trunk] = is_prompt[:, None, None]
    for place in range(n_branches * width):
        branch, step = divmod(place, width)
        start = n_trunk + branch * n_own
        sees[:, :, place, start : start + n_past + step + 1] = True
    assert torch.allclose(found, whole_attention(queries, keys, values, sees), atol=1e-5)


def test_threads_that_share_a_model_take_turns(policy, catalog):
    recommender = BeamRecommender(policy, catalog=catalog)
    expected = recommender.recommend([make_context([5, 2])], k=4, constrained=True).rows_PG.tolist()

    def ask(_):
        return recommender.recommend([make_context([5, 2])], k=4, constrained=True).rows_PG.tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(40))) == [expected] * 40
    assert policy.model.config._attn_implementation == "sdpa"


def test_model_that_keeps_nothing_is_refused(policy):
    prompt = policy.prompts.batch([policy.prompts.prompt(make_context([5]))])
    policy.model.train()
    policy.model.activation_checkpointing_enable()
    with pytest.raises(ConfigError, match="switch activation checkpointing off"):
        read_trunk(policy.model, *prompt)


def test_attention_dropout_in_branches_is_refused(policy):
    trunk = read_trunk(policy.model, *policy.prompts.batch([policy.prompts.prompt(make_context([5]))]))
    policy.model.train()
    for layer in policy.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(ConfigError, match=r"attention_dropout is 0\.5"):
        Branches(trunk, n_branches=1).read(policy.model, torch.tensor([[5]]))


@pytest.mark.parametrize("groups", [2, 3, 4, 64])
def test_prompts_read_in_groups_of_like_length_make_the_same_trunk(policy, groups):
    histories = ([5], [5, 2, 7, 1], [], [3, 8], [4, 4, 9], [6])
    prompt = policy.prompts.batch([policy.prompts.prompt(make_context(history)) for history in histories])
    together, grouped = read_trunk(policy.model, *prompt), read_trunk(policy.model, *prompt, length_groups=groups)
    assert torch.allclose(grouped.logits_BV, together.logits_BV, atol=1e-5)
    assert grouped.next_position_B1.tolist() == together.next_position_B1.tolist()
    real = prompt[1][:, None, :, None]
    for found, expected in zip(grouped.layers, together.layers, strict=True):
        for states, whole in zip(found, expected, strict=True):
            assert torch.allclose(states * real, whole * real, atol=1e-5)


@pytest.mark.parametrize("lazy_layers", [None, 1])
def test_a_trunk_read_in_groups_passes_the_same_gradient(catalog, lazy_layers):
    policy = make_policy(catalog, lazy_layers=lazy_layers)
    histories = ([5], [5, 2, 7, 1], [], [3, 8], [4, 4, 9], [6])
    prompt = policy.prompts.batch([policy.prompts.prompt(make_context(history)) for history in histories])
    branches = torch.from_numpy(policy.prompts.answer(torch.arange(12).numpy())).view(6, 2, 3)
    gradients = []
    for groups in (1, 3):
        policy.model.zero_grad()
        trunk = read_trunk(policy.model, *prompt, length_groups=groups)
        attached_logits(policy.model, trunk, branches).later_BGWV.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-3)
    assert gradients[0].abs().max() > 1


def test_groups_are_as_many_whatever_the_lengths(policy, monkeypatch):
    """Processes that train together must call the wrapped model equally often."""
    calls = []
    read = policy.model.forward
    monkeypatch.setattr(policy.model, "forward", lambda **kwargs: calls.append(1) or read(**kwargs))
    for histories in ([[5]] * 6, [[5], [5, 2, 7, 1], [], [3, 8], [4, 4, 9], [6]]):
        prompt = policy.prompts.batch([policy.prompts.prompt(make_context(history)) for history in histories])
        calls.clear()
        read_trunk(policy.model, *prompt, length_groups=3)
        assert len(calls) == 3


def test_followed_branches_go_on_from_their_parents(policy):
    """Reading a two-token branch at once equals reading one token, reordering, and reading the other."""
    trunk = read_trunk(policy.model, *policy.prompts.batch([policy.prompts.prompt(make_context([5, 2]))]))
    first, second = torch.tensor([[4, 5, 6]]), torch.tensor([[8, 9]])
    parents = torch.tensor([[2, 0]])
    branches = Branches(trunk, n_branches=3)
    branches.read(policy.model, first)
    found = branches.follow(parents).read(policy.model, second, depth=1).logits
    whole = Branches(trunk, n_branches=2).read(policy.model, torch.tensor([[6, 8, 4, 9]])).logits
    assert torch.allclose(found, whole[:, 1::2], atol=1e-5)


@pytest.mark.parametrize("lazy_layers", [None, 1])
def test_what_is_asked_is_answered_the_same_and_passes_the_same_gradient(catalog, lazy_layers):
    policy = make_policy(catalog, lazy_layers=lazy_layers)
    prompt = policy.prompts.batch([policy.prompts.prompt(make_context(history)) for history in ([5, 2, 7], [])])
    branches = torch.from_numpy(policy.prompts.answer(np.array([0, 1, 2, 0, 9, 9, 4, 5]))).view(2, 4, 3)
    is_asked = torch.ones_like(branches, dtype=torch.bool)
    is_asked[0, 1, 1:] = is_asked[1, 0:2, 2] = False
    found = []
    for asked in (None, is_asked):
        policy.model.zero_grad()
        trunk = read_trunk(policy.model, *prompt)
        later = attached_logits(policy.model, trunk, branches, is_asked_BGC=asked).later_BGWV
        answers = later * is_asked[:, :, 1:, None]
        answers.square().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
        found.append((answers, gradient))
    for with_all, with_some in zip(*found, strict=True):
        assert torch.allclose(with_all, with_some, rtol=1e-3, atol=1e-3)
    assert found[0][1].abs().max() > 1


def test_attention_is_given_back_after_an_error(policy):
    trunk = read_trunk(policy.model, *policy.prompts.batch([policy.prompts.prompt(make_context([5]))]))
    with pytest.raises(IndexError):
        Branches(trunk, n_branches=1).read(policy.model, torch.tensor([[10_000]]))
    assert policy.model.config._attn_implementation == "sdpa"


class Engine(torch.nn.Module):
    """Wraps as DeepSpeed's engine does: a config of its own, other attributes the model's."""

    def __init__(self, module):
        super().__init__()
        self.module, self.config = module, {"train_batch_size": 1}

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def test_the_model_is_found_inside_its_wrappers(policy):
    assert Engine(policy.model).dtype == policy.model.dtype
    for wrapped in (policy.model, Engine(policy.model), Engine(Engine(policy.model))):
        assert unwrap(wrapped) is policy.model
