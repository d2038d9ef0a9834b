import numpy as np
import pytest
import torch

from genrec_rl.decoding.beam_search import BeamPlan, beam_search, search_from
from genrec_rl.errors import ConfigError
from genrec_rl.models.lazy import Fuse, LazyPlaces, append_unfused, read_lazy
from genrec_rl.models.policy import load_policy
from genrec_rl.models.prefix_tree import attached_logits, branch_log_probs, score_branches
from genrec_rl.models.prompts import PromptGrammar, lazy_ids
from genrec_rl.models.trunk import Branches, read_trunk
from tests.fixtures import CODES, make_catalog, make_context, make_policy

HISTORIES = ([0, 4, 7], [5], [])


def prompts_of(policy):
    prompts = [policy.prompts.prompt(make_context(history)) for history in HISTORIES]
    return prompts, *policy.prompts.batch(prompts)


def one_by_one(model, prompts, branches):
    """Score each branch in a row of its own, unpadded, its codes written as lazy ids: teacher forcing."""
    log_probs = torch.empty(branches.shape)
    for b, prompt in enumerate(prompts):
        for g, branch in enumerate(branches[b]):
            inputs = lazy_ids(branch[:-1], torch.arange(len(branch) - 1))
            ids = torch.cat([torch.from_numpy(prompt), inputs])[None]
            scores = model(input_ids=ids).logits.log_softmax(-1)[0]
            log_probs[b, g] = scores[len(prompt) - 1 :].gather(1, branch[:, None])[:, 0]
    return log_probs


@pytest.fixture
def lazy(catalog):
    return make_policy(catalog, lazy_layers=1)


def random_branches(seed=0):
    return torch.randint(4, 16, (3, 5, 3), generator=torch.Generator().manual_seed(seed))


def lower_states(policy, ids):
    return policy.model.model(input_ids=ids, stops_at_fuse=True).last_hidden_state


def test_ids_say_token_and_depth():
    ids = torch.tensor([[5, int(lazy_ids(7, 0)), int(lazy_ids(9, 1)), 1 << 62 | 3]])
    places = read_lazy(ids)
    assert places.is_lazy_BS.tolist() == [[False, True, True, False]]
    assert places.depths_BS[0, 1:3].tolist() == [0, 1]
    assert places.tokens_BS[0, 1:3].tolist() == [7, 9]


def test_fuse_of_hand_worked_vectors():
    fuse = Fuse(2)
    with torch.no_grad():
        fuse.gate.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        fuse.gate_bias.copy_(torch.tensor([0.0, -1.0]))
        fuse.mix.copy_(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 2.0, 1.0, 0.0]]))
    # W_g s = (3, 3 + 4) and b_g = (0, -1): the gate is (3, 6); m * gate = (6, -6).
    found = fuse(torch.tensor([[2.0, -1.0]]), torch.tensor([[3.0, 4.0]]))
    assert found.tolist() == [[6.0 + 4.0, -12.0 + 3.0]]


def test_untrained_fuse_adds_the_code(catalog):
    fuse = make_policy(catalog, lazy_layers=1).model.model.fuse
    fuse.start_as_sum()
    assert fuse(torch.tensor([[2.0] * 32]), torch.tensor([[0.5] * 32])).tolist() == [[2.5] * 32]


def test_lower_layers_give_the_same_bits_whatever_the_codes(lazy):
    prompt = torch.from_numpy(lazy.prompts.prompt(make_context([0, 4])))
    states = [
        lower_states(lazy, torch.cat([prompt, lazy_ids(torch.tensor(codes), torch.arange(2))])[None])
        for codes in ([4, 8], [7, 11], [2, 3])
    ]
    assert states[0].equal(states[1])
    assert states[0].equal(states[2])
    ordinary = lower_states(lazy, torch.cat([prompt, torch.tensor([4, 8])])[None])
    assert not ordinary.equal(states[0])


def test_first_code_is_predicted_by_all_layers_of_a_plain_policy(lazy, policy):
    """The weights that both have decide: the first code's logits are a plain policy's, to the bit."""
    policy.model.load_state_dict(lazy.model.state_dict(), strict=False)
    _, ids, is_prompt = prompts_of(lazy)
    assert read_trunk(lazy.model, ids, is_prompt).logits_BV.equal(read_trunk(policy.model, ids, is_prompt).logits_BV)


def test_later_codes_depend_on_the_codes_before(lazy):
    prompts, *_ = prompts_of(lazy)
    pairs = torch.tensor([[[4, 8, 12], [5, 8, 12], [4, 9, 12]]]).expand(3, -1, -1)
    log_probs = one_by_one(lazy.model, prompts, pairs)
    assert (log_probs[:, 0, 1] - log_probs[:, 1, 1]).abs().min() > 1e-4
    assert (log_probs[:, 0, 2] - log_probs[:, 2, 2]).abs().min() > 1e-4


@pytest.mark.parametrize("lazy_layers", [0, 1])
def test_incremental_beams_have_the_log_probabilities_of_teacher_forcing(catalog, lazy_layers):
    lazy = make_policy(catalog, lazy_layers=lazy_layers)
    prompts, ids, is_prompt = prompts_of(lazy)
    plan = BeamPlan((50,) * 3)
    found = beam_search(lazy.model, ids, is_prompt, vocab=lazy.vocab, plan=plan, trie=catalog.trie)
    everything = lazy.vocab.token_ids(torch.from_numpy(CODES).long()).expand(3, -1, -1)
    exact = one_by_one(lazy.model, prompts, everything).sum(-1)
    assert torch.allclose(found.log_probs_BW, exact.sort(dim=1, descending=True).values, atol=1e-5)


def test_free_beams_have_the_log_probabilities_of_teacher_forcing(lazy):
    """Free beams write tokens that are no code of their level; the lower layers go by depth alone."""
    prompts, ids, is_prompt = prompts_of(lazy)
    tokens, scores = beam_search(lazy.model, ids, is_prompt, vocab=lazy.vocab, plan=BeamPlan((16, 60, 60)))
    assert (lazy.vocab.codes(tokens) < 0).any()
    assert torch.allclose(scores, one_by_one(lazy.model, prompts, tokens).sum(-1), atol=1e-5)


def test_beams_run_the_lower_layers_once_for_all(lazy, catalog, monkeypatch):
    _, ids, is_prompt = prompts_of(lazy)
    trunk = read_trunk(lazy.model, ids, is_prompt)
    n_read = []
    below = lazy.model.model.layers[0]
    below.register_forward_pre_hook(lambda _, args: n_read.append(args[0].shape[1]))
    plan = BeamPlan((4, 9, 9))
    search_from(lazy.model, trunk, vocab=lazy.vocab, plan=plan, trie=catalog.trie)
    assert n_read == [2]


def test_without_lower_layers_and_a_fuse_that_passes_the_code_it_is_a_plain_policy(catalog, policy):
    """K = 0, the paper's limiting case: Fuse at the input."""
    lazy = make_policy(catalog, lazy_layers=0)
    lazy.model.load_state_dict(policy.model.state_dict(), strict=False)
    with torch.no_grad():
        lazy.model.model.fuse.mix.copy_(torch.cat([torch.zeros(32, 32), torch.eye(32)], dim=1))
    _, ids, is_prompt = prompts_of(policy)
    expected = branch_log_probs(policy.model, ids, is_prompt, random_branches()).log_probs_BGC
    found = branch_log_probs(lazy.model, ids, is_prompt, random_branches()).log_probs_BGC
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_branches_equal_one_row_per_branch_in_value_and_gradient(lazy, attention):
    """Both readings that RL takes, one forward and a live trunk."""
    model, branches = lazy.model, random_branches()
    model.set_attn_implementation(attention)
    prompts, ids, is_prompt = prompts_of(lazy)
    weights = [*model.parameters()]
    expected = one_by_one(model, prompts, branches)
    wanted = torch.autograd.grad(expected.square().sum(), weights)
    attached = score_branches(
        attached_logits(model, read_trunk(model, ids, is_prompt), branches).log_probs(), branches
    )
    for found, _ in (branch_log_probs(model, ids, is_prompt, branches), attached):
        assert torch.allclose(found, expected, atol=1e-5)
        for one, other in zip(torch.autograd.grad(found.square().sum(), weights), wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_every_weight_gets_a_gradient_from_a_prompt_alone(lazy):
    """What DDP needs of each forward of a fused step."""
    _, ids, is_prompt = prompts_of(lazy)
    read_trunk(lazy.model, ids, is_prompt).logits_BV.sum().backward()
    assert not [name for name, weights in lazy.model.named_parameters() if weights.grad is None]


def test_activation_checkpointing_changes_no_gradient(lazy):
    _, ids, is_prompt = prompts_of(lazy)
    weights = [*lazy.model.parameters()]

    def gradients():
        log_probs = branch_log_probs(lazy.model, ids, is_prompt, random_branches()).log_probs_BGC
        return torch.autograd.grad(log_probs.sum(), weights)

    wanted = gradients()
    lazy.model.train()
    lazy.model.activation_checkpointing_enable()
    for found, expected in zip(gradients(), wanted, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_bfloat16_finds_nearly_the_same_scores(lazy, catalog):
    _, ids, is_prompt = prompts_of(lazy)
    plan = BeamPlan((12,) * 3)
    exact = beam_search(lazy.model, ids, is_prompt, vocab=lazy.vocab, plan=plan, trie=catalog.trie)
    lazy.model.to(torch.bfloat16)
    found = beam_search(lazy.model, ids, is_prompt, vocab=lazy.vocab, plan=plan, trie=catalog.trie)
    assert torch.allclose(found.log_probs_BW, exact.log_probs_BW, atol=0.2)


def test_copies_see_what_their_places_see_and_their_own_items_copies():
    """A prompt's place, two items of a page (the first read merged behind its lazy places), and a padded row."""
    is_lazy = torch.tensor([[False, True, True, False, True, True], [False, True, False, False, False, False]])
    depths = torch.tensor([[0, 0, 1, 0, 0, 1], [0] * 6])
    places = LazyPlaces(is_lazy, depths, depths)
    positions = torch.arange(6).expand(2, -1)
    mask = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, -1, -1).clone()
    mask[1, 0, 2:] = torch.eye(6, dtype=torch.bool)[2:]
    found = append_unfused(places, mask, positions, torch.tensor([0, 1, 5, 6, 7]))
    assert found.at_BN[0].tolist() == [1, 2, 4, 5]
    assert found.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 1, 2, 4, 5]
    assert found.mask[0, 0, :6].equal(torch.cat([mask[0, 0], torch.zeros(6, 4, dtype=torch.bool)], dim=1))
    assert found.mask[0, 0, 6:].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 1, 0],  # a finished item is seen as it was read
        [1, 1, 1, 1, 0, 0, 0, 0, 1, 1],
    ]
    assert found.mask[1, 0, 6].int().tolist() == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert found.kept_places.tolist() == [0, 1, 5, 10, 11, 0, 6, 9, 10, 16]
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert (append_unfused(places, additive, positions, torch.tensor([0])).mask == 0).equal(found.mask)


def mtp_log_probs(policy, prompt, branch):
    """What the MTP pass predicts, and what the fused places of the same forward predict."""
    ids = torch.cat([torch.from_numpy(prompt), lazy_ids(branch[:-1], torch.arange(len(branch) - 1))])[None]
    n = ids.shape[1]
    mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    kept = torch.arange(len(prompt) - 1, n)
    scores = policy.model(input_ids=ids, attention_mask=mask, kept_places=kept, mtp=True).logits[0].log_softmax(-1)
    return [part.gather(1, branch[:, None])[:, 0] for part in scores.chunk(2)]


def test_mtp_predicts_what_a_fuse_that_passes_the_lower_state_would(lazy):
    prompts, *_ = prompts_of(lazy)
    branch = random_branches()[0, 0]
    fused, unfused = mtp_log_probs(lazy, prompts[0], branch)
    assert torch.allclose(fused, one_by_one(lazy.model, prompts[:1], branch[None, None])[0, 0], atol=1e-5)
    with torch.no_grad():
        lazy.model.model.fuse.gate.zero_()
        lazy.model.model.fuse.gate_bias.fill_(1)
        lazy.model.model.fuse.mix.copy_(torch.eye(32).repeat(1, 2))
        lazy.model.model.fuse.mix[:, 32:] = 0
    passing, _ = mtp_log_probs(lazy, prompts[0], branch)
    assert torch.allclose(unfused, passing, atol=1e-5)
    assert torch.allclose(unfused[0], fused[0], atol=1e-6)
    assert not torch.allclose(unfused[1:], fused[1:], atol=1e-3)


def test_round_trip_is_bit_equal(lazy, catalog, tmp_path):
    lazy.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path, catalog=catalog)
    assert loaded.model.config.lazy_layers == 1
    for name, weights in lazy.model.state_dict().items():
        assert weights.equal(loaded.model.state_dict()[name]), name
    items = np.array([3])
    assert loaded.prompts.read_answer(items).tolist() == lazy.prompts.read_answer(items).tolist()


def test_codes_that_another_follows_are_written_as_lazy_ids(lazy, policy):
    tokens = policy.prompts.read_answer(np.array([3])).tolist()
    assert lazy.prompts.read_answer(np.array([3])).tolist() == [
        int(lazy_ids(tokens[0], 0)), int(lazy_ids(tokens[1], 1)), tokens[2]
    ]  # fmt: skip
    assert lazy.prompts.answer(np.array([3])).tolist() == tokens


def test_lazy_ids_are_rendered_as_their_codes(lazy, policy):
    written = [p.prompts.render(p.prompts.read_answer(np.array([3]))) for p in (lazy, policy)]
    assert written == ["<a_0> <b_2> <c_3>"] * 2


def test_grammar_hash_of_a_lazy_policy_is_its_own(lazy, policy):
    assert lazy.model.config.grammar_hash != policy.model.config.grammar_hash


@pytest.mark.parametrize("lazy_layers", [-1, 2, 9])
def test_split_without_a_layer_above_is_refused(catalog, lazy_layers):
    with pytest.raises(ConfigError, match=f"lazy_layers {lazy_layers}: of 2 layers at most 1"):
        make_policy(catalog, lazy_layers=lazy_layers)


def test_sids_of_one_code_are_refused():
    with pytest.raises(ConfigError, match="SIDs of one code"):
        make_policy(make_catalog(np.arange(4)[:, None], (4,)), lazy_layers=1)


def test_generate_is_refused(lazy):
    with pytest.raises(ConfigError, match="beam_search"):
        lazy.model.generate(torch.tensor([[1]]))


def test_unmerged_prompts_work_too(catalog):
    lazy = make_policy(catalog, lazy_layers=1, grammar=PromptGrammar(merge=False))
    prompts, ids, is_prompt = prompts_of(lazy)
    branches = random_branches()
    found = branch_log_probs(lazy.model, ids, is_prompt, branches).log_probs_BGC
    assert torch.allclose(found, one_by_one(lazy.model, prompts, branches), atol=1e-5)


def test_branches_follow_with_the_lower_states_shared(lazy):
    trunk = read_trunk(lazy.model, *prompts_of(lazy)[1:])
    branches = Branches(trunk, n_branches=2)
    branches.share_lower(lazy.model.model, n_places=2)
    branches.read(lazy.model, torch.tensor([[4, 5]] * 3))
    found = branches.follow(torch.tensor([[1]] * 3)).read(lazy.model, torch.tensor([[9]] * 3), depth=1).logits
    whole = Branches(trunk, n_branches=1).read(lazy.model, torch.tensor([[5, 9]] * 3)).logits
    assert torch.allclose(found, whole[:, 1:], atol=1e-5)
