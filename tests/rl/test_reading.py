import numpy as np
import pytest
import torch
from accelerate import Accelerator

from genrec_rl.models.prefix_tree import score_branches
from genrec_rl.rl import reading
from genrec_rl.rl.reading import Reader
from tests.fixtures import make_context, make_policy


def make_reader(policy, catalog, *, length_groups=None):
    return Reader(policy, catalog, Accelerator(cpu=True), length_groups=length_groups)


def prompts_of(policy, *histories):
    return policy.prompts.batch([policy.prompts.prompt(make_context(history)) for history in histories])


def every_item(policy, catalog, n_prompts=1):
    items = torch.from_numpy(policy.prompts.answer(np.arange(catalog.n_items)))
    return items.view(1, -1, 3).expand(n_prompts, -1, -1)


@pytest.mark.parametrize("softmax", ["vocabulary", "children"])
def test_both_ways_of_reading_say_the_same(catalog, softmax):
    policy = make_policy(catalog, softmax=softmax)
    reader, prompts = make_reader(policy, catalog), prompts_of(policy, [5, 2], [])
    branches = every_item(policy, catalog, 2)
    attached = reader.on_trunk(policy.model, reader.trunk(policy.model, *prompts), branches)
    whole = reader.in_one_forward(policy.model, *prompts, branches)
    for one, other in zip(*(score_branches(of, branches) for of in (attached, whole)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_over_real_items_all_probability_is_on_them_and_a_certain_code_has_one(catalog):
    policy = make_policy(catalog, softmax="children")
    reader, branches = make_reader(policy, catalog), every_item(policy, catalog)
    found = reader.on_trunk(policy.model, reader.trunk(policy.model, *prompts_of(policy, [5])), branches)
    log_probs = score_branches(found, branches).log_probs_BGC
    assert log_probs.sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-5)
    is_certain = log_probs[0, :, 2] == 0
    assert (~is_certain).nonzero().flatten().tolist() == [0, 1, 5, 6]  # [0, 0, .] and [1, 1, .] begin two items each


def test_over_the_vocabulary_anything_may_stand_anywhere(policy, catalog):
    assert make_reader(policy, catalog).allowed(every_item(policy, catalog)) is None


def test_allowed_are_the_codes_that_go_on_to_an_item(catalog):
    policy = make_policy(catalog, softmax="children")
    reader = make_reader(policy, catalog)
    first = torch.from_numpy(policy.prompts.answer(np.array([0]))).view(1, 1, 3)  # [0, 0, 0]
    starts = policy.vocab.level_starts
    allowed = [place.nonzero().flatten().tolist() for place in reader.allowed(first)[0, 0]]
    expected = [[0, 1, 2, 3], [0, 1, 2], [0, 1]]
    assert allowed == [[starts[level] + code for code in codes] for level, codes in enumerate(expected)]


@pytest.mark.parametrize(
    ("wanted", "n_prompts", "groups"),
    [(None, 7, 1), (None, 16, 2), (None, 100, 8), (3, 100, 3), (3, 17, 2), (1, 64, 1)],
)
def test_a_group_of_like_length_has_eight_prompts_at_least(policy, catalog, monkeypatch, wanted, n_prompts, groups):
    asked = []
    monkeypatch.setattr(reading, "read_trunk", lambda *_, length_groups: asked.append(length_groups))
    ids, is_prompt = prompts_of(policy, *([5] for _ in range(n_prompts)))
    make_reader(policy, catalog, length_groups=wanted).trunk(policy.model, ids, is_prompt)
    assert asked == [groups]
