"""Calls that wait for a store are made some at once, and their results come in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READ_AHEAD = 32  # calls at once

Result = TypeVar("Result")


def in_order(calls: Iterable[tuple[bool, Callable[[], Result]]]) -> Iterator[Result]:
    """The results of calls, in order; READ_AHEAD of those that wait for a store (True) are made at once."""
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(READ_AHEAD)  # starts no thread before it is asked to
    try:
        for far, call in calls:
            if far:
                waiting.append(pool.submit(call))
            else:
                yield from (waiting.popleft().result() for _ in range(len(waiting)))
                yield call()
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
