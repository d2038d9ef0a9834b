import numpy as np
import pytest
import torch

from genrec_rl.errors import ConfigError
from genrec_rl.sft.devices import check_devices
from genrec_rl.sft.rows import build_rows
from genrec_rl.sft.siblings import Siblings
from genrec_rl.sft.trainer import PageSFTConfig, PageSFTTrainer
from genrec_rl.sft.user_tree import TreeCollator, build_trees
from genrec_rl.sft.worth import Worth
from tests.fixtures import make_policy
from tests.sft.test_user_tree import TABLE, answers, loss_of, make_table
from tests.sft.test_worth import BUCKETS, worth


def make_trainer(policy, table, tmp_path, siblings=None, rows=None, **settings) -> PageSFTTrainer:
    defaults = {"output_dir": str(tmp_path), "max_steps": 1, "learning_rate": 0.1, "optim": "sgd", "seed": 0}
    defaults |= {"max_grad_norm": 1e9, "lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no"}
    defaults |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "per_device_train_batch_size": 8}
    return PageSFTTrainer(
        model=policy.model,
        args=PageSFTConfig(**defaults | settings),
        train_dataset=build_trees(answers(table), policy.prompts, siblings) if rows is None else rows,
        data_collator=(
            None
            if rows is not None and "labels" in rows[0]
            else TreeCollator(policy.model, pad_id=policy.vocab.pad_id, siblings=siblings)
        ),
        processing_class=policy.tokenizer,
        value_tokens=policy.vocab.value_tokens,
    )


def weights_of(policy) -> torch.Tensor:
    return torch.cat([weights.detach().flatten() for weights in policy.model.parameters()])


def test_trainers_loss_is_the_mean_over_the_answers_tokens(catalog, tmp_path):
    policy = make_policy(catalog)
    trainer = make_trainer(policy, TABLE, tmp_path)
    batch = trainer.data_collator(list(trainer.train_dataset))
    n_tokens = int((batch["shift_labels"] >= 0).sum())
    assert n_tokens == 3 * 10  # every item of the table, three codes each
    expected = loss_of(policy.model, batch) / n_tokens
    assert trainer.compute_loss(policy.model, dict(batch)).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("among_children", [False, True])
def test_accumulating_gradients_gives_the_update_of_one_batch(catalog, tmp_path, among_children):
    table = make_table([[[i], [(i + 1) % 12, (i + 2) % 12]] for i in range(8)])
    updates = []
    for batch, accumulated in ((8, 1), (1, 8)):
        policy = make_policy(catalog)
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        siblings = Siblings(catalog, policy.vocab) if among_children else None
        make_trainer(policy, table, tmp_path, siblings, **settings).train()
        updates.append(weights_of(policy))
    assert torch.allclose(*updates, atol=1e-5)
    assert not torch.allclose(updates[0], weights_of(make_policy(catalog)), atol=1e-5)


def test_logs_hold_no_token_count_of_a_tree(catalog, tmp_path):
    trainer = make_trainer(make_policy(catalog), TABLE, tmp_path)
    trainer.train()
    assert "loss" in trainer.state.log_history[0]
    assert "num_tokens" not in trainer.state.log_history[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_length": 64}, "set max_history"), ({"label_smoothing_factor": 0.1}, "leave it at 0")],
)
def test_settings_that_would_change_the_loss_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        PageSFTConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_several_gpus_in_one_process_and_fsdp_are_refused():
    class Args:
        n_gpu, fsdp = 4, []

    with pytest.raises(ConfigError, match="4 GPUs in one process"):
        check_devices(Args)
    Args.n_gpu, Args.fsdp = 1, ["full_shard"]
    with pytest.raises(ConfigError, match="FSDP is not supported yet"):
        check_devices(Args)


def loss_by_hand(policy, known, *, value_coef) -> float:
    """E[w (L_SID + lambda L_value)] over SID tokens, one answer after the other."""
    total = 0.0
    for i in range(len(known.answers)):
        prompt = policy.prompts.prompt(known.answers.context(i, max_history=50))
        tokens = np.concatenate([policy.prompts.answer(known.answers.items(i)), known.value_tokens(i)])
        logits = policy.model(torch.from_numpy(np.concatenate([prompt, tokens]))[None]).logits[0]
        scores = logits[len(prompt) - 1 : -1].log_softmax(-1)
        nll = -scores[torch.arange(4), torch.from_numpy(tokens)]
        total += float(known.token_weights(i, n_levels=3)[0]) * (nll[:3].sum() + value_coef * nll[3]).item()
    return total / (3 * len(known.answers))


@pytest.mark.parametrize("packing", ["user_tree", "none"])
@pytest.mark.parametrize("target", ["item", "running"])
def test_vsl_loss_of_trees_and_of_rows_is_that_of_answers_one_by_one(catalog, tmp_path, packing, target):
    policy = make_policy(catalog, values=BUCKETS)
    known = worth(policy, target=target, user=1.0)
    build = build_trees if packing == "user_tree" else build_rows
    worths = (None, known) if packing == "user_tree" else (known,)
    rows = build(known.answers, policy.prompts, *worths)
    trainer = make_trainer(policy, TABLE, tmp_path, rows=rows, value_coef=0.25)
    batch = trainer.data_collator(list(rows))
    n_labels = trainer._get_num_items_in_batch([batch], "cpu")
    assert n_labels == 30  # SID tokens alone
    expected = loss_by_hand(policy, known, value_coef=0.25)
    for told in (None, n_labels):
        found = trainer.compute_loss(policy.model, dict(batch), num_items_in_batch=told)
        assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("packing", ["user_tree", "none"])
def test_weights_of_1_without_values_are_trls_own_loss(policy, tmp_path, packing):
    taught = answers(target="running")
    known = Worth(taught, TABLE.item_places())
    build = build_trees if packing == "user_tree" else build_rows
    worths = (None, known) if packing == "user_tree" else (known,)
    rows = build(taught, policy.prompts, *worths)
    trainer = make_trainer(policy, TABLE, tmp_path, rows=rows)
    weighted = trainer.data_collator(list(rows))
    plain = trainer.data_collator(list(build(taught, policy.prompts)))
    assert set(weighted) - set(plain) == {"weights"}
    for told in (None, torch.tensor(30)):
        losses = [trainer.compute_loss(policy.model, dict(b), num_items_in_batch=told) for b in (weighted, plain)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("packing", ["user_tree", "none"])
def test_accumulating_gradients_of_valued_answers_gives_the_update_of_one_batch(catalog, tmp_path, packing):
    updates = []
    for batch, accumulated in ((3, 1), (1, 3)):
        policy = make_policy(catalog, values=BUCKETS)
        known = worth(policy, target="item", user=1.0, actions=(2.0, 1.0, 1.0))
        if packing == "user_tree":
            rows = build_trees(known.answers, policy.prompts, None, known)
        else:
            rows = build_rows(known.answers, policy.prompts, known)
        scale = len(rows) // 3
        settings = {"per_device_train_batch_size": batch * scale, "gradient_accumulation_steps": accumulated}
        settings["max_steps"] = 1
        make_trainer(policy, TABLE, tmp_path, rows=rows.select(range(3 * scale)), **settings).train()
        updates.append(weights_of(policy))
    assert torch.allclose(*updates, atol=1e-5)


def test_value_nll_is_logged_per_value_token(catalog, tmp_path):
    policy = make_policy(catalog, values=BUCKETS)
    known = worth(policy)
    trainer = make_trainer(policy, TABLE, tmp_path, rows=build_trees(known.answers, policy.prompts, None, known))
    trainer.train()
    assert trainer.state.log_history[0]["value_nll"] > 0


@pytest.mark.parametrize("value_coef", [-0.1, float("nan"), float("inf")])
def test_value_coef_must_be_a_number_of_at_least_0(tmp_path, value_coef):
    with pytest.raises(ConfigError, match=f"value_coef {value_coef}"):
        PageSFTConfig(output_dir=str(tmp_path), use_cpu=True, value_coef=value_coef)


def test_weights_under_another_loss_are_refused(policy, tmp_path):
    known = worth(policy, teaches_value=False, user=1.0)
    rows = build_rows(known.answers, policy.prompts, known)
    trainer = make_trainer(policy, TABLE, tmp_path, rows=rows, loss_type="dft")
    with pytest.raises(ConfigError, match="leave it at nll"):
        trainer.compute_loss(policy.model, trainer.data_collator(list(rows)))
