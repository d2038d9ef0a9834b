import pytest
import torch

from genrec_rl.errors import ConfigError
from genrec_rl.sft.devices import check_devices
from genrec_rl.sft.siblings import Siblings
from genrec_rl.sft.trainer import PageSFTConfig, PageSFTTrainer
from genrec_rl.sft.user_tree import TreeCollator, build_trees
from tests.fixtures import make_policy
from tests.sft.test_user_tree import TABLE, answers, loss_of, make_table


def make_trainer(policy, table, tmp_path, siblings=None, **settings) -> PageSFTTrainer:
    defaults = {"output_dir": str(tmp_path), "max_steps": 1, "learning_rate": 0.1, "optim": "sgd", "seed": 0}
    defaults |= {"max_grad_norm": 1e9, "lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no"}
    defaults |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "per_device_train_batch_size": 8}
    return PageSFTTrainer(
        model=policy.model,
        args=PageSFTConfig(**defaults | settings),
        train_dataset=build_trees(answers(table), policy.prompts, siblings),
        data_collator=TreeCollator(policy.model, pad_id=policy.vocab.pad_id, siblings=siblings),
        processing_class=policy.tokenizer,
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
