import numpy as np
import torch

from genrec_rl.rewards.gates import ValidGate
from genrec_rl.rl.rollouts import RolloutScorer, asked, build_prompts, sample_positives
from genrec_rl.types import NO_ITEM, Rollouts
from tests.fixtures import CODES, make_catalog, make_example


class Tenths:
    fingerprint = "tenths"

    def score(self, contexts, candidates):
        return (candidates / 20).astype(np.float32)


def rollouts(rows) -> Rollouts:
    rows = torch.tensor(rows)
    return Rollouts(sids_PGL=torch.zeros(*rows.shape, 3), rows_PG=rows, log_probs_PG=torch.zeros(rows.shape))


def test_each_prompt_carries_its_own_page(policy, examples):
    dataset = build_prompts(examples, policy.prompts.prompt)
    assert dataset[3]["page"] == 3
    assert dataset[3]["prompt"].tolist() == policy.prompts.prompt(examples[3].context).tolist()


def test_a_thinned_prompt_and_its_request_keep_the_same_items_in_the_whole_group(policy):
    example = make_example([*range(8)], [9])
    torch.manual_seed(0)
    rows = build_prompts([example], policy.prompts.prompt, history_dropout=0.5)[[0, 0, 0]]
    requests = [asked({name: rows[name][i] for name in rows}, [example]) for i in range(3)]
    assert 0 < len(requests[0].context.history) < 8
    assert all(policy.prompts.prompt(request.context).tolist() == rows["prompt"][0].tolist() for request in requests)
    assert requests[0].positives.tolist() == [9]


def test_a_prompt_is_thinned_anew_each_time_it_is_read(policy):
    torch.manual_seed(0)
    dataset = build_prompts([make_example([*range(8)], [9])], policy.prompts.prompt, history_dropout=0.5)
    assert len({str(dataset[0]["kept"]) for _ in range(8)}) > 1


def test_invalid_rollout_earns_nothing_and_passes_no_gate(catalog):
    scorer = RolloutScorer(Tenths(), ValidGate(), catalog)
    raw, relevant, hit = scorer.score([make_example([0], [4])], rollouts([[NO_ITEM, 4, 6]]))
    assert torch.allclose(raw, torch.tensor([[0.0, 0.2, 0.3]]))
    assert relevant.tolist() == [[False, True, True]]
    assert hit.tolist() == [[False, True, False]]


def test_items_that_share_a_sid_hit_together():
    codes = CODES.copy()
    codes[4] = codes[5]  # a bucket of two: the more popular, row 5, stands for both
    scorer = RolloutScorer(Tenths(), None, make_catalog(codes))
    _, _, hit = scorer.score([make_example([0], [4])], rollouts([[5, 6]]))
    assert hit.tolist() == [[True, False]]


def test_padding_of_positives_is_marked(policy):
    pages = [make_example([0], [1]), make_example([0], [2, 3])]
    tokens, is_positive = sample_positives(pages, policy.prompts, limit=8, seeds=[[0], [1]])
    assert is_positive.tolist() == [[True, False], [True, True]]
    assert tokens[1].flatten().tolist() == policy.prompts.answer(np.array([2, 3])).tolist()


def test_sampling_depends_on_the_seed_alone(policy):
    page = [make_example([0], list(range(10)))]
    draws = [sample_positives(page, policy.prompts, limit=3, seeds=[seed])[0] for seed in ([1], [1], [2])]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
