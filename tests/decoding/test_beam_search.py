import itertools

import numpy as np
import pytest
import torch

from genrec_rl.decoding.beam_search import BeamRecommender, beam_search
from genrec_rl.errors import RolloutError
from genrec_rl.types import NO_ITEM
from tests.fixtures import CODES, make_catalog, make_context, make_policy
from tests.models.test_prefix_tree import one_by_one

HISTORIES = ([0, 4, 7], [5], [])


def prompts_of(policy):
    prompts = [policy.prompts.prompt(make_context(history)) for history in HISTORIES]
    return prompts, *policy.prompts.batch(prompts)


def test_free_beams_equal_transformers_generate(policy):
    _, ids, is_prompt = prompts_of(policy)
    tokens, scores = beam_search(policy.model, ids, is_prompt, vocab=policy.vocab, width=7)
    policy.model.generation_config.eos_token_id = None
    reference = policy.model.generate(
        ids, attention_mask=is_prompt.long(), num_beams=7, num_return_sequences=7, max_new_tokens=3, do_sample=False,
        length_penalty=0.0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    assert tokens.flatten(0, 1).equal(reference.sequences[:, ids.shape[1] :])
    assert torch.allclose(scores.flatten(), reference.sequences_scores, atol=1e-5)


def test_constrained_beams_equal_transformers_generate_with_a_prefix_function(policy, catalog):
    _, ids, is_prompt = prompts_of(policy)
    all_tokens = policy.vocab.token_ids(torch.from_numpy(CODES).long()).tolist()

    def allowed(_, sequence):
        done = sequence[ids.shape[1] :].tolist()
        return sorted({sid[len(done)] for sid in all_tokens if sid[: len(done)] == done})

    tokens, scores = beam_search(policy.model, ids, is_prompt, vocab=policy.vocab, width=4, trie=catalog.trie)
    policy.model.generation_config.eos_token_id = None
    reference = policy.model.generate(
        ids, attention_mask=is_prompt.long(), num_beams=4, num_return_sequences=4, max_new_tokens=3, do_sample=False,
        length_penalty=0.0, prefix_allowed_tokens_fn=allowed, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    assert tokens.flatten(0, 1).equal(reference.sequences[:, ids.shape[1] :])
    assert torch.allclose(scores.flatten(), reference.sequences_scores, atol=1e-5)


def test_wide_constrained_search_ranks_the_whole_catalogue_by_teacher_forcing(policy, catalog):
    prompts, ids, is_prompt = prompts_of(policy)
    tokens, scores = beam_search(policy.model, ids, is_prompt, vocab=policy.vocab, width=50, trie=catalog.trie)
    everything = policy.vocab.token_ids(torch.from_numpy(CODES).long()).expand(len(prompts), -1, -1)
    exact = one_by_one(policy.model, prompts, everything).sum(-1)
    assert tokens.shape == (3, len(CODES), 3)
    assert torch.allclose(scores, exact.sort(dim=1, descending=True).values, atol=1e-5)


def test_free_search_over_everything_is_exhaustive():
    catalog = make_catalog(np.array([[0, 1], [1, 0]]), (2, 2))
    policy = make_policy(catalog)
    prompt = policy.prompts.prompt(make_context([1]))
    ids, is_prompt = policy.prompts.batch([prompt])
    n_vocab = policy.model.config.vocab_size
    _, scores = beam_search(policy.model, ids, is_prompt, vocab=policy.vocab, width=n_vocab**2)
    every = torch.tensor(list(itertools.product(range(n_vocab), repeat=2)))[None]
    exact = one_by_one(policy.model, [prompt], every).sum(-1)
    assert torch.allclose(scores, exact.sort(dim=1, descending=True).values, atol=1e-5)


def test_padding_and_neighbours_change_nothing(policy, catalog):
    _, ids, is_prompt = prompts_of(policy)
    _, together = beam_search(policy.model, ids, is_prompt, vocab=policy.vocab, width=5, trie=catalog.trie)
    alone, is_token = policy.prompts.batch([policy.prompts.prompt(make_context([5]))])
    _, single = beam_search(policy.model, alone, is_token, vocab=policy.vocab, width=5, trie=catalog.trie)
    assert torch.allclose(together[1], single[0], atol=1e-5)


def test_constrained_beams_are_valid_and_distinct(policy, catalog):
    contexts = [make_context(history) for history in HISTORIES]
    rows = BeamRecommender(policy, catalog=catalog).recommend(contexts, k=12, constrained=True).rows_PG
    assert (rows != NO_ITEM).all()
    assert all(len(row.unique()) == 12 for row in rows)


def test_free_beams_may_invent_sids_and_keep_their_rank(policy, catalog):
    rollouts = BeamRecommender(policy, catalog=catalog).recommend([make_context([0])], k=40, constrained=False)
    assert not rollouts.is_valid_PG.all()
    assert (rollouts.log_probs_PG.diff() <= 0).all()


def test_recommending_leaves_training_mode_as_it_was(policy, catalog):
    policy.model.train()
    BeamRecommender(policy, catalog=catalog).recommend([make_context([0])], k=2, constrained=True)
    assert policy.model.training


def test_broken_weights_are_named(policy, catalog):
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RolloutError, match="SID level 0"):
        BeamRecommender(policy, catalog=catalog).recommend([make_context([0])], k=2, constrained=True)
