import pytest
import torch

from genrec_rl.errors import ConfigError
from genrec_rl.models.prefix_tree import as_attention_mask, branch_log_probs, tree_layout, tree_mask, tree_positions
from tests.fixtures import make_context


def test_branches_continue_their_own_prompt():
    is_prompt = torch.tensor([[False, True, True], [True, True, True]])
    positions = tree_positions(is_prompt, n_branches=2, width=2)
    assert positions.tolist() == [[0, 0, 1, 2, 3, 2, 3], [0, 1, 2, 3, 4, 3, 4]]


def test_branch_sees_the_prompt_and_itself_only():
    mask = tree_mask(*tree_layout(torch.tensor([[False, True]]), n_branches=2, width=2))[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],  # padding sees itself, or SDPA would give NaN
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 1],
    ]


def test_branches_may_hang_anywhere_along_the_trunk():
    owner = torch.tensor([[-1, -1, -1, 0, 1, -2]])
    limit = torch.tensor([[1, 2, 3, 1, 3, 0]])
    assert tree_mask(owner, limit)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_trees_that_share_a_row_are_blind_to_each_other():
    owner = torch.tensor([[-1, -1, 0, -1, 1, -1, -2]])
    limit = torch.tensor([[1, 2, 1, 4, 4, 6, 0]])
    start = torch.tensor([[0, 0, 0, 3, 3, 5, 0]])
    assert tree_mask(owner, limit, start)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


def one_by_one(model, prompts, branches):
    """Score each branch in a row of its own, unpadded: what the tree must equal."""
    log_probs = torch.empty(branches.shape)
    for b, prompt in enumerate(prompts):
        for g, branch in enumerate(branches[b]):
            ids = torch.cat([torch.from_numpy(prompt), branch])[None]
            scores = model(input_ids=ids).logits.log_softmax(-1)[0]
            log_probs[b, g] = scores[len(prompt) - 1 : -1].gather(1, branch[:, None])[:, 0]
    return log_probs


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tree_equals_one_row_per_branch_in_value_and_gradient(policy, attention):
    model = policy.model
    model.set_attn_implementation(attention)
    prompts = [policy.prompts.prompt(make_context(history)) for history in ([0, 4, 7], [5], [])]
    branches = torch.randint(4, 16, (3, 5, 3), generator=torch.Generator().manual_seed(0))
    ids, is_prompt = policy.prompts.batch(prompts)

    expected = one_by_one(model, prompts, branches)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), model.model.token_merger.weight)
    found, entropy = branch_log_probs(model, ids, is_prompt, branches)
    (gradient,) = torch.autograd.grad(found.square().sum(), model.model.token_merger.weight)

    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    assert entropy.shape == (3, 5, 3)
    assert (entropy > 0).all()


def test_boolean_mask_under_eager_becomes_additive(policy):
    policy.model.set_attn_implementation("eager")
    mask = as_attention_mask(policy.model, torch.tensor([[[[True, False]]]]), torch.float32)
    assert mask.tolist() == [[[[0.0, torch.finfo(torch.float32).min]]]]


def test_attention_without_arbitrary_masks_is_refused(policy):
    policy.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="attn_implementation: sdpa"):
        as_attention_mask(policy.model, torch.ones(1, 1, 1, 1, dtype=torch.bool), torch.float32)
