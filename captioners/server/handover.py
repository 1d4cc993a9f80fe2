"""Hand coroutines to an event loop in another thread, and their results back, several at a time."""

import asyncio
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Self

EVERY = 0.005  # seconds; much less than a request takes, much more than waking a thread takes


class HandOver:
    """A `with` block whose coroutines run on a loop in another thread; unfinished ones are cancelled at its end.

    Waking the other thread for each request would cost more than the request. Therefore coroutines and results are
    collected for EVERY seconds and then handed over together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._submitted: deque[tuple[Coroutine, Future]] = deque()
        self._tasks: dict[asyncio.Task, Future] = {}
        self._done: list[asyncio.Task] = []
        self._is_called = False  # whether the loop's thread has been told of new coroutines
        self._is_due = False  # whether an exchange is scheduled

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._loop.is_closed():  # it may be when Python ends and an iterator was not closed
            self._loop.call_soon_threadsafe(self._cancel)

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future:
        """Schedule a coroutine on the loop; return the future of its result."""
        future: Future = Future()
        self._submitted.append((coroutine, future))
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._exchange_soon)
        return future

    def _exchange_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(EVERY, self._exchange)

    def _exchange(self) -> None:
        """Start all submitted coroutines, and set the results of finished ones."""
        self._is_called = self._is_due = False  # before reading the queue, so that no new coroutine is overlooked
        while self._submitted:
            coroutine, future = self._submitted.popleft()
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
                continue  # the future was cancelled
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
