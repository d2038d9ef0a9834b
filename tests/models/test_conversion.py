import pytest
import torch

from genrec_rl.errors import ConfigError
from genrec_rl.models.conversion import start_from
from genrec_rl.models.policy import BackboneSize, create_policy
from genrec_rl.models.prefix_tree import branch_log_probs
from genrec_rl.models.prompts import PromptGrammar
from tests.fixtures import make_context, make_policy

BRANCHES = torch.tensor([[[4, 8, 12], [5, 9, 15]]])


def scores_of(policy):
    ids, is_prompt = policy.prompts.batch([policy.prompts.prompt(make_context([0, 4]))])
    return branch_log_probs(policy.model, ids, is_prompt, BRANCHES).log_probs_BGC


def test_lazy_policy_keeps_all_weights_and_starts_its_own_as_a_sum_and_means(catalog, policy):
    lazy = make_policy(catalog, lazy_layers=1, seed=1)
    start_from(lazy, policy)
    new = lazy.model.state_dict()
    assert all(new[name].equal(weights) for name, weights in policy.model.state_dict().items())
    assert lazy.model.lm_head.weight is lazy.model.model.embed_tokens.weight
    vectors, first = new["model.embed_tokens.weight"], policy.vocab.sid_token_start
    means = torch.stack([vectors[first : first + 4].mean(0), vectors[first + 4 : first + 8].mean(0)])
    assert torch.allclose(new["model.level_embedding.weight"], means)
    state, code = torch.full((1, 32), 2.0), torch.full((1, 32), 0.5)
    assert lazy.model.model.fuse(state, code).tolist() == [[2.5] * 32]


def test_first_code_is_predicted_as_before(catalog, policy):
    lazy = make_policy(catalog, lazy_layers=1, seed=1)
    start_from(lazy, policy)
    assert scores_of(lazy)[..., 0].equal(scores_of(policy)[..., 0])


@pytest.mark.parametrize("lazy_layers", [None, 1])
def test_policy_of_the_same_kind_is_copied_whole(catalog, lazy_layers):
    start = make_policy(catalog, lazy_layers=lazy_layers, softmax="children", residual_dropout=0.1)
    policy = make_policy(catalog, lazy_layers=lazy_layers, seed=1)
    start_from(policy, start)
    assert scores_of(policy).equal(scores_of(start))


def test_other_split_is_refused(catalog, policy):
    with pytest.raises(ConfigError, match="lazy_layers is 1 there and 0 here"):
        start_from(policy, make_policy(catalog, lazy_layers=1))


def test_other_grammar_is_refused(catalog, policy):
    with pytest.raises(ConfigError, match="grammar is"):
        start_from(make_policy(catalog, grammar=PromptGrammar(max_history=3)), policy)


def test_other_size_is_named(catalog, policy):
    other = create_policy(catalog, grammar=PromptGrammar(), backbone=BackboneSize(32, 3, 2, 48))
    with pytest.raises(ConfigError, match="num_hidden_layers is 2 there and 3 here"):
        start_from(other, policy)
