import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from genrec_rl.errors import RolloutError
from genrec_rl.models.prefix_tree import score_branches
from genrec_rl.models.trunk import PrefixBranches
from genrec_rl.rl import reading
from genrec_rl.rl.reading import Reader
from tests.fixtures import make_catalog, make_context, make_policy


def make_reader(policy, catalog, *, length_groups=None):
    return Reader(policy, catalog, Accelerator(cpu=True), length_groups=length_groups)


def prompts_of(policy, *histories):
    return policy.prompts.batch([policy.prompts.prompt(make_context(history)) for history in histories])


def every_item(policy, catalog, n_prompts=1):
    items = torch.from_numpy(policy.prompts.answer(np.arange(catalog.n_items)))
    return items.view(1, -1, 3).expand(n_prompts, -1, -1)


CHAINS = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [2, 1, 0, 0], [2, 1, 0, 1], [3, 0, 1, 1]])
"""The first and last are certain by their first code; behind [2] two codes are certain, and the last is not."""


@pytest.mark.parametrize("softmax", ["vocabulary", "children"])
@pytest.mark.parametrize("items", [range(7), [0], [0, 6], [4, 5, 1]])
@pytest.mark.parametrize("is_page", [False, True])
def test_both_ways_of_reading_say_the_same(softmax, items, is_page):
    catalog = make_catalog(CHAINS, (4, 2, 2, 2))
    policy = make_policy(catalog, softmax=softmax)
    reader, prompts = make_reader(policy, catalog), prompts_of(policy, [5, 2], [])
    branches = torch.from_numpy(policy.prompts.answer(np.array(items))).view(1, len(items), 4).repeat(2, 1, 1)
    if is_page:
        branches = branches.flatten(1)[:, None]
    attached = reader.on_trunk(policy.model, reader.trunk(policy.model, *prompts), branches)
    whole = reader.in_one_forward(policy.model, *prompts, branches)
    for one, other in zip(*(score_branches(of, branches) for of in (attached, whole)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_branch_that_is_no_item_is_refused_over_real_items(catalog):
    policy = make_policy(catalog, softmax="children")
    invented = policy.vocab.token_ids(torch.tensor([[[3, 3, 0]]]))
    with pytest.raises(RolloutError, match="set constrained_rollouts: true"):
        make_reader(policy, catalog).allowed(invented)


def test_over_real_items_all_probability_is_on_them_and_a_certain_code_has_one(catalog):
    policy = make_policy(catalog, softmax="children")
    reader, branches = make_reader(policy, catalog), every_item(policy, catalog)
    found = reader.on_trunk(policy.model, reader.trunk(policy.model, *prompts_of(policy, [5])), branches)
    log_probs = score_branches(found, branches).log_probs_BGC
    assert log_probs.sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-5)
    is_certain = log_probs[0, :, 2] == 0
    assert (~is_certain).nonzero().flatten().tolist() == [0, 1, 5, 6]  # [0, 0, .] and [1, 1, .] begin two items each


def test_what_is_certain_is_not_read(catalog, monkeypatch):
    policy = make_policy(catalog, softmax="children")
    reader, branches = make_reader(policy, catalog), every_item(policy, catalog)
    trunk, n_read = reader.trunk(policy.model, *prompts_of(policy, [5])), []
    plain = PrefixBranches.read
    monkeypatch.setattr(
        PrefixBranches, "read", lambda *a: n_read.append(a[0].prefixes.tokens_BQ.numel()) or plain(*a)
    )
    reader.on_trunk(policy.model, trunk, branches)
    assert n_read == [4 + 2]  # four first codes, and [0, 0] and [1, 1]


@pytest.mark.parametrize("way", ["trunk", "on_trunk", "in_one_forward"])
def test_networks_are_read_in_the_accelerators_precision(policy, catalog, monkeypatch, way):
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    reader = Reader(policy, catalog, accelerator, length_groups=1)
    prompts, branches = prompts_of(policy, [5]), every_item(policy, catalog)
    trunk, seen = reader.trunk(policy.model, *prompts), []
    policy.model.model.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    if way == "trunk":
        reader.trunk(policy.model, *prompts)
    elif way == "on_trunk":
        reader.on_trunk(policy.model, trunk, branches)
    else:
        reader.in_one_forward(policy.model, *prompts, branches)
    assert seen == [True]


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
