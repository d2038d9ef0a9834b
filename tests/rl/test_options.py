"""The trainer's options on real rollouts, each against a loss written by hand; ``test_trainer`` holds equation 8."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig

from genrec_rl.decoding.beam_search import BeamPlan, beam_search
from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.validation import Validation
from genrec_rl.errors import RolloutError
from genrec_rl.rl.advantages import Shaping
from genrec_rl.rl.choices import GUARDED, LOSS_TYPES
from genrec_rl.rl.diagnostics import HackingWatch
from genrec_rl.rl.rollouts import RolloutScorer, inject_positives
from genrec_rl.rl.trainer import GRPOSRTrainer
from genrec_rl.types import NO_ITEM
from tests.fixtures import make_catalog, make_example, make_policy
from tests.models.test_prefix_tree import one_by_one
from tests.rl.test_trainer import G, RewardByRow, make_trainer

BATCH = {"per_device_train_batch_size": 6 * G, "nll_coef": 0.0}


@cache
def taught_weights(softmax):
    """Weights after some supervised steps: of their free rollouts some are items, and some are not."""
    catalog = make_catalog()
    policy = make_policy(catalog, softmax=softmax)
    pages = [make_example([i], [i]) for i in range(12)]
    is_closed = softmax == "children"
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(policy, catalog, pages, Path(folder), policy_term="none", nll_coef=1.0, max_steps=12,
                     per_device_train_batch_size=12 * G, constrained_rollouts=is_closed).train()  # fmt: skip
    return {name: weights.clone() for name, weights in policy.model.state_dict().items()}


def taught(catalog, *, softmax="vocabulary", **settings):
    policy = make_policy(catalog, softmax=softmax, **settings)
    policy.model.load_state_dict(taught_weights(softmax))
    return policy


def updated(catalog, examples, tmp_path, **settings):
    policy = taught(catalog)
    make_trainer(policy, catalog, examples, tmp_path, **BATCH | settings).train()
    return torch.cat([weights.detach().flatten() for weights in policy.model.parameters()])


def test_a_taught_policys_free_rollouts_are_mixed(catalog, examples):
    rewards = torch.stack([rewards for *_, rewards, _ in groups(taught(catalog), catalog, examples)])
    assert 0.1 < (rewards == 0).float().mean() < 0.9
    assert (rewards.std(1) > 0).any()


def step(policy, catalog, examples, tmp_path, **settings):
    """Return the trainer, and the loss of all pages, whose gradient is in the policy."""
    trainer = make_trainer(policy, catalog, examples, tmp_path, **BATCH | settings)
    policy.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by train()
    batch = [row for i in range(len(examples)) for row in [trainer.train_dataset[i]] * G]
    loss = trainer.compute_loss(policy.model, trainer._prepare_inputs(batch))
    loss.backward()
    return trainer, loss


def groups(policy, catalog, examples):
    """Each page's beams, their anchored rewards and their log-probabilities, one row a rollout."""
    for example in examples:
        prompt = policy.prompts.prompt(example.context)
        tokens, _ = beam_search(
            policy.model, *policy.prompts.batch([prompt]), vocab=policy.vocab, plan=BeamPlan((G,) * 3)
        )
        rows = catalog.rows_of(policy.vocab.codes(tokens))[0]
        rewards = torch.tensor([0.0 if row == NO_ITEM else (row + 1) / 20 for row in rows.tolist()])
        hits = torch.tensor([row in example.positives for row in rows.tolist()])
        rewards = torch.where(hits, rewards.max(), rewards)
        yield prompt, tokens, rewards, one_by_one(policy.model, [prompt], tokens)[0]


def normalised(rewards):
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def assert_same_gradients(policy, twin):
    for (name, found), wanted in zip(policy.model.named_parameters(), twin.model.parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, atol=1e-5), name


PER_TOKEN = {
    "cispo": lambda log_probs, a: -a * log_probs,
    "vespo": lambda log_probs, a: -a * log_probs,
    "sapo": lambda log_probs, a: -soft_ratio(log_probs, a) * a,
    "luspo": lambda log_probs, a: -3 * (log_probs - log_probs.detach()).exp() * a,
}


def soft_ratio(log_probs, advantages):
    temperature = torch.where(advantages > 0, 1.0, 1.05)
    return torch.sigmoid(temperature * ((log_probs - log_probs.detach()).exp() - 1)) * 4 / temperature


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_each_loss_type_is_its_formula_on_our_rollouts(catalog, examples, tmp_path, loss_type):
    policy, twin = taught(catalog), taught(catalog)
    high = {"epsilon_high": 5.0} if loss_type == "cispo" else {}
    _, loss = step(policy, catalog, examples, tmp_path, loss_type=loss_type, **high)
    formula = PER_TOKEN.get(loss_type, lambda log_probs, a: -(log_probs - log_probs.detach()).exp() * a)
    terms = [
        formula(log_probs, normalised(rewards)[:, None]).mean()
        for _, _, rewards, log_probs in groups(twin, catalog, examples)
    ]
    expected = torch.stack(terms).mean()
    expected.backward()
    assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert_same_gradients(policy, twin)


@pytest.mark.parametrize("fused_step", ["never", "always"])
def test_a_kl_leash_is_its_formula_against_the_start(catalog, examples, tmp_path, fused_step):
    policy, twin, start = taught(catalog), taught(catalog), make_policy(catalog, seed=1)
    start.save_pretrained(tmp_path / "start")
    policy.model.config._name_or_path = str(tmp_path / "start")
    _, loss = step(policy, catalog, examples, tmp_path, beta=0.3, fused_step=fused_step)
    terms = []
    for prompt, tokens, rewards, log_probs in groups(twin, catalog, examples):
        with torch.no_grad():
            away = one_by_one(start.model, [prompt], tokens)[0] - log_probs
        away = away - (log_probs - log_probs.detach())
        kl = away.exp() - away - 1
        ratio = (log_probs - log_probs.detach()).exp()
        kl = kl * ratio  # (TRL's use_bias_correction_kl)
        terms.append((-ratio * normalised(rewards)[:, None] + 0.3 * kl).mean())
    expected = torch.stack(terms).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_same_gradients(policy, twin)


def test_at_defaults_our_advantages_are_trls(catalog, examples, tmp_path):
    trainer = make_trainer(taught(catalog), catalog, examples, tmp_path, **BATCH)
    trainer.model.train()
    batch = [row for i in range(len(examples)) for row in [trainer.train_dataset[i]] * G]
    output = trainer._generate_and_score_completions(batch)
    _, rollouts, rewards = trainer._newest
    ours = Shaping().advantages(
        rewards.calibrated_PG, rollouts.is_valid_PG, divisor_P1=trainer._divisor_P1,
        log_probs_PG=rollouts.log_probs_PG, tokens_PGC=output["completion_ids"], seeds=[],
    )  # fmt: skip
    assert torch.allclose(ours, output["advantages"], atol=1e-6)
    assert ours.abs().max() > 0.5


def test_minimum_risk_is_the_gradient_of_the_expected_reward_in_the_group(catalog, examples, tmp_path):
    policy, twin = taught(catalog), taught(catalog)
    step(policy, catalog, examples, tmp_path, rollout_weights="policy", scale_rewards="none")
    terms = [
        -(log_probs.sum(1).softmax(0) * rewards).sum() for *_, rewards, log_probs in groups(twin, catalog, examples)
    ]
    (torch.stack(terms).mean() / 3).backward()  # (eq. 8 takes the mean over a SID's tokens)
    assert_same_gradients(policy, twin)


def test_uniform_rewards_move_nothing(catalog, examples, tmp_path, monkeypatch):
    half = lambda self, contexts, rows: np.full(rows.shape, 0.5, np.float32)  # noqa: E731
    monkeypatch.setattr(RewardByRow, "score", half)
    found = updated(catalog, examples, tmp_path, constrained_rollouts=True)
    start = torch.cat([w.detach().flatten() for w in taught(catalog).model.parameters()])
    assert torch.allclose(found, start, atol=1e-6)


@pytest.mark.parametrize("settings", [
    {"rollouts": "sample"}, {"rollouts": "sample", "constrained_rollouts": True}, {"invalid_rollouts": "drop"},
    {"format_coef": 0.5, "format_rollouts": 2}, {"min_std": 0.2}, {"credit": "level"}, {"inject_positives": True},
    {"page_coef": 0.3}, {"credit": "level", "format_coef": 0.5, "format_rollouts": 1, "num_iterations": 2},
    {"rollout_weights": "policy", "scale_rewards": "batch"},
])  # fmt: skip
def test_every_option_changes_the_update_and_fused_steps_make_the_same(catalog, examples, tmp_path, settings):
    shared = {k: settings[k] for k in ("constrained_rollouts", "num_iterations") if k in settings}
    plain = updated(catalog, examples, tmp_path, **shared)
    found = updated(catalog, examples, tmp_path, fused_step="never", **settings)
    assert torch.isfinite(found).all()
    assert not torch.allclose(found, plain, atol=1e-5)
    if "num_iterations" not in settings:
        fused = updated(catalog, examples, tmp_path, fused_step="always", **settings)
        assert torch.allclose(found, fused, atol=1e-5)


@pytest.mark.parametrize("softmax", ["vocabulary", "children"])
def test_page_term_is_the_pages_answer_after_its_prompt(catalog, examples, tmp_path, softmax):
    policy, twin = taught(catalog, softmax=softmax), taught(catalog, softmax=softmax)
    settings = {"policy_term": "none", "page_coef": 0.5, "max_page_items": 2, "fused_step": "never"}
    settings |= {"constrained_rollouts": softmax == "children"}
    trainer, loss = step(policy, catalog, examples, tmp_path, **settings)
    terms = []
    for example in examples:
        rows = example.positives[:2]
        answer = torch.from_numpy(twin.prompts.answer(rows)).view(1, 1, -1)
        if softmax == "vocabulary":
            nll = -one_by_one(twin.model, [twin.prompts.prompt(example.context)], answer)[0, 0].sum() / len(rows)
        else:
            batch = twin.prompts.batch([twin.prompts.prompt(example.context)])
            nll = -sum_over_children(trainer, twin, batch, answer) / len(rows)
        terms.append(nll)
    expected = 0.5 * torch.stack(terms).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_second_iteration_weighs_the_same_rollouts_by_their_clipped_ratio(catalog, examples, tmp_path):
    policy, read, epsilon = taught(catalog), [], 0.05
    settings = BATCH | {"num_iterations": 2, "max_steps": 2, "epsilon": epsilon}
    trainer = make_trainer(policy, catalog, examples, tmp_path, **settings)
    compute_loss = trainer._compute_loss

    def spy(model, inputs):
        rows = zip(inputs["prompt_ids"], inputs["prompt_mask"].bool(), strict=True)
        prompts = [ids[is_prompt].numpy() for ids, is_prompt in rows]
        now = one_by_one(policy.model, prompts, inputs["completion_ids"]).detach()
        read.append((inputs["completion_ids"], inputs["advantages"], now, loss := compute_loss(model, inputs)))
        return loss

    trainer._compute_loss = spy
    trainer.train()
    (tokens, advantages, before, _), (again, same, now, loss) = read
    assert tokens.equal(again)
    assert advantages.equal(same)
    ratio = (now - before).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    assert 0.2 < (ratio != clipped).float().mean() < 0.8
    gain = torch.minimum(ratio * advantages[..., None], clipped * advantages[..., None])
    assert loss.item() == pytest.approx(-gain.mean().item(), rel=1e-4)


def sum_over_children(trainer, twin, batch, answer):
    """Log-probability of an answer, each code among those that go on to an item."""
    ids = torch.cat([batch[0], answer[0]], dim=1)
    logits, n = twin.model(ids).logits[0], batch[0].shape[1]
    sids = twin.prompts.answer(np.arange(trainer.scorer.catalog.n_items)).reshape(-1, 3).tolist()
    total = 0.0
    for place, token in enumerate(answer[0, 0].tolist()):
        prefix = answer[0, 0, place - place % 3 : place].tolist()
        allowed = sorted({sid[place % 3] for sid in sids if sid[: place % 3] == prefix})
        total = total + logits[n - 1 + place, allowed].log_softmax(0)[allowed.index(token)]
    return total


@pytest.mark.parametrize("choices", [
    {}, {"rollouts": "gumbel"}, {"policy_term": "listwise_kl"}, {"history_dropout": 0.6},
    {"policy_term": "listwise_kl", "rollouts_from": "start"}, {"constrained_rollouts": False},
])  # fmt: skip
def test_no_rollout_is_what_the_user_has_taken_already(catalog, tmp_path, choices):
    pages = [make_example([i, i + 1], [i], disliked=[i + 2]) for i in range(6)]
    settings = {"exclude_seen": True, "constrained_rollouts": True, **choices}
    softmax = "children" if settings["constrained_rollouts"] else "vocabulary"
    trainer, loss = step(taught(catalog, softmax=softmax), catalog, pages, tmp_path, **settings)
    for page, rows in zip(pages, trainer._newest[1].rows_PG.tolist(), strict=True):
        assert not set(rows) & set(page.context.seen.tolist())
        assert not settings["constrained_rollouts"] or len({*rows} - {NO_ITEM}) == G
    assert loss.isfinite()


def test_a_request_that_has_taken_nearly_everything_is_refused(catalog, tmp_path):
    pages = [make_example(list(range(10)), [11]), *(make_example([i], [i]) for i in range(5))]
    with pytest.raises(RolloutError, match="leaves a request of user 'u' 2 SIDs"):
        step(make_policy(catalog), catalog, pages, tmp_path, exclude_seen=True, constrained_rollouts=True)
    trainer, _ = step(make_policy(catalog), catalog, pages, tmp_path, exclude_seen=True)
    assert not set(trainer._newest[1].rows_PG[0].tolist()) & set(range(10))


def test_groups_that_missed_get_a_positive_in_place_of_their_last(policy, examples):
    hit = torch.from_numpy(policy.prompts.answer(examples[0].positives[:1])).view(1, 3)
    other = torch.from_numpy(policy.prompts.answer(np.array([11, 10]))).view(2, 3)
    tokens = torch.stack([torch.cat([other[:1], hit]), other])
    found, is_missed = inject_positives(tokens, examples[:2], policy.prompts, seeds=[[0], [1]])
    assert is_missed.tolist() == [False, True]
    assert found[0].equal(tokens[0])
    assert found[1, 0].equal(tokens[1, 0])
    page = policy.prompts.answer(examples[1].positives).reshape(-1, 3).tolist()
    assert found[1, 1].tolist() in page


def test_injected_share_is_logged_and_every_group_has_a_positive(catalog, examples, tmp_path):
    trainer = make_trainer(taught(catalog), catalog, examples, tmp_path, inject_positives=True, **BATCH)
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["rollout/positive_in_group_rate"] == 1
    assert 0 < row["rollout/injected_share"] <= 1


def test_under_lora_listwise_kl_reads_the_start_with_adapters_off(catalog, examples, tmp_path):
    policy = taught(catalog)
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["token_merger"], task_type="CAUSAL_LM")
    trainer = make_trainer(policy, catalog, examples, tmp_path, policy_term="listwise_kl", peft_config=lora,
                           max_steps=3, **BATCH)  # fmt: skip
    trainer.train()
    assert trainer._start._network is policy.model
    twin = taught(catalog)
    ids, _ = policy.prompts.batch([policy.prompts.prompt(examples[0].context)])
    with torch.no_grad(), trainer._start.network(trainer.model) as start:
        assert torch.allclose(start(ids).logits, twin.model(ids).logits, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(policy.model(ids).logits, twin.model(ids).logits, atol=1e-4)


def test_evaluations_hold_the_diagnostics_and_the_guarded_metric(catalog, examples, tmp_path):
    policy = taught(catalog)
    scorer = RolloutScorer(RewardByRow(), None, catalog)
    watch = HackingWatch(scorer, popularity=catalog.popularity, group_size=G, gold_model=RewardByRow())
    validation = Validation(examples, BeamRecommender(policy, catalog=catalog), beams=10, watch=watch)
    trainer = make_trainer(
        policy, catalog, examples, tmp_path, validation=validation, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, eval_on_start=True, load_best_model_at_end=True, guard=True,
        metric_for_best_model="eval_ndcg@10", max_steps=2, probe_requests=4, **BATCH,
    )  # fmt: skip
    assert isinstance(trainer, GRPOSRTrainer)
    trainer.train()
    start, *later = [row for row in trainer.state.log_history if "eval_ndcg@10" in row]
    assert start["eval_kl_to_start"] == 0
    assert all(row["eval_kl_to_start"] > 0 for row in later)
    assert {
        "eval_gold_mean@10",
        "eval_har@10_level_1",
        "eval_gate_pass_rate",
        "eval_positive_log_prob",
    } <= start.keys()
    assert start["eval_har@10"] == pytest.approx(sum(start[f"eval_har@10_level_{i}"] for i in (1, 2, 3)))
    assert start[GUARDED] == start["eval_ndcg@10"]
    assert watch.magnets([f"title {i}" for i in range(12)])
