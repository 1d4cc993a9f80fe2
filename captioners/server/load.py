"""How much a server is asked at a time: what it bears is found out as networks find it, by AIMD.

Additive increase, multiplicative decrease: Chiu and Jain, 1989, Computer Networks and ISDN Systems 17.
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

TIMEOUT = 300.0  # seconds that a request may be served
CLOCKS_SET_EVERY = 1.0  # seconds
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds, where the server names no time
TOLD_EVERY = 10.0  # seconds


class Fault(ConnectionError):
    """Why a server need not be asked any more."""

    def afresh(self) -> Self:
        """A copy to be raised: an exception that was raised once holds on to all objects of that moment."""
        return type(self)(str(self))


class Spent(Fault):
    """As many requests are made as the command allows."""


@dataclass(eq=False)  # each is one of its own, and found at once among all
class Flight:
    """A request under way: when it was sent, how many were under way then, and how many had been answered in all."""

    began: float
    ahead: int
    landings: int
    clock: asyncio.Timeout


class Load:
    """The requests to a server that are under way at a time, at most `most`, and when the next may start.

    Those that the server is too busy for, or answers too late, halve them, once for all that were under way together; each
    answer brings them nearer to one more. A wait is everybody's. `limit`, waits and pace outlast a connection.
    """

    def __init__(self, server: str, per_minute: float | None = None):
        self.server, self.per_minute, self.most, self.limit = server, per_minute, 1, float("inf")
        self.answered_at = self._halved_at = self._not_before = self._next = self._told_at = float("-inf")
        self._minute: deque[float] = deque()  # when the last minute's answers came
        self.fault: Fault | None = None
        self._level = 0  # of waiting: up by one with each burden, down by one with each answer

    def open(self) -> None:
        """To be called on an event loop before all else: what waits, waits on that loop."""
        self._flights: set[Flight] = set()
        self._door, self._landed = asyncio.Lock(), asyncio.Event()
        self._landings = self._landings_known = 0  # requests answered, and those of them when clocks were set last
        self._clocks_set_at = float("-inf")
        self._opened_at = asyncio.get_running_loop().time()

    @property
    def is_silent(self) -> bool:
        """Whether the server has answered nobody for so long that waiting is no use."""
        return asyncio.get_running_loop().time() - max(self.answered_at, self._opened_at) > 2 * TIMEOUT

    @property
    def allowed(self) -> int:
        """Requests that may be under way now."""
        return max(1, int(min(self.limit, self.most)))

    @asynccontextmanager
    async def flight(self, urgent: bool = False) -> AsyncIterator[Flight]:
        """A request's turn, in the order of asking; TimeoutError where it is not served in time, Fault once there is one.

        A busy server serves those first that were sent before: while some of these are left, each answer begins the time anew.
        urgent: its turn is now, however many are under way.
        """
        now = asyncio.get_running_loop().time
        async with nullcontext() if urgent else self._door:
            while True:
                if self.fault:
                    raise self.fault.afresh()
                if (wait := max(self._not_before, self._next) - now()) > 0:
                    await asyncio.sleep(wait)
                elif len(self._flights) >= self.allowed and not urgent:
                    self._landed.clear()
                    await self._landed.wait()
                else:
                    break
            if self.per_minute:
                self._next = now() + 60 / self.per_minute
            flight = Flight(now(), len(self._flights), self._landings, asyncio.timeout(TIMEOUT))
            self._flights.add(flight)
        try:
            async with flight.clock:
                yield flight
        finally:
            self._flights.remove(flight)
            self._landed.set()
        self._landings += 1
        if now() >= self._clocks_set_at + CLOCKS_SET_EVERY:
            for other in self._flights:
                if other.ahead > max(0, self._landings_known - other.landings) and not other.clock.expired():
                    other.clock.reschedule(now() + TIMEOUT)
            self._clocks_set_at, self._landings_known = now(), self._landings

    def answered(self) -> None:
        """A request was served."""
        self.answered_at, self._level = asyncio.get_running_loop().time(), max(0, self._level - 1)
        self._minute.append(self.answered_at)
        while self._minute[0] < self.answered_at - 60:
            self._minute.popleft()
        if self.limit < self.most:
            self.limit += 1 / self.limit

    def burdened(self, flight: Flight, why: str, asked: float = 0.0, limited: bool = False) -> None:
        """The server was too busy for a request, or too late; `asked`: seconds that it wants to be left alone.

        limited: it takes so many requests in a time, mostly a minute, so that there is room once the first answer of the last
        minute is a minute old.
        """
        now = asyncio.get_running_loop().time()
        if flight.began > self._halved_at:
            self.limit, self._halved_at = max(1.0, self.allowed / 2), now
            room = self._minute[0] + 60 - now if limited and self._minute else LONGEST_WAIT
            self.pause(why, self._level, asked, room)
            self._level += 1
        elif asked:
            self.pause(why, 0, asked)

    def pause(self, why: str, level: int, asked: float = 0.0, longest: float = LONGEST_WAIT) -> None:
        """Nobody asks for a while: `asked` seconds and a little more, or longer the higher the level, `longest` at most."""
        now = asyncio.get_running_loop().time()
        wait = asked + wait_of(0) if asked else min(wait_of(level), longest if longest > 0 else LONGEST_WAIT)
        self._not_before = max(self._not_before, now + wait)
        self.tell(why, self._not_before - now)

    def tell(self, why: str, wait: float) -> None:
        """Says what is waited for, where that takes a second or more, and not too often."""
        now = asyncio.get_running_loop().time()
        if wait >= 1 and now >= self._told_at + TOLD_EVERY:
            self._told_at = now
            logger.warning(
                "%s: %s; asked again in %.0f s, with at most %d requests at a time",
                self.server,
                why,
                wait,
                self.allowed,
            )


def wait_of(level: int) -> float:
    """Seconds to wait where the server names no time: twice as many with each level, 8 of which take longer than a minute."""
    return random.uniform(0.75, 1) * min(LONGEST_WAIT, FIRST_WAIT * 2**level)
