"""Several calls that wait for a store or a disk are made at once; their results come in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READ_AHEAD = 32  # calls at once
SMALL_AHEAD = 64  # calls at once whose results are small

Result = TypeVar("Result")


def in_order(calls: Iterable[tuple[bool, Callable[[], Result]]], ahead: int = READ_AHEAD) -> Iterator[Result]:
    """Yield the results of calls, in order.

    calls: pairs of whether the call waits for a store or a disk, and the call. `ahead` of those that wait are made at
        once.
    """
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(ahead)  # starts its threads only when they are needed
    try:
        for waits, call in calls:
            if waits:
                waiting.append(pool.submit(call))
            else:
                yield from (waiting.popleft().result() for _ in range(len(waiting)))
                yield call()
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
