import numpy as np
import pytest
import torch

from genrec_rl.errors import ConfigError
from genrec_rl.models.lazy import read_lazy
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.sft.mtp import level_nll, mtp_weight
from genrec_rl.sft.packing import pack
from genrec_rl.sft.rows import IGNORED, build_rows
from genrec_rl.sft.siblings import Siblings
from genrec_rl.sft.trainer import PageSFTConfig, PageSFTTrainer
from genrec_rl.sft.user_tree import TreeCollator, build_trees
from tests.fixtures import CODES, make_policy
from tests.sft.test_packing import DATASET, LIMITS
from tests.sft.test_user_tree import answers, loss_of


def make_trainer(policy, tmp_path, *, rows, collator=None, **settings) -> PageSFTTrainer:
    defaults = {"output_dir": str(tmp_path), "max_steps": 1, "report_to": "none", "save_strategy": "no", "seed": 0}
    defaults |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "per_device_train_batch_size": 16}
    return PageSFTTrainer(
        model=policy.model,
        args=PageSFTConfig(**defaults | settings),
        train_dataset=rows,
        data_collator=collator,
        processing_class=policy.tokenizer,
    )


def losses_by_hand(policy, target):
    """NTP and MTP of each answer in a row of its own: the MTP by a Fuse that passes the lower layers' state."""
    model = policy.model
    trained = {name: x.clone() for name, x in model.model.fuse.state_dict().items()}
    passing = {"gate": torch.zeros(32, 32), "gate_bias": torch.ones(32)}
    passing["mix"] = torch.cat([torch.eye(32), torch.zeros(32, 32)], dim=1)
    totals = []
    for weights in (trained, passing):
        model.model.fuse.load_state_dict(weights)
        total = 0.0
        for row in build_rows(answers(target=target), policy.prompts):
            scores = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            total -= sum(scores[i - 1, t].item() for i, t in enumerate(row["labels"]) if t != IGNORED)
        totals.append(total)
    model.model.fuse.load_state_dict(trained)
    return totals


def loss_and_gradient(trainer, policy):
    policy.model.train()
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss = trainer.compute_loss(policy.model, dict(batch), num_items_in_batch=30)
    return loss.item(), torch.autograd.grad(loss, list(policy.model.parameters()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("grammar", [{}, {"merge": False}, {"separator": "day"}], ids=str)
@pytest.mark.parametrize("target", ["item", "running"])
def test_trees_and_rows_have_the_loss_of_both_terms_and_the_same_gradient(
    catalog, tmp_path, target, grammar, attention
):
    policy = make_policy(catalog, lazy_layers=1, grammar=PromptGrammar(**grammar))
    policy.model.set_attn_implementation(attention)
    ntp, mtp = losses_by_hand(policy, target)
    assert mtp != pytest.approx(ntp, rel=1e-4)
    taught = answers(target=target)
    collator = TreeCollator(policy.model, pad_id=policy.vocab.pad_id)
    trees = make_trainer(policy, tmp_path, rows=build_trees(taught, policy.prompts), collator=collator, mtp_coef=0.7)
    rows = make_trainer(policy, tmp_path, rows=build_rows(taught, policy.prompts), mtp_coef=0.7)
    of_trees, of_rows = loss_and_gradient(trees, policy), loss_and_gradient(rows, policy)
    assert of_trees[0] == pytest.approx((ntp + 0.7 * mtp) / 30, rel=1e-5)
    assert of_rows[0] == pytest.approx(of_trees[0], rel=1e-5)
    for one, other in zip(of_trees[1], of_rows[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_page_with_finished_items_merged_has_the_loss_of_rows(catalog, tmp_path):
    policy = make_policy(catalog, lazy_layers=1, grammar=PromptGrammar(page_items="merged"))
    taught = answers(target="page")
    collator = TreeCollator(policy.model, pad_id=policy.vocab.pad_id)
    trees = make_trainer(policy, tmp_path, rows=build_trees(taught, policy.prompts), collator=collator)
    rows = make_trainer(policy, tmp_path, rows=build_rows(taught, policy.prompts))
    of_trees, of_rows = loss_and_gradient(trees, policy), loss_and_gradient(rows, policy)
    assert of_rows[0] == pytest.approx(of_trees[0], rel=1e-5)
    for one, other in zip(of_trees[1], of_rows[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["item", "running"])
def test_without_the_term_a_lazy_tree_has_the_loss_of_one_row_an_answer(catalog, target):
    policy = make_policy(catalog, lazy_layers=1)
    ntp, _ = losses_by_hand(policy, target)
    batch = TreeCollator(policy.model, pad_id=policy.vocab.pad_id)(
        list(build_trees(answers(target=target), policy.prompts))
    )
    assert loss_of(policy.model, batch).item() == pytest.approx(ntp, rel=1e-5)


@pytest.mark.parametrize("coef", [0.0, 0.5])
def test_children_share_the_next_token_and_the_levels_codes_the_mtp(catalog, tmp_path, coef):
    """Next token over its siblings; MTP over the level, as siblings would tell the codes before."""
    policy = make_policy(catalog, lazy_layers=1, softmax="children")
    siblings = Siblings(catalog, policy.vocab)
    collator = TreeCollator(policy.model, pad_id=policy.vocab.pad_id, siblings=siblings)
    trees = build_trees(answers(target="running"), policy.prompts, siblings)
    trainer = make_trainer(policy, tmp_path, rows=trees, collator=collator, mtp_coef=coef)
    batch = collator(list(trees))
    read = {name: x for name, x in batch.items() if name not in ("allowed", "labels", "shift_labels")}
    labels = batch["labels"][0]
    logits = policy.model(**read, mtp=True).logits[0]
    among = logits[: len(labels), : batch["allowed"].shape[1]].masked_fill(~batch["allowed"], -torch.inf)
    expected = -among.log_softmax(-1).gather(1, labels[:, None]).sum()
    for i, token in enumerate(labels.tolist()):
        first = (token - 4) // 4 * 4 + 4
        expected = expected - coef * logits[len(labels) + i, first : first + 4].log_softmax(-1)[token - first]
    found, _ = loss_and_gradient(trainer, policy)
    assert policy.vocab.sid_token_start == 4
    assert found == pytest.approx(expected.item() / 30, rel=1e-5)


def test_evaluation_leaves_the_term_out(catalog, tmp_path):
    policy = make_policy(catalog, lazy_layers=1)
    collator = TreeCollator(policy.model, pad_id=policy.vocab.pad_id)
    trees = build_trees(answers(target="item"), policy.prompts)
    trainer = make_trainer(policy, tmp_path, rows=trees, collator=collator)
    assert trainer.mtp_coef == 0.3
    policy.model.eval()
    batch = collator(list(trees))
    found = trainer.compute_loss(policy.model, dict(batch), num_items_in_batch=30)
    assert found.item() == pytest.approx(loss_of(policy.model, batch).item() / 30, rel=1e-5)


def test_training_changes_fuse_and_levels_and_logs_the_term(catalog, tmp_path):
    policy, before = make_policy(catalog, lazy_layers=1), make_policy(catalog, lazy_layers=1)
    collator = TreeCollator(policy.model, pad_id=policy.vocab.pad_id)
    trainer = make_trainer(
        policy, tmp_path, rows=build_trees(answers(target="item"), policy.prompts), collator=collator
    )
    trainer.train()
    assert trainer.state.log_history[0]["mtp_loss"] > 0
    old = before.model.state_dict()
    same = {name for name, weights in policy.model.state_dict().items() if weights.equal(old[name])}
    assert not same & {"model.level_embedding.weight", *(f"model.fuse.{n}" for n in ("gate", "gate_bias", "mix"))}


def test_level_nll_of_hand_worked_logits():
    logits = torch.tensor([[9.0, 1.0, 2.0, 7.0, 7.0], [9.0, 5.0, 5.0, 1.0, 3.0]])
    found = level_nll(logits, torch.tensor([2, 3]), starts=[1, 3], sizes=[2, 2])
    expected = [-np.log(np.exp(2) / (np.exp(1) + np.exp(2))), -np.log(np.exp(1) / (np.exp(1) + np.exp(3)))]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "is_lazy", "weight"), [(None, False, 0), (0.0, False, 0), (None, True, 0.3), (0.0, True, 0)]
)
def test_weight_is_of_lazy_policies_alone(given, is_lazy, weight):
    assert mtp_weight(given, is_lazy=is_lazy, loss_type="nll") == weight


@pytest.mark.parametrize(
    ("given", "is_lazy", "loss_type", "message"),
    [
        (0.3, False, "nll", "set lazy_layers"),
        (-1.0, True, "nll", "mtp_coef is -1.0"),
        (float("nan"), True, "nll", "mtp_coef is nan"),
        (None, True, "dft", "loss_type nll, not dft"),
    ],
)
def test_weights_that_make_no_sense_are_refused(given, is_lazy, loss_type, message):
    with pytest.raises(ConfigError, match=message):
        mtp_weight(given, is_lazy=is_lazy, loss_type=loss_type)


@pytest.mark.parametrize("target", ["page", "running+page"])
def test_pages_whose_finished_items_are_codes_are_refused(catalog, target):
    policy = make_policy(catalog, lazy_layers=1)
    with pytest.raises(ConfigError, match="set page_items merged, or target item or running"):
        pack(DATASET, policy, catalog, packing="user_tree", target=target, **LIMITS)
    merged = make_policy(catalog, lazy_layers=1, grammar=PromptGrammar(page_items="merged"))
    pack(DATASET, merged, catalog, packing="user_tree", target=target, **LIMITS)


def test_trees_write_every_code_that_another_follows_as_a_lazy_id(catalog):
    policy = make_policy(catalog, lazy_layers=1)
    rows = list(build_trees(answers(target="item"), policy.prompts))
    ids = torch.from_numpy(np.concatenate([row["input_ids"] for row in rows]))
    places = read_lazy(ids)
    assert int(places.is_lazy_BS.sum()) == 2 * 10
    starts = policy.vocab.level_starts
    items = np.concatenate([answers(target="item").items(i) for i in range(10)])
    assert sorted(places.tokens_BS[places.is_lazy_BS].tolist()) == sorted((CODES[items, :2] + starts[:2]).ravel())
