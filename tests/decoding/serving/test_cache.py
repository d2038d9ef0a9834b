import pytest

from genrec_rl.decoding.serving.cache import AnswerCache
from genrec_rl.errors import ConfigError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_answer_lives_as_long_as_it_is_said_to():
    clock = Clock()
    cache = AnswerCache(size=2, ttl_s=60, clock=clock)
    cache.keep("a", 1)
    clock.now = 59.9
    assert cache.get("a") == 1
    clock.now = 60.0
    assert cache.get("a") is None
    assert len(cache) == 0


def test_the_least_recently_used_goes_first():
    cache = AnswerCache(size=2, ttl_s=60, clock=Clock())
    cache.keep("a", 1)
    cache.keep("b", 2)
    cache.get("a")
    cache.keep("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]


@pytest.mark.parametrize(("size", "ttl_s"), [(0, 60), (2, 0)])
def test_without_room_or_time_nothing_is_kept(size, ttl_s):
    cache = AnswerCache(size=size, ttl_s=ttl_s, clock=Clock())
    cache.keep("a", 1)
    assert cache.get("a") is None


@pytest.mark.parametrize(
    ("size", "ttl_s", "message"),
    [(-1, 60, "cache_size is -1"), (1, -1, "cache_ttl_s is -1"), (1, float("nan"), "cache_ttl_s is nan")],
)
def test_negative_room_or_time_is_refused(size, ttl_s, message):
    with pytest.raises(ConfigError, match=message):
        AnswerCache(size=size, ttl_s=ttl_s)
