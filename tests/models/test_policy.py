import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from genrec_rl.data.values import ValueBuckets
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.models.policy import BackboneSize, create_policy, fingerprint_policy, load_policy
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.sids import rq_kmeans
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.vocab import SidVocab
from tests.fixtures import CODES, make_catalog, make_context, make_policy


def test_round_trip_is_bit_equal(policy, catalog, tmp_path):
    policy.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path, catalog=catalog)
    for name, weights in policy.model.state_dict().items():
        assert weights.equal(loaded.model.state_dict()[name]), name
    prompt = torch.from_numpy(policy.prompts.prompt(make_context([1, 2])))[None]
    assert policy.model(prompt).logits.equal(loaded.model.eval()(prompt).logits)
    assert loaded.vocab == policy.vocab
    assert loaded.prompts.grammar == policy.prompts.grammar


def test_policy_that_tells_days_is_loaded_with_its_token(catalog, tmp_path):
    policy = make_policy(catalog, grammar=PromptGrammar(separator="day"))
    policy.save_pretrained(tmp_path)
    assert load_policy(tmp_path, catalog=catalog).vocab == policy.vocab
    assert policy.tokenizer.convert_ids_to_tokens(policy.vocab.same_day_id) == "<|same_day|>"


def test_policy_knows_its_value_buckets_when_loaded(catalog, tmp_path):
    values = ValueBuckets((0.1, np.log1p(2.0)), (0.0, 0.05, 1.7, 1 / 3 * 10))
    policy = make_policy(catalog, values=values)
    policy.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path, catalog=catalog)
    assert loaded.values == values
    assert loaded.vocab == policy.vocab
    assert len(loaded.vocab.value_tokens) == 4


def test_policy_without_values_is_written_as_before(policy, tmp_path):
    assert PromptGrammar().digest(policy.vocab) == PromptGrammar().digest(
        SidVocab(
            (4, 4, 4),
            sid_token_start=policy.vocab.sid_token_start,
            history_id=policy.vocab.history_id,
            separator_id=policy.vocab.separator_id,
            pad_id=policy.vocab.pad_id,
        )
    )
    policy.save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    assert facts.get("value_edges") is None


def test_buckets_that_the_tokenizer_lacks_are_refused(catalog, tmp_path):
    make_policy(catalog, values=ValueBuckets((), (0.0, 1.0))).save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(facts | {"value_edges": [1.0], "value_means": [0.0, 1.0, 5.0]}))
    with pytest.raises(DataError, match="2 value tokens for 3 buckets"):
        load_policy(tmp_path, catalog=catalog)


def test_unknown_softmax_is_refused(catalog):
    with pytest.raises(ConfigError, match="softmax 'trie' is not one of vocabulary, children"):
        make_policy(catalog, softmax="trie")


def test_auto_model_loads_a_policy(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is type(policy.model)


def test_policy_without_merger_has_no_merger_weights(catalog):
    names = make_policy(catalog, grammar=PromptGrammar(merge=False)).model.state_dict()
    assert not [name for name in names if "merger" in name]


def test_dropout_is_in_training_only(catalog):
    policy = make_policy(catalog, residual_dropout=0.5, embedding_dropout=0.5)
    prompt = torch.from_numpy(policy.prompts.prompt(make_context([1, 2])))[None]
    assert policy.model(prompt).logits.equal(policy.model(prompt).logits)
    policy.model.train()
    assert not policy.model(prompt).logits.equal(policy.model(prompt).logits)


def save_language_model(path) -> Qwen2ForCausalLM:
    words = {"<pad>": 0, "<eos>": 1, "the": 2, "of": 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(words, [])), pad_token="<pad>", eos_token="<eos>"
    )
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


def test_language_model_keeps_its_weights_and_gets_new_rows_for_the_sids(catalog, tmp_path):
    before = save_language_model(tmp_path)
    policy = create_policy(catalog, grammar=PromptGrammar(), backbone=str(tmp_path))
    after = policy.model.model
    assert after.layers[0].mlp.up_proj.weight.equal(before.model.layers[0].mlp.up_proj.weight)
    n_old = before.config.vocab_size
    assert after.embed_tokens.weight[:n_old].equal(before.model.embed_tokens.weight)
    assert len(after.embed_tokens.weight) >= n_old + 2 + 12  # two special tokens, 3 x 4 codes
    assert policy.model.lm_head.weight is after.embed_tokens.weight


def test_sliding_window_backbone_is_refused(catalog, tmp_path):
    save_language_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"use_sliding_window": True}))
    with pytest.raises(ConfigError, match="use_sliding_window"):
        create_policy(catalog, grammar=PromptGrammar(), backbone=str(tmp_path))


def test_merged_item_of_an_untrained_policy_is_the_mean_of_its_codes(catalog):
    policy = create_policy(catalog, grammar=PromptGrammar(), backbone=BackboneSize(32, 1, 2, 32))
    prompt = torch.from_numpy(policy.prompts.prompt(make_context([3])))[None]
    tokens = policy.vocab.token_ids(torch.from_numpy(CODES[3]).long())
    merged = policy.model.model.embed_prompt(prompt)[0, 1]
    assert torch.allclose(merged, policy.model.model.embed_tokens(tokens).mean(0), atol=1e-6)


def test_other_catalogue_is_refused(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    other = make_catalog(np.roll(CODES, 1, axis=0))
    with pytest.raises(DataError, match="pass the --sid_dir that the policy was trained with"):
        load_policy(tmp_path, catalog=other)


def test_other_prompt_grammar_is_refused(policy, catalog, tmp_path):
    policy.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["grammar"]["separator"] = "none"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="prompt grammar"):
        load_policy(tmp_path, catalog=catalog)


def test_item_vectors_whose_sids_were_rounded_are_refused(catalog, tmp_path):
    policy = create_policy(catalog, grammar=PromptGrammar(), backbone=BackboneSize(16, 1, 2, 16), item_embedding=True)
    policy.save_pretrained(tmp_path)
    load_policy(tmp_path, catalog=catalog)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.item_embedding.known"] = weights["model.item_embedding.known"].half().float()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="item vectors are of no SID of the catalogue"):
        load_policy(tmp_path, catalog=catalog)


def test_truncated_weights_are_refused(policy, catalog, tmp_path):
    policy.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be loaded"):
        load_policy(tmp_path, catalog=catalog)


def test_empty_folder_is_no_policy(catalog, tmp_path):
    with pytest.raises(ConfigError, match=r"recipes/sft\.py makes one"):
        load_policy(tmp_path, catalog=catalog)


def test_plain_language_model_is_no_policy(catalog, tmp_path):
    save_language_model(tmp_path)
    with pytest.raises((ConfigError, DataError)):
        load_policy(tmp_path, catalog=catalog)


def test_a_checkpoints_input_vectors_are_not_scaled_again(catalog, tmp_path):
    with pytest.raises(ConfigError, match="a checkpoint's input vectors have their scale"):
        create_policy(catalog, grammar=PromptGrammar(), backbone=str(tmp_path), scale_embeddings=True)


def test_backbone_that_is_absent_is_named(catalog):
    with pytest.raises(ConfigError, match=r"nowhere.*Qwen2 checkpoint"):
        create_policy(catalog, grammar=PromptGrammar(), backbone="nowhere")


def test_value_tokens_of_a_lazy_policy_are_refused(catalog):
    with pytest.raises(ConfigError, match="n_value_buckets 0"):
        make_policy(catalog, values=ValueBuckets((), (0.0, 1.0)), lazy_layers=1)


def test_fingerprint_is_of_weights_and_configuration(policy, tmp_path):
    for name in ("same", "copy", "weights", "config"):
        policy.save_pretrained(tmp_path / name)
    (tmp_path / "config" / "config.json").write_text("{}")
    with torch.no_grad():
        policy.model.model.norm.weight[0] += 1
    policy.save_pretrained(tmp_path / "weights")
    same, copy, weights, config = (
        fingerprint_policy(tmp_path / name) for name in ("same", "copy", "weights", "config")
    )
    assert same == copy
    assert len({same, weights, config}) == 3


def test_extended_catalogue_is_taken_with_a_warning(tmp_path):
    vectors = make_catalog().vectors
    centroids = rq_kmeans.fit(vectors, codebook_sizes=(4, 4, 4), seed=0, niter=2)
    catalog = Catalog.build(vectors, item_ids=np.arange(12), centroids=centroids)[0]
    make_policy(catalog).save_pretrained(tmp_path)
    longer = catalog.extend(np.array([12, 13]), vectors[:2])
    with pytest.warns(UserWarning, match="before 2 of the catalogue's 14 items were added"):
        policy = load_policy(tmp_path, catalog=longer)
    assert policy.prompts.answer(np.array([13])).shape == (3,)
    other = Catalog.build(vectors[:, ::-1], item_ids=np.arange(12), centroids=centroids)[0]
    with pytest.raises(DataError, match="or one that extends it"):
        load_policy(tmp_path, catalog=other.extend(np.array([12]), vectors[:1]))
