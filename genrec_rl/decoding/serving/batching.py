"""Requests that arrive within a few milliseconds are worked on together, one batch at a time, in one thread.

A request waits in line, is taken along by a batch, and is answered; or it is refused: at once where the line is
full, and after its deadline where no batch has taken it along by then. What was taken along is always answered.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from genrec_rl.errors import ConfigError

T = TypeVar("T")
A = TypeVar("A")
Reason = Literal["queue_full", "deadline", "closing"]
_WORDS: dict[Reason, str] = {
    "queue_full": "too many requests are waiting",
    "deadline": "the request waited longer than its deadline",
    "closing": "the service is shutting down",
}


class Overloaded(Exception):  # noqa: N818  (a state of the service, no fault of its code)
    """A request is refused; it may be sent again later.

    Args:
        reason: why.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(_WORDS[reason])
        self.reason = reason


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How long a line may be, and how it is taken along.

    Attributes:
        batch_size: requests worked on together, at most; 1 is one by one.
        batch_wait_ms: how long a request waits for others to come along with, where no batch is being worked on.
        max_queue: requests that may wait.
        deadline_ms: how long one may wait before a batch takes it along.
        retry_after_s: when a refused client may ask again.

    Raises:
        ConfigError: for a number outside its range.
    """

    batch_size: int = 16
    batch_wait_ms: float = 3.0
    max_queue: int = 64
    deadline_ms: float = 1000.0
    retry_after_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, at least 1 is needed")
        if not 0 < self.retry_after_s < math.inf:
            raise ConfigError(f"retry_after_s is {self.retry_after_s}; it must be above 0 seconds")
        if not 0 <= self.batch_wait_ms < self.deadline_ms:
            raise ConfigError(
                f"batch_wait_ms {self.batch_wait_ms} must be at least 0 and below deadline_ms {self.deadline_ms}"
            )


@dataclass(slots=True, eq=False)
class _Ticket(Generic[T, A]):
    item: T
    arrived: float
    answer: "asyncio.Future[A]"


class Batcher(Generic[T, A]):
    """A line of requests and the one thread that works on them.

    Args:
        work: answers a batch in its order; its second argument is the load: requests in the service, the batch among
            them, and those refused since the batch before, who would be in it had there been room. What it raises
            is raised to each request of the batch, and the next batch is worked on.
        limits: of the line.
    """

    def __init__(self, work: Callable[[list[T], int], Sequence[A]], limits: QueueLimits) -> None:
        self._work = work
        self.limits = limits
        self._waiting: deque[_Ticket[T, A]] = deque()
        self._turned_away = 0
        self._changed = asyncio.Event()
        self._is_closing = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search")
        self._loop: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_running(self) -> bool:
        """Whether requests are being worked on."""
        return self._loop is not None and not self._loop.done()

    def start(self) -> None:
        """Begin; needs a running event loop."""
        self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Refuse who waits and who comes, finish the batch that is being worked on, and end the thread."""
        self._is_closing = True
        while self._waiting:
            self._refuse(self._waiting[0], "closing")
        self._changed.set()
        if self._loop is not None:
            await self._loop
        self._pool.shutdown()

    async def submit(self, item: T) -> A:
        """Wait in line, and return the answer.

        Raises:
            Overloaded: when the line is full, the deadline has passed, or the service is closing.
        """
        if self._is_closing:
            raise Overloaded("closing")
        if len(self._waiting) >= self.limits.max_queue:
            self._turned_away += 1
            raise Overloaded("queue_full")
        loop = asyncio.get_running_loop()
        ticket: _Ticket[T, A] = _Ticket(item, loop.time(), loop.create_future())
        self._waiting.append(ticket)
        self._changed.set()
        expiry = loop.call_later(self.limits.deadline_ms / 1000, self._refuse, ticket, "deadline")
        try:
            return await ticket.answer
        finally:
            expiry.cancel()
            if ticket in self._waiting:  # whoever asked has gone
                self._waiting.remove(ticket)

    def _refuse(self, ticket: _Ticket[T, A], reason: Reason) -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._turned_away += 1
            if not ticket.answer.done():
                ticket.answer.set_exception(Overloaded(reason))

    async def _run(self) -> None:
        while not self._is_closing:
            if not self._waiting:
                self._changed.clear()
                await self._changed.wait()
                continue
            await self._wait_for_company()
            load = len(self._waiting) + self._turned_away
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.limits.batch_size))]
            if batch:
                self._turned_away = 0
                await self._answer(batch, load)

    async def _wait_for_company(self) -> None:
        """Return when a batch is full, or its first request has waited for others long enough."""
        loop = asyncio.get_running_loop()
        until = self._waiting[0].arrived + self.limits.batch_wait_ms / 1000
        while len(self._waiting) < self.limits.batch_size and loop.time() < until and not self._is_closing:
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._changed.wait()

    async def _answer(self, batch: list[_Ticket[T, A]], load: int) -> None:
        loop = asyncio.get_running_loop()
        worked = loop.run_in_executor(self._pool, self._work, [ticket.item for ticket in batch], load)
        await asyncio.wait([worked])
        error = worked.exception()
        answers = [None] * len(batch) if error is not None else worked.result()
        for ticket, answer in zip(batch, answers, strict=True):
            if ticket.answer.done():  # whoever asked has gone
                continue
            if error is not None:
                ticket.answer.set_exception(error)
            else:
                ticket.answer.set_result(answer)  # type: ignore[arg-type]
