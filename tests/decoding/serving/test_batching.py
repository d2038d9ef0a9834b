import asyncio
from threading import Event

import pytest

from genrec_rl.decoding.serving.batching import Batcher, Overloaded, QueueLimits
from genrec_rl.errors import ConfigError


class Work:
    """Answers with the tenfold; keeps each batch and load; waits for ``may_go`` where it is told to."""

    def __init__(self, *, waits=False):
        self.batches, self.loads = [], []
        self.begun, self.may_go = Event(), Event()
        if not waits:
            self.may_go.set()

    def __call__(self, items, load):
        self.batches.append(items)
        self.loads.append(load)
        self.begun.set()
        assert self.may_go.wait(10)
        if "poison" in items:
            raise ValueError("poisoned")
        return [item * 10 for item in items]

    async def until_begun(self):
        while not self.begun.is_set():
            await asyncio.sleep(0.001)


def run(scenario, work, **limits):
    async def main():
        batcher = Batcher(work, QueueLimits(**{"batch_wait_ms": 20.0, "deadline_ms": 10_000.0} | limits))
        batcher.start()
        try:
            return await scenario(batcher)
        finally:
            work.may_go.set()
            await batcher.close()

    return asyncio.run(main())


async def outcome(task):
    try:
        return await task
    except Overloaded as refusal:
        return refusal.reason


def test_requests_that_arrive_together_are_one_batch_answered_in_order():
    work = Work()

    async def scenario(batcher):
        return await asyncio.gather(*(batcher.submit(i) for i in (1, 2, 3)))

    assert run(scenario, work) == [10, 20, 30]
    assert work.batches == [[1, 2, 3]]


def test_who_comes_soon_after_is_waited_for():
    work = Work()

    async def scenario(batcher):
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.01)
        return await batcher.submit(2), await first

    assert run(scenario, work, batch_size=2, batch_wait_ms=5000.0) == (20, 10)
    assert work.batches == [[1, 2]]  # and gone as soon as it is full


def test_batches_are_cut_at_their_size_and_see_the_whole_load():
    work = Work()

    async def scenario(batcher):
        return await asyncio.gather(*(batcher.submit(i) for i in range(5)))

    assert run(scenario, work, batch_size=2) == [0, 10, 20, 30, 40]
    assert work.batches == [[0, 1], [2, 3], [4]]
    assert work.loads == [5, 3, 1]


def test_a_full_line_refuses_at_once():
    work = Work(waits=True)

    async def scenario(batcher):
        first = asyncio.create_task(outcome(batcher.submit(1)))
        await work.until_begun()
        others = [asyncio.create_task(outcome(batcher.submit(i))) for i in (2, 3, 4)]
        await asyncio.sleep(0)
        refused = await others[2]
        work.may_go.set()
        return refused, await asyncio.gather(first, *others[:2])

    assert run(scenario, work, batch_wait_ms=0.0, max_queue=2) == ("queue_full", [10, 20, 30])
    assert work.loads == [1, 3]  # who was refused counts as load


def test_who_waits_past_the_deadline_is_refused_while_the_search_goes_on():
    work = Work(waits=True)

    async def scenario(batcher):
        first = asyncio.create_task(outcome(batcher.submit(1)))
        await work.until_begun()
        late = await outcome(batcher.submit(2))  # answered although the first batch is not
        still_waiting = len(batcher)
        work.may_go.set()
        return late, still_waiting, await first, await batcher.submit(3), await batcher.submit(4)

    assert run(scenario, work, batch_wait_ms=0.0, deadline_ms=20.0) == ("deadline", 0, 10, 30, 40)
    assert work.batches == [[1], [3], [4]]
    assert work.loads == [1, 2, 1]  # who was refused counts as load, once


def test_an_error_reaches_its_batch_alone_and_the_next_is_answered():
    work = Work()

    async def scenario(batcher):
        with pytest.raises(ValueError, match="poisoned"):
            await batcher.submit("poison")
        return await batcher.submit(7)

    assert run(scenario, work, batch_wait_ms=0.0) == 70


def test_closing_finishes_the_search_and_refuses_who_waits_and_who_comes():
    work = Work(waits=True)

    async def scenario(batcher):
        first = asyncio.create_task(outcome(batcher.submit(1)))
        await work.until_begun()
        second = asyncio.create_task(outcome(batcher.submit(2)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        third = await outcome(batcher.submit(3))
        work.may_go.set()
        await closing
        return await first, await second, third, batcher.is_running

    assert run(scenario, work, batch_wait_ms=0.0) == (10, "closing", "closing", False)


def test_who_gives_up_waiting_is_not_searched_for():
    work = Work(waits=True)

    async def scenario(batcher):
        first = asyncio.create_task(batcher.submit(1))
        await work.until_begun()
        gone = asyncio.create_task(batcher.submit(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        work.may_go.set()
        return await first, await batcher.submit(3)

    assert run(scenario, work, batch_wait_ms=0.0) == (10, 30)
    assert work.batches == [[1], [3]]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_queue": 0}, "max_queue is 0"),
        ({"batch_wait_ms": -1}, "batch_wait_ms -1"),
        ({"batch_wait_ms": 50, "deadline_ms": 50}, "below deadline_ms 50"),
        ({"deadline_ms": float("nan")}, "deadline_ms nan"),
        ({"retry_after_s": float("nan")}, "retry_after_s is nan"),
    ],
)
def test_limits_out_of_range_are_refused(limits, message):
    with pytest.raises(ConfigError, match=message):
        QueueLimits(**limits)
