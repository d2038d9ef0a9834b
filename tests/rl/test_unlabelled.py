"""Unlabelled prompts: whose they are, how many, and that nothing of what was taken is left in them."""

import numpy as np
import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.rl.unlabelled import is_held_out, with_unlabelled, without_label
from genrec_rl.types import Action, Context, Example

LABELLED = [f"train{i}" for i in range(30)]
OTHERS = [f"user{i}" for i in range(1000)]


def request(user: str) -> Example:
    context = Context(user, 100, np.array([3, 4]), np.array([10, 20]), np.array([0, 1]))
    return Example(f"of {user}", context, np.array([5, 6]), np.array([Action.CLICK, Action.EXPOSE]), np.ones(2))


def requests(users: list[str]) -> list[Example]:
    return [request(user) for user in users]


def test_label_is_gone_and_context_stays() -> None:
    given = request("a")
    bare = without_label(given)
    assert len(bare.items) == len(bare.positives) == len(bare.positive_values) == 0
    assert bare.context is given.context


def test_share_zero_gives_the_training_requests_themselves() -> None:
    labelled = requests(LABELLED)
    assert with_unlabelled(labelled, requests(OTHERS), share=0.0, users=0.5) is labelled


def test_unlabelled_prompts_are_repeated_up_to_their_share() -> None:
    prompts = with_unlabelled(requests(LABELLED), requests(["a", "b"]), share=0.4, users=1.0)
    assert len(prompts) == 30 + 10 * 2  # 20 of 50 are 0.4
    assert [len(prompts[i].positives) for i in (0, 29, 30, 49)] == [1, 1, 0, 0]
    assert [prompts[i].context.user_id for i in (30, 31, 32, -1)] == ["a", "b", "a", "b"]


def test_of_many_requests_as_many_are_drawn_as_the_share_wants() -> None:
    prompts = with_unlabelled(requests(LABELLED), requests(OTHERS), share=0.25, users=1.0)
    assert len(prompts) == 30 + 10
    assert len({prompts[i].context.user_id for i in range(30, 40)}) == 10


def test_slice_is_a_list_of_the_same_requests() -> None:
    prompts = with_unlabelled(requests(LABELLED), requests(["a"]), share=0.5, users=1.0)
    assert [e.request_id for e in prompts[29:31]] == ["of train29", "of a"]
    with pytest.raises(IndexError):
        prompts[len(prompts)]


def test_users_that_give_none_are_held_out_and_always_the_same() -> None:
    held_out = {user for user in OTHERS if is_held_out(request(user), users=0.3)}
    assert 0.65 < len(held_out) / 1000 < 0.75
    assert {u for u in OTHERS if is_held_out(request(u), users=0.5)} < held_out  # a larger share adds users
    prompts = with_unlabelled(requests(LABELLED), requests(OTHERS), share=0.99, users=0.3)
    asked = {prompts[i].context.user_id for i in range(30, len(prompts))}
    assert asked == {*OTHERS} - held_out


@pytest.mark.parametrize(
    ("share", "users", "message"),
    [
        (1.0, 0.5, "unlabelled_share 1.0 must be at least 0 and below 1"),
        (-0.1, 0.5, "unlabelled_share -0.1 must"),
        (0.5, 1.5, "unlabelled_users 1.5 must be at least 0 and at most 1"),
        (0.5, 0.0, "unlabelled_users 0.0 of 1000 requests leaves none; raise it"),
    ],
)
def test_impossible_shares_are_refused(share: float, users: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_unlabelled(requests(LABELLED), requests(OTHERS), share=share, users=users)
