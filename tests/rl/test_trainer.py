from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genrec_rl.decoding.beam_search import BeamPlan, beam_search
from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.validation import Validation
from genrec_rl.errors import ConfigError
from genrec_rl.models.prefix_tree import score_branches
from genrec_rl.rewards.gates import SidPrefixGate
from genrec_rl.rl import reading
from genrec_rl.rl.config import GRPOSRConfig
from genrec_rl.rl.fused import reason_against
from genrec_rl.rl.rollouts import RolloutScorer, sample_positives
from genrec_rl.rl.selection import keep_best
from genrec_rl.rl.trainer import GRPOSRTrainer
from genrec_rl.types import NO_ITEM
from tests.fixtures import make_example, make_policy
from tests.models.test_prefix_tree import one_by_one

G = 4


class RewardByRow:
    """Row r earns (r + 1) / 20."""

    fingerprint = "by row"

    def score(self, contexts, candidates):
        return ((candidates + 1) / 20).astype(np.float32)


def make_trainer(policy, catalog, examples, tmp_path, *, gate=None, validation=None, peft_config=None, **settings):
    defaults = {"output_dir": str(tmp_path), "num_generations": G, "per_device_train_batch_size": G, "seed": 0}
    defaults |= {"learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 1e9, "lr_scheduler_type": "constant"}
    defaults |= {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "nll_coef": 0.3}
    defaults |= {"use_cpu": True, "disable_tqdm": True}
    continue_page = settings.pop("continue_page", False)
    return GRPOSRTrainer(
        policy,
        args=GRPOSRConfig(**defaults | settings),
        examples=examples,
        scorer=RolloutScorer(RewardByRow(), gate, catalog),
        validation=validation,
        continue_page=continue_page,
        peft_config=peft_config,
    )


def hand_written_loss(policy, catalog, examples, *, gate, alpha, anchor=True):
    """Equation 8 with loops: one row per rollout, one row per positive."""
    terms = []
    for example in examples:
        prompt = policy.prompts.prompt(example.context)
        ids, is_prompt = policy.prompts.batch([prompt])
        tokens, _ = beam_search(
            policy.model, ids, is_prompt, vocab=policy.vocab, plan=BeamPlan((G,) * 3), trie=catalog.trie
        )
        rows = catalog.rows_of(policy.vocab.codes(tokens))[0]
        rewards = torch.tensor([0.0 if row == NO_ITEM else (row + 1) / 20 for row in rows.tolist()])
        if gate is not None:
            shared = gate.similarity([example.context], rows.clamp(min=0).numpy()[None], [example.positives])[0]
            rewards = rewards * torch.tensor(shared > gate.tau)
        hits = torch.tensor([row in example.positives for row in rows.tolist()])
        if anchor:
            rewards = torch.where(hits, rewards.max(), rewards)
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        log_probs = one_by_one(policy.model, [prompt], tokens)[0]
        ratio = (log_probs - log_probs.detach()).exp()
        policy_term = -(ratio.mean(-1) * advantages).mean()
        answers = torch.from_numpy(policy.prompts.answer(example.positives)).view(1, -1, 3)
        nll = -one_by_one(policy.model, [prompt], answers)[0].sum(-1).mean()
        terms.append(policy_term + alpha * nll)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("fused_step", ["never", "always"])
@pytest.mark.parametrize("gated", [False, True])
def test_loss_and_gradient_equal_a_hand_written_equation_8(catalog, examples, tmp_path, gated, fused_step):
    gate = SidPrefixGate(catalog) if gated else None
    policy, twin = make_policy(catalog), make_policy(catalog)
    trainer = make_trainer(policy, catalog, examples, tmp_path, gate=gate, per_device_train_batch_size=G * 6,
                           fused_step=fused_step, constrained_rollouts=True)  # fmt: skip
    assert trainer.is_fused == (fused_step == "always")
    policy.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by train()
    batch = [row for i in range(len(examples)) for row in [trainer.train_dataset[i]] * G]
    inputs = trainer._prepare_inputs(batch)
    loss = trainer.compute_loss(policy.model, inputs)
    loss.backward()
    expected = hand_written_loss(twin, catalog, examples, gate=gate, alpha=0.3)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for (name, found), wanted in zip(policy.model.named_parameters(), twin.model.parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, atol=1e-5), name


def next_log_probs(policy, prompt, prefix, *, allowed=None) -> torch.Tensor:
    """What follows a prompt and a prefix of an answer, over the vocabulary or over the allowed tokens."""
    logits = policy.model(torch.tensor([[*prompt, *prefix]])).logits[0, -1]
    if allowed is not None:
        outside = [token for token in range(len(logits)) if token not in allowed]
        logits = logits.index_fill(0, torch.tensor(outside), -torch.inf)
    return logits.log_softmax(-1)


def hand_written_listwise_kl(policy, start, catalog, examples, *, alpha, weight, constrained=False, per_mass=False):
    """KL from the target, prefix by prefix, each with a forward of its own; plus the NLL of the positives."""
    terms, every_sid = [], policy.prompts.answer(np.arange(catalog.n_items)).reshape(-1, 3).tolist()

    def log_probs(of, prompt, prefix):
        n = len(prefix)
        allowed = {sid[n] for sid in every_sid if sid[:n] == prefix} if constrained else None
        return next_log_probs(of, prompt, prefix, allowed=allowed)

    for example in examples:
        prompt = policy.prompts.prompt(example.context).tolist()
        plan = BeamPlan((G,) * 3, "children" if constrained else "vocabulary")
        batch = policy.prompts.batch([np.array(prompt)])
        beams, _ = beam_search(
            start.model, *batch, vocab=policy.vocab, plan=plan, trie=catalog.trie if constrained else None
        )
        rows = catalog.rows_of(policy.vocab.codes(beams))[0].tolist()
        rewards = [0.0 if row == NO_ITEM else (row + 1) / 20 for row in rows]
        rewards = [max(rewards) if row in example.positives else r for row, r in zip(rows, rewards, strict=True)]
        margins = [np.log(max(r, 1e-6) / (1 - r)) for r in rewards]
        sids = beams[0].tolist()
        ref = [sum(log_probs(start, prompt, sid[:n])[sid[n]].item() for n in range(3)) for sid in sids]
        shares = np.exp(np.array(ref) + weight * np.array(margins))
        mass = np.exp(ref).sum()
        gains = shares / shares.sum() * mass - np.exp(ref)
        loss = torch.tensor(0.0)
        for prefix in {tuple(sid[:n]) for sid in sids for n in range(3)}:
            n, prefix = len(prefix), list(prefix)
            before = sum(log_probs(start, prompt, prefix[:m])[prefix[m]].item() for m in range(n))
            joint = (before + log_probs(start, prompt, prefix).detach()).exp()
            for sid, gain in zip(sids, gains, strict=True):
                if sid[:n] == prefix:
                    joint[sid[n]] += gain
            has_target = joint > 1e-12
            target = joint[has_target] / joint.sum()
            kl = (target * (target.log() - log_probs(policy, prompt, prefix)[has_target])).sum()
            loss = loss + joint.sum() * kl
        nll = torch.stack([
            -sum(log_probs(policy, prompt, sid[:n])[sid[n]] for n in range(3))
            for sid in policy.prompts.answer(example.positives).reshape(-1, 3).tolist()
        ]).mean()  # fmt: skip
        terms.append((loss / mass if per_mass else loss) + alpha * nll)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("per_mass", [False, True])
@pytest.mark.parametrize("fused_step", ["never", "always"])
@pytest.mark.parametrize("softmax", ["vocabulary", "children"])
def test_listwise_kl_and_its_gradient_equal_one_written_by_hand(
    catalog, examples, tmp_path, softmax, fused_step, per_mass
):
    policy, twin = make_policy(catalog, softmax=softmax), make_policy(catalog, softmax=softmax)
    constrained = softmax == "children"
    trainer = make_trainer(
        policy, catalog, examples, tmp_path, per_device_train_batch_size=G * 6, fused_step=fused_step,
        policy_term="listwise_kl", margin_weight=1.5, constrained_rollouts=constrained, per_mass=per_mass,
    )  # fmt: skip
    policy.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by train()
    batch = [row for i in range(len(examples)) for row in [trainer.train_dataset[i]] * G]
    loss = trainer.compute_loss(policy.model, trainer._prepare_inputs(batch))
    loss.backward()
    start = make_policy(catalog, softmax=softmax)
    expected = hand_written_listwise_kl(
        twin, start, catalog, examples, alpha=0.3, weight=1.5, constrained=constrained, per_mass=per_mass
    )
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for (name, found), wanted in zip(policy.model.named_parameters(), twin.model.parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, atol=1e-4), name


@pytest.mark.parametrize("fused_step", ["never", "always"])
def test_without_a_policy_term_the_loss_is_the_nll_of_the_positives(catalog, examples, tmp_path, fused_step):
    policy, twin = make_policy(catalog), make_policy(catalog)
    trainer = make_trainer(policy, catalog, examples, tmp_path, per_device_train_batch_size=G * 6,
                           fused_step=fused_step, policy_term="none")  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1  # set by train()
    batch = [row for i in range(len(examples)) for row in [trainer.train_dataset[i]] * G]
    loss = trainer.compute_loss(policy.model, trainer._prepare_inputs(batch))
    loss.backward()
    terms = []
    for example in examples:
        answers = torch.from_numpy(twin.prompts.answer(example.positives)).view(1, -1, 3)
        terms.append(-one_by_one(twin.model, [twin.prompts.prompt(example.context)], answers)[0].sum(-1).mean())
    expected = 0.3 * torch.stack(terms).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, found), wanted in zip(policy.model.named_parameters(), twin.model.parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, atol=1e-5), name


def test_listwise_kl_moves_the_policy_towards_the_target_and_not_the_start(catalog, examples, tmp_path):
    trainer = make_trainer(
        make_policy(catalog, softmax="children"), catalog, examples, tmp_path,
        nll_coef=0.0, policy_term="listwise_kl",
        per_device_train_batch_size=G * 6, max_steps=30, learning_rate=0.05, constrained_rollouts=True,
        rollouts_from="start",
    )  # fmt: skip
    start = trainer._start._network
    before = [weights.clone() for weights in start.parameters()]
    trainer.train()
    kl = [row["listwise_kl"] for row in trainer.state.log_history if "listwise_kl" in row]
    assert 0 < kl[-1] < 0.7 * kl[0]
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True))


def updated_weights(catalog, examples, tmp_path, **settings) -> torch.Tensor:
    policy = make_policy(catalog)
    # (an untaught policy invents every free rollout: none would have an advantage)
    make_trainer(policy, catalog, examples, tmp_path, **{"constrained_rollouts": True} | settings).train()
    return torch.cat([weights.detach().flatten() for weights in policy.model.parameters()])


def test_accumulating_gradients_gives_the_update_of_one_batch(catalog, examples, tmp_path):
    examples = (examples * 2)[:8]
    whole = updated_weights(catalog, examples, tmp_path, per_device_train_batch_size=8 * G)
    parts = updated_weights(catalog, examples, tmp_path, per_device_train_batch_size=G, gradient_accumulation_steps=8)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert not torch.allclose(
        whole, torch.cat([w.detach().flatten() for w in make_policy(catalog).model.parameters()])
    )


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
def test_one_update_per_batch_makes_loss_types_equal(catalog, examples, tmp_path, loss_type):
    settings = {"per_device_train_batch_size": 6 * G}
    reference = updated_weights(catalog, examples, tmp_path, loss_type="grpo", **settings)
    assert torch.allclose(
        updated_weights(catalog, examples, tmp_path, loss_type=loss_type, **settings), reference, atol=1e-5
    )


@pytest.mark.parametrize("settings", [
    {"gradient_accumulation_steps": 3, "steps_per_generation": 1, "per_device_train_batch_size": 2 * G},
    {"loss_type": "dapo"}, {"loss_type": "dr_grpo"}, {"entropy_coef": 0.5}, {"importance_sampling_level": "sequence"},
    {"bf16": True}, {"constrained_rollouts": True}, {"nll_coef": 0.0},
])  # fmt: skip
def test_fused_steps_make_the_same_update(catalog, examples, tmp_path, settings):
    settings = {"per_device_train_batch_size": 6 * G} | settings
    apart, fused = (
        updated_weights(catalog, examples, tmp_path, fused_step=choice, **settings) for choice in ("never", "always")
    )
    assert torch.allclose(apart, fused, atol=2e-3 if "bf16" in settings else 1e-5)


@pytest.mark.parametrize("policy_term", ["grpo", "listwise_kl"])
def test_reading_prompts_in_groups_of_like_length_makes_the_same_update(catalog, tmp_path, monkeypatch, policy_term):
    pages = [make_example([*range(place % 7)], [place % 12]) for place in range(24)]
    asked_for, read = [], reading.read_trunk
    monkeypatch.setattr(reading, "read_trunk", lambda *a, length_groups: asked_for.append(length_groups) or read(*a))
    settings = {"per_device_train_batch_size": 24 * G, "policy_term": policy_term}
    together = updated_weights(catalog, pages, tmp_path, length_groups=1, **settings)
    assert set(asked_for) == {1}
    asked_for.clear()
    updated_weights(catalog, pages, tmp_path, **settings)
    assert set(asked_for) == {3}  # of eight prompts
    monkeypatch.undo()
    assert torch.allclose(updated_weights(catalog, pages, tmp_path, **settings), together, atol=1e-5)


def test_lazy_policies_get_the_same_update_fused_and_apart(catalog, examples, tmp_path):
    updated = []
    for choice in ("never", "always"):
        policy = make_policy(catalog, lazy_layers=1)
        settings = {"per_device_train_batch_size": 6 * G, "fused_step": choice}
        make_trainer(policy, catalog, examples, tmp_path, **settings).train()
        updated.append(torch.cat([weights.detach().flatten() for weights in policy.model.parameters()]))
    before = torch.cat([w.detach().flatten() for w in make_policy(catalog, lazy_layers=1).model.parameters()])
    assert torch.allclose(*updated, atol=1e-5)
    assert not torch.allclose(updated[0], before, atol=1e-4)


def test_entropy_bonus_reaches_the_weights(catalog, examples, tmp_path):
    settings = {"per_device_train_batch_size": 6 * G}
    without, with_bonus = (
        updated_weights(catalog, examples, tmp_path, entropy_coef=c, **settings) for c in (0.0, 0.5)
    )
    assert not torch.allclose(without, with_bonus, atol=1e-4)


def test_gumbel_rollouts_differ_from_step_to_step_and_repeat_with_the_seed(catalog, examples, tmp_path):
    drawn = []
    for _ in range(2):
        trainer = make_trainer(make_policy(catalog), catalog, examples, tmp_path, rollouts="gumbel")
        prompts = [trainer.train_dataset[0]["prompt"]] * G
        drawn.append([])
        for trainer.state.global_step in range(2):
            drawn[-1].append(trainer.roll_out(prompts)["completion_ids"])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


@pytest.mark.parametrize(("settings", "reason"), [
    ({"num_iterations": 2}, "num_iterations is 2"),
    ({"gradient_accumulation_steps": 2}, "steps_per_generation is 2"),
    ({"activation_checkpointing": True}, "activation checkpointing"),
    ({"gradient_checkpointing": True}, "activation checkpointing"),
    ({"disable_dropout": False}, "dropout is 0.1"),
])  # fmt: skip
def test_fused_step_is_refused_with_its_reason(catalog, examples, tmp_path, settings, reason):
    policy = make_policy(catalog, embedding_dropout=0.1)
    trainer = make_trainer(policy, catalog, examples, tmp_path, **settings)
    assert not trainer.is_fused
    assert reason in trainer.why_not_fused
    with pytest.raises(ConfigError, match=reason):
        make_trainer(policy, catalog, examples, tmp_path, fused_step="always", **settings)


def test_fused_step_is_refused_under_deepspeed_and_attention_dropout(policy):
    args = SimpleNamespace(num_iterations=1, steps_per_generation=1, activation_checkpointing=False,
                           gradient_checkpointing=False)  # fmt: skip
    assert reason_against(args, policy.model, is_deepspeed=False) == ""
    assert "DeepSpeed" in reason_against(args, policy.model, is_deepspeed=True)
    policy.model.config.attention_dropout = 0.1
    assert "attention_dropout is 0.1" in reason_against(args, policy.model, is_deepspeed=False)


def test_several_iterations_and_a_kl_leash_run(catalog, examples, tmp_path):
    policy = make_policy(catalog)
    policy.save_pretrained(tmp_path / "start")
    policy.model.config._name_or_path = str(tmp_path / "start")
    trainer = make_trainer(
        policy,
        catalog,
        examples,
        tmp_path,
        beta=0.1,
        num_iterations=2,
        max_steps=4,
        per_device_train_batch_size=2 * G,
    )
    trainer.train()
    kls = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert len(kls) == 4
    assert np.isfinite(kls).all()


def test_logs_hold_every_stage_and_no_constant_noise(catalog, examples, tmp_path):
    trainer = make_trainer(make_policy(catalog), catalog, examples, tmp_path, per_device_train_batch_size=2 * G)
    trainer.train()
    row = trainer.state.log_history[0]
    expected = {"reward/raw", "reward/gated", "reward/anchored", "rollout/hallucination_rate", "nll", "entropy"}
    expected |= {"rollout/gate_pass_rate", "rollout/positive_in_group_rate", "rollout/zero_advantage_share"}
    assert expected <= row.keys()
    assert not [name for name in row if name.startswith(("completions/", "clip_ratio/"))]
    assert trainer.rollout_table([f"title {i}" for i in range(12)])


def test_evaluation_recommends_and_a_useless_run_keeps_its_start(catalog, examples, tmp_path):
    policy = make_policy(catalog)
    policy.save_pretrained(tmp_path / "start")
    validation = Validation(examples, BeamRecommender(policy, catalog=catalog), beams=10)
    trainer = make_trainer(
        policy, catalog, examples, tmp_path, validation=validation, eval_strategy="steps", eval_steps=1,
        eval_on_start=True, learning_rate=0.0, per_device_train_batch_size=2 * G,
    )  # fmt: skip
    trainer.train()
    evaluations = [row for row in trainer.state.log_history if "eval_ndcg@10" in row]
    assert [row["step"] for row in evaluations] == [0, 1]
    trained = [row for row in trainer.state.log_history if "reward/raw" in row]
    assert [row["step"] for row in trained] == [1]
    assert not any("eval_ndcg@10" in row for row in trained)
    kept, verdict = keep_best(trainer, policy, start_dir=tmp_path / "start", catalog=catalog, keep_start=True)
    assert kept is not policy
    assert "the start is kept" in verdict


def test_policy_of_real_items_needs_constrained_rollouts(catalog, examples, tmp_path):
    with pytest.raises(ConfigError, match="set constrained_rollouts: true"):
        make_trainer(make_policy(catalog, softmax="children"), catalog, examples, tmp_path)


@pytest.mark.parametrize("fused_step", ["never", "always"])
def test_policy_of_real_items_is_weighed_over_real_items(catalog, examples, tmp_path, fused_step):
    policy = make_policy(catalog, softmax="children")
    trainer = make_trainer(policy, catalog, examples, tmp_path, constrained_rollouts=True, fused_step=fused_step)
    prompt = policy.prompts.prompt(examples[0].context)
    every = torch.from_numpy(policy.prompts.answer(np.arange(catalog.n_items))).view(1, -1, 3)
    scored = score_branches(trainer._log_probs(policy.model, *policy.prompts.batch([prompt]), every), every)
    assert scored.log_probs_BGC.sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.isfinite(scored.entropies_BGC).all()
    trainer.train()


@pytest.mark.parametrize("continues", [False, True])
def test_prompts_are_those_that_the_policy_recommends_by(policy, catalog, tmp_path, continues):
    examples = [make_example([0, 4], [1])]  # all of it on the day of the request
    trainer = make_trainer(policy, catalog, examples, tmp_path, continue_page=continues)
    write = BeamRecommender(policy, catalog=catalog, continue_page=continues).write
    assert trainer.train_dataset[0]["prompt"].tolist() == write(examples[0].context).tolist()
    assert len(policy.prompts.running_prompt(examples[0].context)) != len(policy.prompts.prompt(examples[0].context))


def test_the_reward_reads_the_history_that_the_prompt_kept(catalog, tmp_path):
    policy, example = make_policy(catalog), make_example([0, 1, 2, 3, 4, 5], [6])
    trainer = make_trainer(policy, catalog, [example], tmp_path, history_dropout=0.5, max_steps=4)
    read, asked_for = [], []
    score, roll_out = trainer.scorer.reward_model.score, trainer.roll_out
    trainer.scorer.reward_model.score = lambda contexts, rows: read.extend(contexts) or score(contexts, rows)
    trainer.roll_out = lambda prompts: asked_for.append(prompts[0]) or roll_out(prompts)
    trainer.train()
    written = [policy.prompts.prompt(context).tolist() for context in read]
    assert written == [prompt.tolist() for prompt in asked_for]
    assert min(len(context.history) for context in read) < 6


def test_long_pages_are_sampled_not_cut(policy, examples):
    (page,) = [example for example in examples if len(example.positives) == 3]
    drawn = set()
    for step in range(30):
        tokens, is_positive = sample_positives([page], policy.prompts, limit=2, seeds=[[step]])
        assert is_positive.tolist() == [[True, True]]
        drawn |= {tuple(sid) for sid in tokens[0].tolist()}
    assert drawn == {tuple(sid) for sid in policy.prompts.answer(page.positives).reshape(-1, 3).tolist()}
