import pytest
import torch

from genrec_rl.errors import ConfigError
from genrec_rl.models.item_embedding import ItemEmbedding
from genrec_rl.models.policy import BackboneSize, create_policy, load_policy
from genrec_rl.models.prompts import PromptGrammar, pack_sids
from tests.fixtures import make_context

SIZE = BackboneSize(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64)


def make(catalog, **choices):
    return create_policy(catalog, grammar=PromptGrammar(), backbone=SIZE, item_embedding=True, **choices)


def test_known_items_have_their_own_vector_and_others_none():
    table = ItemEmbedding(2, 4, dropout=0.0)
    table.know(torch.tensor([90, 70, 90]))
    found = table(torch.tensor([70, 80, 90, 95, 10]))
    assert torch.equal(found[[0, 2]], table.vectors.weight[:2])
    assert not found[[1, 3, 4]].any()


def test_items_start_with_distinct_vectors_and_unknown_ones_with_none(catalog):
    table = make(catalog).model.model.item_embedding
    assert len(table.known) == catalog.n_items == len(table.vectors.weight) - 1
    assert torch.equal(table.known, torch.from_numpy(pack_sids(catalog.codes)).sort().values)
    assert not table.vectors.weight[-1].any()
    assert table.vectors.weight[:-1].abs().sum(1).min() > 0


def test_items_of_a_prompt_are_told_apart_by_their_vectors(catalog):
    policy = make(catalog)
    prompt = torch.from_numpy(policy.prompts.prompt(make_context([3])))[None]
    backbone = policy.model.model.eval()
    with torch.no_grad():
        before = backbone.embed_prompt(prompt)
        row = torch.searchsorted(backbone.item_embedding.known, prompt[0, 1])
        backbone.item_embedding.vectors.weight[row] += 1
        after = backbone.embed_prompt(prompt)
    assert torch.allclose(after - before, torch.tensor([0.0, 1.0, 0.0])[None, :, None].expand_as(after), atol=1e-6)


def test_saved_policy_keeps_the_items_it_knows(catalog, tmp_path):
    policy = make(catalog, item_dropout=0.5)
    policy.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path, catalog=catalog).model.model.item_embedding
    assert torch.equal(loaded.known, policy.model.model.item_embedding.known)
    assert torch.equal(loaded.vectors.weight, policy.model.model.item_embedding.vectors.weight)
    assert loaded.dropout.p == 0.5


def test_unmerged_prompts_are_refused(catalog):
    with pytest.raises(ConfigError, match="needs merge: true"):
        create_policy(catalog, grammar=PromptGrammar(merge=False), backbone=SIZE, item_embedding=True)
