import numpy as np
import torch

from genrec_rl.types import Context
from reward_models.sim.model import Behaviours
from reward_models.sim.user_side import Groups, UserSide, UserSideCache, cache_keys

HOUR = 3_600


def side(n_floats):
    """A side of 4 bytes a float."""
    return UserSide(torch.zeros(n_floats), *(torch.zeros(0) for _ in range(6)))


def keys(*histories, time=100 * HOUR, max_history=3):
    """The cache keys of users with (row, hours ago) behaviours."""
    contexts = []
    for history in histories:
        rows, ages = np.array(history, dtype=np.int64).reshape(-1, 2).T
        contexts.append(Context("u", time, rows, time - HOUR * ages, np.zeros(len(rows))))
    return cache_keys(Behaviours.of(contexts, max_history=max_history))


def test_groups_are_sorted_by_user_then_key_then_age():
    groups = Groups.by(np.array([3, 1, 3, 1, 1]), np.array([3, 2]), n_keys=4)
    assert groups.order_N.tolist() == [1, 0, 2, 3, 4]
    assert groups.keys_Q.tolist() == [1, 3, 1]
    assert groups.sizes_Q.tolist() == [1, 2, 2]
    assert groups.n_groups_P.tolist() == [2, 1]


def test_users_without_behaviours_have_no_groups():
    groups = Groups.by(np.array([5]), np.array([0, 1, 0]), n_keys=6)
    assert groups.n_groups_P.tolist() == [0, 1, 0]
    nobody = Groups.by(np.array([], dtype=np.int64), np.array([0]), n_keys=6)
    assert nobody.n_groups_P.tolist() == [0]


def test_users_that_the_network_reads_alike_share_a_key():
    # 10 and 12 hours fall into one bucket; the oldest of four behaviours is cut
    first, second = keys([(1, 10), (2, 5), (3, 1)], [(7, 20), (1, 12), (2, 5), (3, 1)])
    assert first == second


def test_users_that_could_score_differently_have_different_keys():
    users = keys(
        [],
        [(1, 10)],
        [(1, 10), (2, 5)],
        [(2, 10), (1, 5)],
        [(1, 20), (2, 5)],
        [(1, 10), (1, 10), (2, 5)],
        [(257, 10)],
    )
    assert len(set(users)) == 7


def test_the_cache_gives_back_what_it_keeps():
    cache, kept = UserSideCache(100), side(5)
    cache.keep(b"a", kept)
    assert cache.get(b"a").group_keys.tolist() == [0.0] * 5
    assert cache.get(b"b") is None


def test_the_cache_drops_what_was_used_longest_ago():
    cache = UserSideCache(42)  # two sides of 20 bytes and a byte of key each
    cache.keep(b"a", side(5))
    cache.keep(b"b", side(5))
    cache.get(b"a")
    cache.keep(b"c", side(5))
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert cache.nbytes == 42


def test_a_side_larger_than_the_limit_drops_nothing():
    cache = UserSideCache(42)
    cache.keep(b"a", side(5))
    cache.keep(b"b", side(11))
    assert (len(cache), cache.nbytes) == (1, 21)


def test_a_side_kept_twice_counts_once():
    cache = UserSideCache(42)
    for _ in range(3):
        cache.keep(b"a", side(5))
    assert (len(cache), cache.nbytes) == (1, 21)


def test_a_kept_side_holds_no_memory_of_its_batch():
    batch = torch.arange(1_000.0)
    cache = UserSideCache(100)
    cache.keep(b"a", UserSide(batch[10:15], *(batch[:0] for _ in range(6))))
    kept = cache.get(b"a").group_keys
    assert kept.tolist() == [10, 11, 12, 13, 14]
    assert kept.untyped_storage().nbytes() == 20
