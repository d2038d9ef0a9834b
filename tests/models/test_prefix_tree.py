import pytest
import torch

from genrec_rl.models.prefix_tree import (
    as_attention_mask,
    attached_logits,
    branch_log_probs,
    score_branches,
    tree_layout,
    tree_mask,
    tree_positions,
)
from genrec_rl.models.trunk import read_trunk
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


def on_trunk(model, prompts, branches):
    """Score branches on prompts that were read before."""
    logits = attached_logits(model, read_trunk(model, *prompts), branches)
    return score_branches(logits.log_probs(), branches).log_probs_BGC


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


def test_attention_without_arbitrary_masks_is_replaced_loudly_with_equal_scores(policy):
    prompts = [policy.prompts.prompt(make_context(history)) for history in ([0, 4, 7], [5])]
    branches = torch.randint(4, 16, (2, 5, 3), generator=torch.Generator().manual_seed(0))
    ids, is_prompt = policy.prompts.batch(prompts)
    expected = branch_log_probs(policy.model, ids, is_prompt, branches).log_probs_BGC
    policy.model.config._attn_implementation = "flash_attention_2"
    with pytest.warns(UserWarning, match="'flash_attention_2' takes no tree mask.*'sdpa'"):
        found = branch_log_probs(policy.model, ids, is_prompt, branches).log_probs_BGC
    assert found.equal(expected)
    assert policy.model.config._attn_implementation == "sdpa"


def test_boolean_mask_under_eager_would_be_wrong(policy):
    """The trap that as_attention_mask closes: eager adds True as 1."""
    prompt = policy.prompts.prompt(make_context([0, 4, 7]))
    ids, is_prompt = policy.prompts.batch([prompt])
    mask = tree_mask(*tree_layout(is_prompt, n_branches=0, width=2))
    expected = policy.model(input_ids=ids).logits
    policy.model.set_attn_implementation("eager")
    additive = as_attention_mask(policy.model, mask, torch.float32)
    right = policy.model(input_ids=ids, attention_mask={"full_attention": additive})
    wrong = policy.model(input_ids=ids, attention_mask={"full_attention": mask})
    assert torch.allclose(right.logits, expected, atol=1e-5)
    assert not torch.allclose(wrong.logits, expected, atol=1e-2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_branches_on_a_live_trunk_equal_one_row_per_branch_in_value_and_gradient(policy, attention):
    model = policy.model
    model.set_attn_implementation(attention)
    prompts = [policy.prompts.prompt(make_context(history)) for history in ([0, 4, 7], [5], [])]
    branches = torch.randint(4, 16, (3, 5, 3), generator=torch.Generator().manual_seed(0))
    weights = [*model.parameters()]
    expected = one_by_one(model, prompts, branches)
    wanted = torch.autograd.grad(expected.square().sum(), weights)
    found = on_trunk(model, policy.prompts.batch(prompts), branches)
    gradients = torch.autograd.grad(found.square().sum(), weights)
    assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(gradients, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == attention


def test_branches_of_one_token_are_predicted_by_the_prompt_alone(policy):
    prompt = policy.prompts.batch([policy.prompts.prompt(make_context([5, 2]))])
    branches = torch.tensor([[[4], [7]]])
    found = on_trunk(policy.model, prompt, branches)
    expected = policy.model(prompt[0]).logits[0, -1].log_softmax(-1)[[4, 7]]
    assert torch.allclose(found[0, :, 0], expected, atol=1e-5)


def test_entropies_have_a_gradient_only_when_they_are_trained(policy):
    ids, is_prompt = policy.prompts.batch([policy.prompts.prompt(make_context([5]))])
    branches = torch.tensor([[[4, 8, 12]]])
    for train in (False, True):
        scores = branch_log_probs(policy.model, ids, is_prompt, branches, train_entropy=train)
        assert scores.entropies_BGC.requires_grad == train


def test_activation_checkpointing_changes_no_gradient(policy):
    ids, is_prompt = policy.prompts.batch([policy.prompts.prompt(make_context([5, 2, 8]))])
    branches = torch.tensor([[[4, 8, 12], [5, 9, 13]]])
    weights = [*policy.model.parameters()]

    def gradients():
        log_probs = branch_log_probs(policy.model, ids, is_prompt, branches).log_probs_BGC
        return torch.autograd.grad(log_probs.sum(), weights)

    wanted = gradients()
    policy.model.train()
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for found, expected in zip(gradients(), wanted, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
