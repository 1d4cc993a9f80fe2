"""Coroutines go to another thread's event loop, and results come back, several at a time; none is lost."""

import asyncio
import threading
from concurrent.futures import CancelledError

import pytest

from captioners.server import handover
from captioners.server.handover import HandOver


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def twice(number: int) -> int:
    await asyncio.sleep(number % 3 / 1000)
    if number == 7:
        raise ValueError("seven")
    return 2 * number


def test_each_future_has_the_result_of_its_coroutine_or_its_error(loop):
    with HandOver(loop) as block:
        futures = [block.submit(twice(number)) for number in range(200)]
        with pytest.raises(ValueError, match="seven"):
            futures.pop(7).result(10)
        assert [future.result(10) for future in futures] == [2 * number for number in range(200) if number != 7]


def test_what_comes_together_is_handed_over_together(loop, monkeypatch):
    monkeypatch.setattr(handover, "EVERY", 0.2)
    wakings, call = [], loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: wakings.append(args) or call(*args))
    with HandOver(loop) as block:
        futures = [block.submit(asyncio.sleep(0, number)) for number in range(50)]
        assert [future.result(10) for future in futures] == list(range(50))
        assert len(wakings) == 1


def test_what_is_not_done_at_the_end_is_cancelled(loop):
    ended = threading.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.set()

    with HandOver(loop) as block:
        begun = block.submit(wait())
        block.submit(asyncio.sleep(0)).result(10)
        unstarted = block.submit(asyncio.sleep(100))  # which may not have begun
    assert ended.wait(10)
    for future in (begun, unstarted):
        with pytest.raises(CancelledError):
            future.result(10)


def test_futures_that_were_cancelled_keep_no_other_result_and_no_cancellation_back(loop, monkeypatch):
    """As when a shard fails: the waiting thread cancels all futures, of which some have finished by then."""
    monkeypatch.setattr(handover, "EVERY", 0.2)
    problems, ended, begun = [], threading.Event(), threading.Event()
    loop.set_exception_handler(lambda loop, context: problems.append(context))

    async def wait() -> None:
        try:
            begun.set()
            await asyncio.sleep(100)
        finally:
            ended.set()

    with HandOver(loop) as block:
        given_up = [block.submit(asyncio.sleep(0)), block.submit(twice(7))]
        unfinished = block.submit(asyncio.sleep(0, "kept"))
        block.submit(wait())
        assert begun.wait(10)  # the others have ended, or do so before the next exchange
        for future in given_up:
            assert future.cancel()
        assert unfinished.result(10) == "kept"
        late = block.submit(asyncio.sleep(0))
        assert late.cancel()
    assert ended.wait(10) and problems == []
