"""How many requests a server gets at a time. The number adapts to what the server can serve, by AIMD.

AIMD is additive increase, multiplicative decrease: Chiu and Jain, 1989, Computer Networks and ISDN Systems 17.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Self

logger = logging.getLogger(__name__)

TIMEOUT = 300.0  # seconds in which a request must be answered
DEADLINES_SET_EVERY = 1.0  # seconds
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds, if the server names no time
LOGGED_EVERY = 10.0  # seconds


class Fault(ConnectionError):
    """Why a server gets no more requests."""

    def copy(self) -> Self:
        """A copy to raise: an exception that has been raised keeps all objects in its traceback alive."""
        return type(self)(str(self))


class Spent(Fault):
    """The maximum number of requests that the command allows has been made."""


@dataclass(eq=False)  # compared and hashed by identity
class ActiveRequest:
    """A request that is being served."""

    began: float  # when it was sent
    ahead: int  # requests that were being served when it was sent
    finished_before: int  # requests that had finished when it was sent
    timeout: asyncio.Timeout


class Load:
    """The number of requests that a server gets at a time, and when the next one may start.

    If the server is too busy for a request, or answers it too late, the number is halved, once for all requests that
    were active at that time. Each answer raises the number by a part of 1. Waiting times apply to all requests.
    `limit`, waiting times and rate persist from one connection to the next.

    server: its name, for messages. per_minute: maximum requests per minute.
    maximum: upper bound of the number of requests at a time.
    """

    def __init__(self, server: str, per_minute: float | None = None):
        self.server, self.per_minute, self.maximum, self.limit = server, per_minute, 1, float("inf")
        self.answered_at = self._halved_at = self._not_before = self._next = self._logged_at = float("-inf")
        self._last_minute: deque[float] = deque()  # when the answers of the last minute came
        self.fault: Fault | None = None
        self._level = 0  # of waiting: up by one with each failure, down by one with each answer

    def open(self) -> None:
        """Start on the running event loop; must be called first."""
        self._active: set[ActiveRequest] = set()
        self._queue, self._one_finished = asyncio.Lock(), asyncio.Event()
        self._finished = 0  # number of requests that have finished
        self._finished_at_deadlines = 0  # the same, when deadlines were last extended
        self._deadlines_set_at = float("-inf")
        self._opened_at = asyncio.get_running_loop().time()

    @property
    def is_silent(self) -> bool:
        """Whether the server has answered no request for so long that waiting is useless."""
        return asyncio.get_running_loop().time() - max(self.answered_at, self._opened_at) > 2 * TIMEOUT

    @property
    def allowed(self) -> int:
        """The number of requests that may be active now."""
        return max(1, int(min(self.limit, self.maximum)))

    @asynccontextmanager
    async def request(self, urgent: bool = False) -> AsyncIterator[ActiveRequest]:
        """Wait until a request may be sent, in the order of calls; within the block, the request is active.

        A busy server serves earlier requests first. As long as some of those that were active when this one was sent
        are unfinished, each answer extends this one's deadline.
        urgent: do not wait for other requests to finish.
        Raises TimeoutError if the request is not answered in time, Fault if the server gets no more requests.
        """
        now = asyncio.get_running_loop().time
        async with nullcontext() if urgent else self._queue:
            while True:
                if self.fault:
                    raise self.fault.copy()
                if (wait := max(self._not_before, self._next) - now()) > 0:
                    await asyncio.sleep(wait)
                elif len(self._active) >= self.allowed and not urgent:
                    self._one_finished.clear()
                    await self._one_finished.wait()
                else:
                    break
            if self.per_minute:
                self._next = now() + 60 / self.per_minute
            request = ActiveRequest(
                began=now(),
                ahead=len(self._active),
                finished_before=self._finished,
                timeout=asyncio.timeout(TIMEOUT),
            )
            self._active.add(request)
        try:
            async with request.timeout:
                yield request
        finally:
            self._active.remove(request)
            self._one_finished.set()
        self._finished += 1
        if now() >= self._deadlines_set_at + DEADLINES_SET_EVERY:
            self._extend_deadlines(now())

    def _extend_deadlines(self, now: float) -> None:
        """Give requests that still wait for earlier ones the full time again."""
        for other in self._active:
            finished_since = max(0, self._finished_at_deadlines - other.finished_before)
            if other.ahead > finished_since and not other.timeout.expired():
                other.timeout.reschedule(now + TIMEOUT)
        self._deadlines_set_at, self._finished_at_deadlines = now, self._finished

    def record_answer(self) -> None:
        """Record that a request was answered."""
        self.answered_at, self._level = asyncio.get_running_loop().time(), max(0, self._level - 1)
        self._last_minute.append(self.answered_at)
        while self._last_minute[0] < self.answered_at - 60:
            self._last_minute.popleft()
        if self.limit < self.maximum:
            self.limit += 1 / self.limit

    def record_overload(
        self, request: ActiveRequest, why: str, *, retry_after: float = 0.0, is_rate_limited: bool = False
    ) -> None:
        """Record that the server was too busy for a request, or answered it too late.

        retry_after: seconds for which the server wants no requests, 0 if it names none.
        is_rate_limited: whether the server limits requests per time, usually per minute. Then the wait ends at the
            latest when the oldest answer of the last minute is a minute old.
        """
        now = asyncio.get_running_loop().time()
        if request.began > self._halved_at:
            self.limit, self._halved_at = max(1.0, self.allowed / 2), now
            longest = self._last_minute[0] + 60 - now if is_rate_limited and self._last_minute else LONGEST_WAIT
            self.pause(why, self._level, retry_after=retry_after, longest=longest)
            self._level += 1
        elif retry_after:
            self.pause(why, 0, retry_after=retry_after)

    def pause(self, why: str, level: int, *, retry_after: float = 0.0, longest: float = LONGEST_WAIT) -> None:
        """Send no requests for `retry_after` seconds and a little more.

        If that is 0, the time grows with the level, up to `longest` seconds.
        """
        now = asyncio.get_running_loop().time()
        if retry_after:
            wait = retry_after + wait_of(0)
        else:
            wait = min(wait_of(level), longest if longest > 0 else LONGEST_WAIT)
        self._not_before = max(self._not_before, now + wait)
        self.log_wait(why, self._not_before - now)

    def log_wait(self, why: str, wait: float) -> None:
        """Log why requests wait, if they wait a second or more, and not too often."""
        now = asyncio.get_running_loop().time()
        if wait >= 1 and now >= self._logged_at + LOGGED_EVERY:
            self._logged_at = now
            logger.warning(
                "%s: %s; asked again in %.0f s, with at most %d requests at a time",
                self.server,
                why,
                wait,
                self.allowed,
            )


def wait_of(level: int) -> float:
    """Seconds to wait if the server names no time: twice as many with each level; 8 levels take over a minute."""
    return random.uniform(0.75, 1) * min(LONGEST_WAIT, FIRST_WAIT * 2**level)
