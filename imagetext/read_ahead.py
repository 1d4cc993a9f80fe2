"""Several calls that wait for a store are made at once; their results come in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READ_AHEAD = 32  # calls at once

Result = TypeVar("Result")


def in_order(calls: Iterable[tuple[bool, Callable[[], Result]]]) -> Iterator[Result]:
    """Yield the results of calls, in order.

    calls: pairs of whether the call waits for a store, and the call. READ_AHEAD of those that wait are made at once.
    """
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(READ_AHEAD)  # starts its threads only when they are needed
    try:
        for is_remote, call in calls:
            if is_remote:
                waiting.append(pool.submit(call))
            else:
                yield from (waiting.popleft().result() for _ in range(len(waiting)))
                yield call()
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
