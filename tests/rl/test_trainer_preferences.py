"""The preference terms in the trainer; the trainer's other terms are in test_trainer.py."""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch.nn.functional import logsigmoid

from genrec_rl.decoding.beam_search import BeamPlan, beam_search
from tests.fixtures import make_policy
from tests.rl.test_trainer import G, make_trainer, next_log_probs, updated_weights

BETA, DELTA, ALPHA, Z_MAX = 0.6, 0.05, 0.3, 1.7


def perturb(policy) -> None:
    """Move a policy away from its start, so that the reference counts."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weights in policy.model.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=generator))


class ByHand:
    """The terms with loops: each log-probability by forwards of its own."""

    def __init__(self, policy, start, catalog, *, softmax):
        self.policy, self.start, self.catalog, self.softmax = policy, start, catalog, softmax
        self.every_sid = policy.prompts.answer(np.arange(catalog.n_items)).reshape(-1, 3).tolist()

    def log_prob(self, of, prompt, sid):
        total = torch.tensor(0.0)
        for n in range(3):
            allowed = {s[n] for s in self.every_sid if s[:n] == sid[:n]} if self.softmax == "children" else None
            total = total + next_log_probs(of, prompt, sid[:n], allowed=allowed)[sid[n]]
        return total

    def candidates(self, example):
        """Rollouts, and what each is worth."""
        prompt = self.policy.prompts.prompt(example.context)
        batch, plan = self.policy.prompts.batch([prompt]), BeamPlan((G,) * 3, self.softmax)
        beams, _ = beam_search(self.policy.model, *batch, vocab=self.policy.vocab, plan=plan, trie=self.catalog.trie)
        rows = self.catalog.rows_of(self.policy.vocab.codes(beams))[0].tolist()
        values = [(row + 1) / 20 for row in rows]
        values = [max(values) if row in example.positives else v for row, v in zip(rows, values, strict=True)]
        return beams[0].tolist(), values

    def winners(self, term, prompt, sids, values) -> dict[int, torch.Tensor]:
        """Return each winner's loss; no two values that matter tie but for hits."""
        now = [self.log_prob(self.policy, prompt, sid) for sid in sids]
        before = [self.log_prob(self.start, prompt, sid).item() for sid in sids]
        ratios = [n - b for n, b in zip(now, before, strict=True)]
        n, probable = len(sids), sorted(range(len(sids)), key=lambda i: -now[i].item())
        best = next(i for i in probable if values[i] == max(values))
        worst = next(i for i in probable if values[i] == min(values))
        if term == "dpo":
            return {best: -logsigmoid(BETA * (ratios[best] - ratios[worst]))} if values[best] > values[worst] else {}
        lower = {i: [j for j in range(n) if values[j] < values[i]] for i in range(n)}
        lower = {i: losers for i, losers in lower.items() if losers}
        if term == "s_dpo":
            return {
                i: -logsigmoid(-torch.stack([BETA * (ratios[j] - ratios[i]) for j in losers]).exp().sum().log())
                for i, losers in lower.items()
                if i == best
            }
        place = {i: np.mean([1 + k for k in range(n) if sorted(values)[::-1][k] == values[i]]) for i in range(n)}
        ideal = sum(v / math.log2(2 + k) for k, v in enumerate(sorted(values, reverse=True)))
        found = {}
        for i, losers in lower.items():
            kept = np.mean([ratios[t].item() for t in [*losers, i]]) < DELTA
            g = [BETA * (ratios[t] if kept else now[t]) for t in range(n)]
            gaps = {j: abs(place[i] - place[j]) for j in losers}
            weights = {j: 1 / math.log2(1 + gap) - 1 / math.log2(2 + gap) for j, gap in gaps.items()}
            z = sum(weights[j] * (values[i] - values[j]) / ideal * (g[j] - g[i]).exp() for j in losers)
            found[i] = torch.log2(1 + z)
        return found

    def loss(self, term, examples):
        terms = []
        for example in examples:
            prompt = self.policy.prompts.prompt(example.context).tolist()
            winners = self.winners(term, prompt, *self.candidates(example))
            answers = self.policy.prompts.answer(example.positives).reshape(-1, 3).tolist()
            nll = torch.stack([-self.log_prob(self.policy, prompt, sid) for sid in answers]).mean()
            mean = torch.stack(list(winners.values())).mean() if winners else 0.0
            terms.append(mean + ALPHA * nll)
        return torch.stack(terms).mean()

    def unified_loss(self, examples):
        terms = []
        for example in examples:
            prompt = self.policy.prompts.prompt(example.context).tolist()
            sids, values = self.candidates(example)
            answers = self.policy.prompts.answer(example.positives).reshape(-1, 3).tolist()
            unseen = [sid for sid in answers if sid not in sids]
            sids, values = sids + unseen, values + [max(values)] * len(unseen)
            log_probs, n = [self.log_prob(self.policy, prompt, sid).item() for sid in sids], len(sids)
            ranks = [[np.mean([k + 1 for k in range(n) if sorted(s)[::-1][k] == x]) for x in s]
                     for s in (log_probs, values)]  # fmt: skip
            gaps = [abs(a - b) / (n - 1) for a, b in zip(*ranks, strict=True)]
            winners = self.winners("rspo", prompt, sids, values)
            weighed = [Z_MAX * (1 - gaps[i]) * loss for i, loss in winners.items()]
            imitated = [
                -((1 + values[sids.index(sid)]) ** gaps[sids.index(sid)]) * self.log_prob(self.policy, prompt, sid)
                for sid in answers
            ]
            mean = torch.stack(weighed).mean() if weighed else 0.0
            terms.append(mean + ALPHA * torch.stack(imitated).mean())
        return torch.stack(terms).mean()


@pytest.mark.parametrize(
    ("term", "softmax", "fused_step"),
    [
        ("rspo", "vocabulary", "never"),
        ("rspo", "children", "always"),
        ("unified", "vocabulary", "always"),
        ("unified", "children", "never"),
        ("dpo", "vocabulary", "always"),
        ("s_dpo", "children", "never"),
    ],
)
def test_loss_and_gradient_equal_those_written_by_hand(catalog, examples, tmp_path, term, softmax, fused_step):
    policy, twin, start = (make_policy(catalog, softmax=softmax) for _ in range(3))
    settings = {"reference_delta": DELTA} if term in ("rspo", "unified") else {}
    settings |= {"unified": True, "z_max": Z_MAX} if term == "unified" else {}
    trainer = make_trainer(
        policy, catalog, examples, tmp_path, per_device_train_batch_size=G * 6, fused_step=fused_step,
        policy_term="rspo" if term == "unified" else term, preference_beta=BETA, constrained_rollouts=True,
        nll_coef=ALPHA, **settings,
    )  # fmt: skip
    perturb(policy)
    perturb(twin)
    policy.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by train()
    batch = [row for i in range(len(examples)) for row in [trainer.train_dataset[i]] * G]
    loss = trainer.compute_loss(policy.model, trainer._prepare_inputs(batch))
    loss.backward()
    by_hand = ByHand(twin, start, catalog, softmax=softmax)
    expected = by_hand.unified_loss(examples) if term == "unified" else by_hand.loss(term, examples)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, found), wanted in zip(policy.model.named_parameters(), twin.model.parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, atol=1e-5), name
    assert trainer._metrics["train"]["preference/tied_group_share"] == [0]
    if settings:  # both sides of the gate were seen
        assert 0 < trainer._metrics["train"]["preference/reference_share"][0] < 1


@pytest.mark.parametrize("settings", [{"policy_term": "rspo"}, {"policy_term": "rspo", "unified": True}])
def test_accumulating_gradients_gives_the_update_of_one_batch(catalog, examples, tmp_path, settings):
    examples = (examples * 2)[:8]
    settings = settings | {"constrained_rollouts": True}
    whole = updated_weights(catalog, examples, tmp_path, per_device_train_batch_size=8 * G, **settings)
    parts = updated_weights(catalog, examples, tmp_path, per_device_train_batch_size=G, gradient_accumulation_steps=8,
                            **settings)  # fmt: skip
    assert torch.allclose(whole, parts, atol=1e-5)
    start = torch.cat([w.detach().flatten() for w in make_policy(catalog).model.parameters()])
    assert not torch.allclose(whole, start)


def test_training_orders_the_pairs_and_leaves_the_start_as_it_was(catalog, examples, tmp_path):
    trainer = make_trainer(
        make_policy(catalog), catalog, examples, tmp_path, nll_coef=0.0, policy_term="rspo", preference_beta=1.0,
        per_device_train_batch_size=G * 6, max_steps=25, constrained_rollouts=True, rollouts_from="start",
    )  # fmt: skip
    with trainer._start.network(trainer.model) as start:
        weights = [*start.parameters()]
    before = [x.clone() for x in weights]
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rspo" in row]
    assert logged[-1]["rspo"] < logged[0]["rspo"]
    assert logged[-1]["preference/ordered_pair_share"] > logged[0]["preference/ordered_pair_share"]
    assert {"preference/tied_group_share", "preference/reference_share"} <= logged[0].keys()
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


def test_with_lora_the_reference_is_the_policy_without_it(catalog, examples, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(
        make_policy(catalog), catalog, examples, tmp_path, policy_term="dpo", nll_coef=0.0, peft_config=lora,
        per_device_train_batch_size=G * 6, constrained_rollouts=True,
    )  # fmt: skip
    trainer.train()
    # before the first update policy and reference agree, and DPO costs log 2
    assert trainer.state.log_history[0]["dpo"] == pytest.approx(math.log(2), abs=1e-5)


def test_groups_of_equal_rewards_are_counted_and_teach_nothing(catalog, examples, tmp_path):
    policy = make_policy(catalog)
    trainer = make_trainer(
        policy, catalog, examples, tmp_path, policy_term="rspo", nll_coef=0.0, per_device_train_batch_size=G * 6
    )
    trainer.scorer.reward_model.score = lambda contexts, rows: np.zeros(rows.shape, np.float32)
    before = [weights.clone() for weights in policy.model.parameters()]
    trainer.train()
    row = trainer.state.log_history[0]
    assert (row["preference/tied_group_share"], row["rspo"]) == (1, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
