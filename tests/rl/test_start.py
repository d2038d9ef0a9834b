import pytest
import torch

from genrec_rl.models.prefix_tree import BranchLogits, branch_logits
from genrec_rl.rl.start import Start, StartProbe, draw_requests, level_kl
from tests.fixtures import make_example


def logs(*tables):
    first, later = (torch.tensor(table).log() for table in tables)
    return BranchLogits(first, later)


def test_kl_of_a_hand_worked_tree():
    policy = logs([[0.5, 0.5]], [[[[0.25, 0.75]], [[1.0, 0.0]]]])
    start = logs([[0.25, 0.75]], [[[[0.25, 0.75]], [[0.5, 0.5]]]])
    first = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    found = level_kl(policy, start)
    assert found[0, 0].tolist() == pytest.approx([first.item(), 0.0])
    assert found[0, 1].tolist() == pytest.approx([first.item(), torch.tensor(2.0).log().item()])


def test_tokens_that_neither_may_say_cost_nothing():
    policy = logs([[1.0, 0.0]], [[[[0.5, 0.5]]]])
    assert level_kl(policy, policy).tolist() == [[[0.0, 0.0]]]


def reader(policy):
    def read(*batch):
        with torch.no_grad():
            return branch_logits(policy.model, *batch).log_probs()

    return read


def test_probe_is_zero_at_the_start_and_counts_from_there(policy, examples):
    probe = StartProbe(
        reader(policy), dict(enumerate(examples)), policy.prompts, write=policy.prompts.prompt, at_once=4
    )
    before = probe.columns()
    assert tuple(before) == probe.names
    assert before["kl_to_start"].tolist() == [0.0] * 6
    assert (before["positive_log_prob"] < 0).all()
    with torch.no_grad():
        policy.model.model.norm.weight.mul_(1.5)
    after = probe.columns()
    assert (after["kl_to_start"] > 0).all()
    levels = sum(after[f"kl_level_{level}"] for level in (1, 2, 3))
    assert torch.allclose(after["kl_to_start"], levels)
    assert (after["entropy_level_1"] < before["entropy_level_1"]).all()  # sharper


def test_it_reads_the_prompts_that_are_trained(policy, examples):
    asked = []

    def write(context):
        asked.append(context)
        return policy.prompts.running_prompt(context)

    StartProbe(reader(policy), dict(enumerate(examples)), policy.prompts, write=write)
    assert asked == [example.context for example in examples]


def test_requests_without_positives_are_left_out(policy):
    requests = {0: make_example([1], [], exposed=[2])}
    probe = StartProbe(reader(policy), requests, policy.prompts, write=policy.prompts.prompt)
    assert probe.columns() == {}


def test_processes_share_the_requests_that_one_would_draw(examples):
    whole = draw_requests(examples, n=4, process=0, n_processes=1)
    parts = [draw_requests(examples, n=4, process=i, n_processes=2) for i in range(2)]
    assert {id(e) for part in parts for e in part.values()} == {id(e) for e in whole.values()}
    assert parts[0] | parts[1] == whole
    assert all(whole[number] is examples[number] for number in whole)
    assert len(whole) == 4


def test_what_is_drawn_of_a_page_does_not_depend_on_its_process(policy):
    pages = {number: make_example([number], [5, 6, 7, 8]) for number in range(6)}
    of_all, *of_two = (
        StartProbe(reader(policy), part, policy.prompts, write=policy.prompts.prompt).columns()["positive_log_prob"]
        for part in (pages, {i: pages[i] for i in (0, 2, 4)}, {i: pages[i] for i in (1, 3, 5)})
    )
    assert torch.allclose(of_all, torch.stack(of_two, dim=1).flatten())


def test_copy_stays_where_the_policy_was(policy):
    start = Start(policy.model, is_adapted=False)
    with torch.no_grad():
        policy.model.model.norm.weight.mul_(2)
    with start.network(policy.model) as network:
        assert network is not policy.model
        assert torch.equal(network.model.norm.weight * 2, policy.model.model.norm.weight)
