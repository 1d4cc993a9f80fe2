"""A pool of processes ends when one of them is killed, even while it sends an answer."""

import multiprocessing
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

import pytest

from imagetext.pools import Pool


def half_answered(size: int) -> bytes:
    """Die when half of the answer is in the pipe."""
    send = Connection._send

    def send_half(connection, data, *args):
        send(connection, data[: len(data) // 2], *args)
        os.kill(os.getpid(), signal.SIGKILL)

    Connection._send = send_half
    return bytes(size)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_that_dies_while_it_answers_keeps_nobody_waiting(method):
    for waits in (True, False):
        with Pool(2, multiprocessing.get_context(method)) as pool:
            calls = pool.submit(half_answered, 200_000), pool.submit(abs, -1)
            if waits:
                with pytest.raises(BrokenProcessPool):
                    pool.answer(calls[0])
        with pytest.raises(BrokenProcessPool):
            calls[0].result()


def test_a_call_that_times_out_by_itself_is_no_dead_process():
    with Pool(1) as pool:
        with pytest.raises(TimeoutError, match="the store"):
            pool.answer(pool.submit(raise_timeout))
        assert pool.answer(pool.submit(abs, -1)) == 1


def raise_timeout():
    raise TimeoutError("the store")
