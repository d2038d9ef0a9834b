import pytest
import torch
from peft import get_peft_model

from genrec_rl.errors import ConfigError
from genrec_rl.models.lora import lora_config, merge_lora
from tests.fixtures import make_context, make_policy
from tests.rl.test_trainer import G, make_trainer


def test_without_settings_there_is_no_lora():
    assert lora_config(None, is_tied=True) is None


def test_an_lm_head_of_its_own_is_trained_too():
    assert "lm_head" in lora_config({}, is_tied=False).modules_to_save
    assert "lm_head" not in lora_config({}, is_tied=True).modules_to_save


def test_the_command_line_gives_json():
    assert lora_config('{"r": 3}', is_tied=True).r == 3


def test_unknown_argument_is_refused():
    with pytest.raises(ConfigError, match="rank"):
        lora_config({"rank": 4}, is_tied=True)


def test_rl_with_lora_trains_adapters_merger_and_sid_tokens_and_nothing_else(catalog, examples, tmp_path):
    before = make_policy(catalog)
    policy = make_policy(catalog)
    lora = lora_config({"r": 2}, is_tied=True)
    settings = {"per_device_train_batch_size": 2 * G, "max_steps": 2}
    trainer = make_trainer(policy, catalog, examples, tmp_path, peft_config=lora, **settings)
    trainer.train()
    merged = merge_lora(trainer.model)
    assert merged is policy.model
    changed = {
        name
        for name, weights in policy.model.state_dict().items()
        if not torch.allclose(weights, before.model.state_dict()[name], atol=1e-7)
    }
    assert {"model.token_merger.weight", "model.embed_tokens.weight"} <= changed
    assert any("q_proj" in name for name in changed)
    assert not [name for name in changed if "mlp" in name or "norm" in name]
    assert policy.model.lm_head.weight.equal(policy.model.model.embed_tokens.weight)


def test_lora_of_a_lazy_policy_trains_its_fuse_and_levels_whole(catalog, examples, tmp_path):
    before = make_policy(catalog, lazy_layers=1).model.state_dict()
    policy = make_policy(catalog, lazy_layers=1)
    lora = lora_config({"r": 2}, is_tied=True, is_lazy=True)
    settings = {"per_device_train_batch_size": 2 * G, "max_steps": 2}
    trainer = make_trainer(policy, catalog, examples, tmp_path, peft_config=lora, **settings)
    trainer.train()
    merge_lora(trainer.model)
    changed = {n for n, w in policy.model.state_dict().items() if not torch.allclose(w, before[n], atol=1e-7)}
    assert {"model.fuse.mix", "model.fuse.gate_bias", "model.level_embedding.weight"} <= changed
    assert not [name for name in changed if "mlp" in name or "norm" in name]


def test_merging_leaves_the_scores_as_they_were(catalog):
    policy = make_policy(catalog)
    adapted = get_peft_model(policy.model, lora_config({"r": 2}, is_tied=True))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    prompt = torch.from_numpy(policy.prompts.prompt(make_context([0, 4])))[None]
    scores = adapted.eval()(input_ids=prompt).logits
    assert torch.allclose(merge_lora(adapted)(input_ids=prompt).logits, scores, atol=1e-4)
