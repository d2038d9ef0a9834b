import torch

from genrec_rl.models.prompts import PromptGrammar
from tests.fixtures import CODES, make_context, make_policy


def test_backbone_gives_the_merged_hidden_states_the_causal_model_uses(policy):
    prompt = torch.from_numpy(policy.prompts.prompt(make_context([0, 4])))[None]
    hidden = policy.model.model(input_ids=prompt).last_hidden_state
    assert torch.allclose(policy.model.lm_head(hidden), policy.model(input_ids=prompt).logits, atol=1e-6)


def test_merger_gets_a_gradient_even_without_items(policy):
    prompt = torch.from_numpy(policy.prompts.prompt(make_context([])))[None]
    policy.model(input_ids=prompt).logits.sum().backward()
    assert policy.model.model.token_merger.weight.grad is not None


def test_order_of_codes_matters_to_the_merger(policy):
    merged = policy.model.model.embed_prompt(torch.from_numpy(policy.prompts.prompt(make_context([1, 2])))[None])
    assert not torch.allclose(merged[0, 1], merged[0, 3])


def test_unmerged_prompt_is_plain_token_embeddings(catalog):
    policy = make_policy(catalog, grammar=PromptGrammar(merge=False, separator="none"))
    prompt = torch.from_numpy(policy.prompts.prompt(make_context([3])))[None]
    tokens = policy.vocab.token_ids(torch.from_numpy(CODES[3]).long())
    assert policy.model.model.embed_prompt(prompt)[0, 1:].equal(policy.model.model.embed_tokens(tokens))


def test_kept_places_are_counted_through_all_rows(policy):
    prompts, _ = policy.prompts.batch([policy.prompts.prompt(make_context(history)) for history in ([0, 4], [7, 1])])
    every = policy.model.model(input_ids=prompts).last_hidden_state
    kept = policy.model.model(input_ids=prompts, kept_places=torch.tensor([1, 7])).last_hidden_state
    assert torch.allclose(kept, torch.stack([every[0, 1], every[1, 2]])[None], atol=1e-6)


def test_embedding_scale_multiplies_what_the_first_layer_reads(catalog):
    states = []
    for is_scaled in (False, True):
        policy = make_policy(catalog, scale_embeddings=is_scaled)
        ids = torch.from_numpy(policy.prompts.prompt(make_context([1, 2])))[None]
        states.append(policy.model(ids, output_hidden_states=True).hidden_states[0])
    assert torch.allclose(states[0] * 32**0.5, states[1])
