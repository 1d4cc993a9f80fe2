"""Coroutines handed to an event loop in another thread, and their results handed back, several at a time."""

import asyncio
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Self

EVERY = 0.005  # seconds; little beside what a model takes, much beside what it takes to wake a thread


class HandOver:
    """A `with` block of coroutines that run on a loop in another thread; those that are not done at its end are cancelled.

    Threads that wake each other for each request spend more on that than on the request. So what is handed over waits for what
    comes within EVERY seconds, either way.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._new: deque[tuple[Coroutine, Future]] = deque()
        self._tasks: dict[asyncio.Task, Future] = {}
        self._done: list[asyncio.Task] = []
        self._is_called = False  # whether the other thread knows of new ones
        self._is_due = False  # whether an exchange comes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._loop.is_closed():  # as where Python ends, and nobody closed the block
            self._loop.call_soon_threadsafe(self._cancel)

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future:
        future: Future = Future()
        self._new.append((coroutine, future))
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._exchange_soon)
        return future

    def _exchange_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(EVERY, self._exchange)

    def _exchange(self) -> None:
        self._is_called = self._is_due = False  # first, so that none that comes meanwhile is overlooked
        while self._new:
            coroutine, future = self._new.popleft()
            task = self._loop.create_task(coroutine)
            self._tasks[task] = future
            task.add_done_callback(self._finish)
        done, self._done = self._done, []
        for task in done:
            future = self._tasks.pop(task)
            if task.cancelled():
                future.cancel()
                continue
            error = task.exception()
            if not future.set_running_or_notify_cancel():
                continue  # who waited has given it up
            if error:
                future.set_exception(error)
            else:
                future.set_result(task.result())

    def _finish(self, task: asyncio.Task) -> None:
        self._done.append(task)
        self._exchange_soon()

    def _cancel(self) -> None:
        self._exchange()
        for task in self._tasks:
            task.cancel()
