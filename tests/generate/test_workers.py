"""The workers and threads beside the model: order, reuse from shard to shard, errors, and how they end."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing

import pytest
import torch

from generate.captions.config import GenerateConfig
from generate.runs.protocol import workers_wanted
from generate.runs.workers import Background, Workers
from imagetext.pixels import Pixels

SHAPES = [((3, 4, 5), torch.uint8), ((3, 2, 2), torch.float32), ((7,), torch.uint8), ((9,), torch.int64)]


def requests(samples):
    return ((f"kept {sample}", sample) for sample in samples)


def tensor(number: int) -> tuple[list[torch.Tensor], str]:
    """Return tensors whose shape and dtype depend on the number; for every ninth number none, and a reason."""
    if number % 9 == 0:
        return [], f"no picture in {number}"
    shape, dtype = SHAPES[number % len(SHAPES)]
    return [torch.full(shape, number % 100, dtype=dtype)] * 2, ""


def process_id(number: int) -> int:
    time.sleep(0.02)
    return os.getpid()


@pytest.mark.parametrize("count, message", [(0, 16), (1, 1), (1, 16), (3, 4), (3, 16)])
def test_samples_come_in_their_order_as_if_prepared_here(count, message):
    with closing(Workers(requests, tensor, count, message=message)) as workers:
        prepared = list(workers.prepared(range(50), ahead=32))
    assert [name for name, _ in prepared] == [f"kept {number}" for number in range(50)]
    for number, (_, (pixels, error)) in enumerate(prepared):
        expected, reason = tensor(number)
        assert error == reason and len(pixels) == len(expected)
        assert all(
            first.dtype == second.dtype and torch.equal(first, second) for first, second in zip(pixels, expected)
        )


def test_processes_are_kept_from_shard_to_shard_and_end_with_the_workers():
    with closing(Workers(requests, process_id, 2, message=1)) as workers:
        shards = [{process for _, process in workers.prepared(range(20), ahead=8)} for _ in range(3)]
        running = {child.pid for child in multiprocessing.active_children()}
    assert set.union(*shards) <= running and os.getpid() not in set.union(*shards)
    assert not running & {child.pid for child in multiprocessing.active_children()}


@pytest.mark.parametrize("count", [0, 2])
def test_the_next_samples_are_begun_once_these_are_given_out_and_not_read_again(count):
    numbers_read, begun = [], threading.Event()

    def following():
        for number in range(5):
            numbers_read.append(number)
            begun.set()
            yield number

    after = following()
    with closing(Workers(requests, abs, count)) as workers:
        prepared = workers.prepared([10, 11], ahead=4, following=after)
        assert next(prepared) == ("kept 10", 10) and not numbers_read
        assert next(prepared) == ("kept 11", 11) and list(prepared) == []
        assert begun.wait(30)
        assert list(workers.prepared(after, ahead=4)) == [(f"kept {number}", number) for number in range(5)]
    assert numbers_read == list(range(5))


@pytest.mark.parametrize("count", [0, 2])
def test_what_reading_and_preparing_raise_is_raised_in_its_place_and_the_next_samples_are_not_disturbed(count):
    def broken():
        yield from range(4)
        raise OSError("the store is gone")

    with closing(Workers(requests, (1).__truediv__, count, message=1)) as workers:
        with pytest.raises(ZeroDivisionError):
            list(workers.prepared([1, 0, 2], ahead=4))
        assert list(workers.prepared([1, 2], ahead=4)) == [("kept 1", 1), ("kept 2", 0.5)]
        prepared = workers.prepared((number + 1 for number in broken()), ahead=2)
        assert next(prepared) == ("kept 1", 1)
        with pytest.raises(OSError, match="the store is gone"):
            list(prepared)
        assert list(workers.prepared([4], ahead=4)) == [("kept 4", 0.25)]


def test_a_process_that_dies_fails_these_samples_and_others_prepare_the_next():
    with closing(Workers(requests, process_id, 2, message=1)) as workers:
        prepared = workers.prepared(range(200), ahead=8)
        os.kill(next(prepared)[1], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="a process that prepares pictures has died"):
            list(prepared)
        assert len(list(workers.prepared(range(20), ahead=8))) == 20


def test_no_more_is_read_than_asked_for_and_nothing_once_it_is_dropped():
    numbers_read = []
    with closing(Workers(requests, abs, 2)) as workers:
        prepared = workers.prepared((numbers_read.append(number) or number for number in range(1000)), ahead=40)
        for number in range(100):
            assert next(prepared)[1] == number
            assert len(numbers_read) <= number + 1 + 40 + 16
        prepared.close()
        time.sleep(0.1)
        before = len(numbers_read)
        time.sleep(0.1)
        assert len(numbers_read) == before < 200


def test_calls_in_the_background_are_made_in_order_and_raise_where_they_are_waited_for():
    with closing(Background()) as thread:
        assert list(thread.map(lambda number: (number, threading.current_thread()), range(3), ahead=1)) == [
            (number, thread._thread) for number in range(3)
        ]
        with pytest.raises(KeyboardInterrupt):
            list(thread.map(lambda error: (_ for _ in ()).throw(error), [KeyboardInterrupt()], ahead=1))
        assert thread.submit(sum, [1, 2]).result() == 3


def test_results_come_as_soon_as_they_are_there_and_no_more_calls_wait_than_asked_for():
    hold, numbers_taken = threading.Event(), []

    def slowly(numbers):
        for number in numbers:
            time.sleep(0.05)
            numbers_taken.append(number)
            yield number

    with closing(Background()) as thread:
        assert next(thread.map(abs, slowly(range(100)), ahead=100)) == 0 and len(numbers_taken) < 50
        numbers_taken.clear()
        threading.Timer(1, hold.set).start()
        results = thread.map(lambda number: hold.wait(30), slowly(range(100)), ahead=2)
        assert next(results) and len(numbers_taken) == 3


def test_at_its_end_the_call_that_has_begun_is_waited_for_and_others_are_dropped():
    done, begun = [], threading.Event()
    with closing(Background()) as thread:
        thread.submit(lambda: (begun.set(), time.sleep(0.2), done.append("first")))
        second = thread.submit(done.append, "second")
        assert begun.wait(30)
    assert done == ["first"] and second.cancelled() and not thread._thread.is_alive()


def test_an_end_that_has_no_more_patience_does_not_wait():
    stuck, start = threading.Event(), time.monotonic()
    with closing(Background(patience=0.1)) as thread:
        thread.submit(stuck.wait, 60)
    assert time.monotonic() - start < 30
    stuck.set()


@pytest.mark.parametrize(
    "cores, environment, options, expected",
    [
        (16, {}, {}, 15),
        (2, {}, {}, 2),
        (1, {}, {}, 2),
        (96, {"LOCAL_WORLD_SIZE": "8"}, {}, 11),
        (256, {}, {}, 32),
        (16, {}, {"num_workers": 0}, 0),
        (16, {}, {"num_workers": 40}, 40),
        (16, {}, {"engine": "ray"}, 2),
        (16, {}, {"engine": "ray", "num_workers": 7}, 7),
    ],
)
def test_workers_are_as_many_as_a_process_has_cores_less_one(monkeypatch, cores, environment, options, expected):
    monkeypatch.setattr("captioners.machine._quotas", lambda root: [])
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert workers_wanted(GenerateConfig(input=["x.tar"], model="fake", output="out", **options)) == expected


def test_large_pictures_wait_for_each_other_and_small_ones_do_not(monkeypatch, picture):
    monkeypatch.setattr(Pixels, "SHARE", 1000)
    monkeypatch.setattr("imagetext.limits.IN_FLIGHT", 3000)
    pixels, begun = Pixels(), threading.Event()

    def decode():
        with pixels.held(picture(size=(40, 50))):
            begun.set()

    with pixels.held(picture(size=(40, 50))):
        thread = threading.Thread(target=decode)
        thread.start()
        with pixels.held(picture(size=(9, 7))):
            assert not begun.wait(0.2)
    thread.join(10)
    assert begun.is_set()
    with pixels.held(picture(size=(90, 90))):  # more than all shares: alone
        pass
    with pytest.raises(ValueError, match="not a picture"), pixels.held(b"none"):
        pass
    monkeypatch.setattr("imagetext.limits.PIXELS", 1500)
    assert [Pixels(ranks).shares for ranks in (1, 2, 8)] == [3, 1, 1]
