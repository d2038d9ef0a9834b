"""The user's side of a score: what a frozen SIM needs of one user, whatever the candidates, and a cache of it.

P   users        N   behaviours        Q   groups: behaviours with one item (soft search) or search key (hard)
D   item dimension        J   attention heads x short behaviours        H   width of the head's first layer
"""

from collections import OrderedDict
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from reward_models.sim.model import Behaviours


@dataclass(frozen=True, slots=True, eq=False)
class UserSide:
    """One user, encoded: nothing in it depends on a candidate, and a score depends on nothing else of the user.

    Attributes:
        group_keys: what a candidate is compared with: each item's vector (soft search, ``Q D``), or the search keys
            (hard search, ``Q``, ascending).
        group_sizes_Q: behaviours in each group.
        behaviours_N: row and gap bucket of each behaviour in one number, group after group, oldest first in a group.
        short_keys_DJ: the latest behaviours' keys; a candidate's vector times them gives attention scores.
        short_values_JH: the latest behaviours as the head's first layer sees them.
        mean_D: mean behaviour.
        first_layer_H: the first layer's bias and its part of the user's description.
    """

    group_keys: Tensor
    group_sizes_Q: Int[Tensor, " Q"]
    behaviours_N: Int[Tensor, " N"]
    short_keys_DJ: Float[Tensor, "D J"]
    short_values_JH: Float[Tensor, "J H"]
    mean_D: Float[Tensor, " D"]
    first_layer_H: Float[Tensor, " H"]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    def alone(self) -> "UserSide":
        """Copy what are views of a whole batch's tensors, so that to keep this user keeps no other."""
        return UserSide(*(_without_neighbours(getattr(self, field.name)) for field in fields(self)))


def _without_neighbours(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


class UserSideCache:
    """Keeps the users' sides that were used last, up to a limit of bytes.

    Its keys are the behaviours themselves as the network reads them (rows and gap buckets, cut to ``max_history``),
    not a digest: two users share an entry only where no score can differ.

    Args:
        limit: bytes to hold, keys included; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes = limit, 0
        self._sides: OrderedDict[bytes, UserSide] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sides)

    def get(self, key: bytes) -> UserSide | None:
        """Return what was kept, and note that it was used."""
        if key in self._sides:
            self._sides.move_to_end(key)
        return self._sides.get(key)

    def keep(self, key: bytes, side: UserSide) -> None:
        """Keep a side at the cost of those used longest ago; one larger than the limit is not kept."""
        size = len(key) + side.nbytes
        if size > self.limit or key in self._sides:
            return
        self._sides[key] = side.alone()
        self.nbytes += size
        while self.nbytes > self.limit:
            old_key, old = self._sides.popitem(last=False)
            self.nbytes -= len(old_key) + old.nbytes


def cache_keys(behaviours: Behaviours) -> list[bytes]:
    """Return each user's behaviours as bytes: equal where, and only where, the network reads the same."""
    ends = behaviours.lengths_P.cumsum().tolist()
    rows_N, buckets_N = behaviours.rows_N, behaviours.gap_buckets_N
    return [
        rows_N[start:end].tobytes() + buckets_N[start:end].tobytes()
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """P users' behaviours sorted by user, then key, then age.

    Attributes:
        order_N: place of each sorted behaviour before the sort.
        keys_Q: each group's key, ascending within a user.
        sizes_Q: behaviours in each group.
        n_groups_P: groups of each user.
    """

    order_N: Int[np.ndarray, " N"]
    keys_Q: Int[np.ndarray, " Q"]
    sizes_Q: Int[np.ndarray, " Q"]
    n_groups_P: Int[np.ndarray, " P"]

    @classmethod
    def by(cls, keys_N: Int[np.ndarray, " N"], lengths_P: Int[np.ndarray, " P"], *, n_keys: int) -> "Groups":
        """Group each user's behaviours, oldest first, by a key in [0, n_keys)."""
        n = max(1, len(keys_N))
        users_N = np.repeat(np.arange(len(lengths_P)), lengths_P)
        # one sort of plain numbers: a stable argsort takes ten times as long
        packed_N = np.sort((users_N * n_keys + keys_N) * n + np.arange(len(keys_N)))
        sorted_N, order_N = np.divmod(packed_N, n)
        firsts_Q = np.flatnonzero(np.diff(sorted_N, prepend=-1))
        users_Q, keys_Q = np.divmod(sorted_N[firsts_Q], n_keys)
        sizes_Q = np.diff(firsts_Q, append=len(sorted_N))
        return cls(order_N, keys_Q, sizes_Q, np.bincount(users_Q, minlength=len(lengths_P)))
