"""Requests without labels as further prompts: a reward model can judge what no log contains.

SFT has seen the answers to all training requests, so that on them its beams are better than they will ever be again.
What users asked afterwards shows the beams that will be served. Only their contexts are read, never what was taken.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from jaxtyping import Int

from genrec_rl.errors import ConfigError
from genrec_rl.types import Example


def is_held_out(example: Example, *, users: float) -> bool:
    """Whether a request's user is outside the share that gives unlabelled prompts: always the same users."""
    digest = hashlib.blake2b(example.context.user_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) >= users * 2**64


def without_label(example: Example) -> Example:
    """Return the request with nothing taken: no positives, and none of the page's items."""
    return replace(example, items=example.items[:0], actions=example.actions[:0], values=None)


@dataclass(frozen=True, slots=True, eq=False)
class WithUnlabelled(Sequence[Example]):
    """Labelled requests; behind them, ``repeats`` times, those of ``requests`` that ``chosen`` names, unlabelled."""

    labelled: Sequence[Example]
    requests: Sequence[Example]
    chosen: Int[np.ndarray, " n"]
    repeats: int

    def __len__(self) -> int:
        return len(self.labelled) + self.repeats * len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Return one request, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index] - len(self.labelled)
        if place < 0:
            return self.labelled[place]
        return without_label(self.requests[int(self.chosen[place % len(self.chosen)])])


def with_unlabelled(
    labelled: Sequence[Example], requests: Sequence[Example], *, share: float, users: float
) -> Sequence[Example]:
    """Return prompts of which about ``share`` are requests without their labels, of a share of all users.

    Args:
        labelled: training requests.
        requests: others, whose labels are taken off.
        share: of all prompts: requests are repeated, or some drawn from them, as comes nearest to it. 0 leaves them
            out. They count 0 in the mean of the NLL of positives, so that ``nll_coef`` weighs labelled ones by less.
        users: share of users whose requests serve (``is_held_out``); the others tell what was learnt from what
            was memorised.

    Raises:
        ConfigError: for shares outside [0, 1), or no user left.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"unlabelled_share {share} must be at least 0 and below 1; the rest are training requests")
    if not 0 <= users <= 1:
        raise ConfigError(f"unlabelled_users {users} must be at least 0 and at most 1")
    if share == 0:
        return labelled
    chosen = np.array([i for i, example in enumerate(requests) if not is_held_out(example, users=users)])
    if not len(chosen):
        raise ConfigError(f"unlabelled_users {users} of {len(requests)} requests leaves none; raise it")
    wanted = share / (1 - share) * len(labelled)
    if wanted < len(chosen):
        chosen = np.sort(np.random.default_rng(0).permutation(chosen)[: max(1, round(wanted))])
    return WithUnlabelled(labelled, requests, chosen, max(1, round(wanted / len(chosen))))
