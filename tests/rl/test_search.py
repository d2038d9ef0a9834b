import pytest
import torch
from accelerate import Accelerator

from genrec_rl.errors import RolloutError
from genrec_rl.models.trunk import read_trunk
from genrec_rl.rl.config import GRPOSRConfig
from genrec_rl.rl.reading import Reader
from genrec_rl.rl.search import RolloutSearch
from genrec_rl.rl.start import Start
from tests.fixtures import make_example, make_policy

G = 4
PAGES = [make_example([i, i + 1], [i + 2]) for i in range(3)]


@pytest.fixture
def make_search(policy, catalog, tmp_path):
    def make(examples=PAGES, *, start=None, **choices):
        args = GRPOSRConfig(
            output_dir=str(tmp_path), num_generations=G, per_device_train_batch_size=G, use_cpu=True, **choices
        )
        accelerator = Accelerator(cpu=True)
        reader = Reader(policy, catalog, accelerator, length_groups=1)
        return RolloutSearch(policy, catalog, reader, accelerator, args=args, start=start, examples=examples)

    return make


def tokens(search, policy, *, seeds=(0,), trunk=None):
    contexts = [page.context for page in PAGES]
    ids, is_prompt = policy.prompts.batch([policy.prompts.prompt(context) for context in contexts])
    found = search(policy.model, ids, is_prompt, trunk=trunk, contexts=contexts, seeds=seeds)
    return found.tokens_BWL


def test_each_prompt_has_a_group(make_search, policy):
    assert tokens(make_search(), policy).shape == (3, G, 3)


def test_a_step_draws_again_what_it_drew_and_another_draws_others(make_search, policy):
    search = make_search(rollouts="gumbel")
    first, again, other = (tokens(search, policy, seeds=seeds) for seeds in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_was_read_already_is_not_read_again(make_search, policy, monkeypatch):
    contexts = [page.context for page in PAGES]
    with torch.no_grad():
        trunk = read_trunk(policy.model, *policy.prompts.batch([policy.prompts.prompt(c) for c in contexts]))
    search = make_search()
    expected = tokens(search, policy)
    monkeypatch.setattr(search._reader, "trunk", lambda *_: pytest.fail("read twice"))
    assert torch.equal(tokens(search, policy, trunk=trunk), expected)


def test_the_start_is_searched_where_rollouts_are_its_own(make_search, policy, catalog):
    start = Start(policy.model, is_adapted=False)
    of_start = make_search(start=start, rollouts_from="start", policy_term="listwise_kl")
    before = tokens(of_start, policy)
    moved = make_policy(catalog, seed=7)
    policy.model.load_state_dict(moved.model.state_dict())
    assert torch.equal(tokens(of_start, policy), before)
    assert not torch.equal(tokens(make_search(), policy), before)


def test_a_user_who_has_taken_nearly_everything_is_refused_before_the_first_step(make_search):
    full = [*PAGES, make_example(list(range(9)), [10])]
    with pytest.raises(RolloutError, match="a request of user 'u' 3 SIDs of the catalogue, and 4 are asked for"):
        make_search(full, exclude_seen=True, constrained_rollouts=True)
    make_search(full, exclude_seen=True)
