"""What runs beside the model: processes that prepare pictures, and threads that read and write.

samples -> read (a thread) -> messages of several pictures -> prepared (processes) -> the same samples, in order

The processes are kept from shard to shard.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from captioners.ranks import processes_here
from imagetext.pixels import Pixels
from imagetext.pools import FORK, Pool
from imagetext.sample import Record
from imagetext.stops import become_worker

MESSAGE = 16  # pictures that are sent to a worker and back in one message, which costs less than one message each
PATIENCE = 5  # seconds that the end of a run waits for a thread that is reading from a store

Kept = TypeVar("Kept")  # what this process keeps of a sample
Sent = TypeVar("Sent")  # what a worker gets of the sample
Made = TypeVar("Made")  # what the worker returns
Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopwatch:
    """How long the captioners have waited for pictures, in seconds."""

    waited = 0.0


class Background:
    """A thread that does calls one after the other.

    patience: seconds that `close` waits for the call that has begun; None: as long as it takes.
    """

    def __init__(self, patience: float | None = None):
        self._patience = patience
        self._calls: SimpleQueue[tuple[Future, Callable, tuple] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        future = Future()
        self._calls.put((future, call, arguments))
        return future

    def map(self, call: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
        """Yield the results of the calls in order, while at most `ahead` items wait; raises what a call raises."""
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(self.submit(call, item))
            while waiting and (len(waiting) > ahead or waiting[0].done()):
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)

    def close(self) -> None:
        """Drop the calls that have not begun, and wait for the one that has."""
        with suppress(Empty):
            while True:
                if waiting := self._calls.get_nowait():
                    waiting[0].cancel()
        self._calls.put(None)
        self._thread.join(self._patience)

    def _run(self) -> None:
        while (queued := self._calls.get()) is not None:
            future, call, arguments = queued
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(*arguments))
                except BaseException as error:  # an interruption, too, belongs to the thread that waits for the result
                    future.set_exception(error)
            del queued, future, call, arguments  # so that nothing stays in memory while this thread waits


class Workers(Generic[Kept, Sent, Made]):
    """`count` processes that prepare pictures until they are closed; with 0, the thread that reads prepares them.

    requests: yields, for each record, what this process keeps of it and what is sent to a worker.
    prepare: what the worker makes of that. Tensors come back as copies, because containers have too little shared
    memory (64 MB).
    message: most pictures in one message.
    """

    def __init__(
        self,
        requests: Callable[[Iterable[Record]], Iterator[tuple[Kept, Sent]]],
        prepare: Callable[[Sent], Made],
        count: int,
        *,
        message: int = MESSAGE,
    ):
        self.requests, self.prepare, self.count, self.message = requests, prepare, count, message
        self._processes: Pool | None = None
        self._start()  # before the thread is started: a fork of a process with threads may hang
        self._reader = Background(PATIENCE)
        self._next: _ReadAhead[Kept, Made] | None = None

    def prepared(
        self, samples: Iterable[Record], ahead: int, following: Iterable[Record] | None = None
    ) -> Iterator[tuple[Kept, Made]]:
        """Yield what is kept of each sample, and its prepared picture, in order.

        About `ahead` more samples are read and prepared meanwhile. When all are yielded, the first samples of
        `following` are read and prepared, so that they are ready when they are asked for.
        Raises: what `samples` and `prepare` raise; RuntimeError where a process dies, after which new processes start.
        """
        if self._next and self._next.samples is samples:
            read_ahead, self._next = self._next, None
        else:
            read_ahead = self._begin(samples, ahead)
        try:
            yield from read_ahead
            if following is not None and self._next is None:
                self._next = self._begin(following, ahead)
        except BrokenProcessPool as error:
            self._processes = None
            raise RuntimeError("a process that prepares pictures has died, killed or out of memory") from error
        finally:
            read_ahead.drop()

    def _begin(self, samples: Iterable[Record], ahead: int) -> "_ReadAhead[Kept, Made]":
        if self._processes is None:
            self._start()
        size = max(1, min(self.message, ahead // (2 * max(1, self.count))))
        return _ReadAhead(
            samples, self.requests(samples), self._prepare, reader=self._reader, size=size, count=-(-ahead // size)
        )

    def _start(self) -> None:
        if self.count:
            self._processes = Pool(self.count, FORK, _begin_worker, initargs=(self.prepare, Pixels(processes_here())))
            self._processes.submit(abs, 0)  # starts all of them

    def _prepare(self, message: list[Sent]) -> Callable[[], list[Made]]:
        """Have a message prepared; the function that is returned waits for the result and returns it."""
        if self._processes is not None:
            return partial(self._processes.answer, self._processes.submit(_prepare_in_worker, message))
        prepared = list(map(self.prepare, message))
        return lambda: prepared

    def close(self) -> None:
        self._reader.close()
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)


class _ReadAhead(Generic[Kept, Made]):
    """Samples that are read and prepared in messages of `size`, `count` messages ahead."""

    def __init__(
        self,
        samples: Iterable[Record],
        requests: Iterator[tuple[Kept, Any]],
        prepare: Callable[[list[Any]], Callable[[], list[Made]]],
        *,
        reader: Background,
        size: int,
        count: int,
    ):
        self.samples, self.requests, self.prepare, self.reader, self.size = samples, requests, prepare, reader, size
        self.messages = deque(reader.submit(self._read) for _ in range(count))

    def _read(self) -> tuple[list[Kept], Callable[[], list[Made]]]:
        requests = list(islice(self.requests, self.size))
        if not requests:
            return [], list
        return [kept for kept, _ in requests], self.prepare([sent for _, sent in requests])

    def __iter__(self) -> Iterator[tuple[Kept, Made]]:
        while True:
            kept, wait_for_prepared = self.messages.popleft().result()
            if not kept:
                return
            self.messages.append(self.reader.submit(self._read))
            yield from zip(kept, wait_for_prepared(), strict=True)

    def drop(self) -> None:
        """Read no more."""
        for message in self.messages:
            message.cancel()


_pixels: Pixels | None = None  # in a worker: the limit on decoded pixels that it shares with the other workers


def decoding(encoded: bytes | None) -> AbstractContextManager[None]:
    """Return a context in which to decode a picture, in a worker or not. Raises: ValueError as `decode_image` does."""
    return _pixels.held(encoded) if _pixels else nullcontext()


def _begin_worker(prepare: Callable, pixels: Pixels) -> None:
    """Set up a worker. It was forked, so `prepare` needs no copy."""
    global _prepare_picture, _pixels
    _prepare_picture, _pixels = prepare, pixels
    torch.set_num_threads(1)  # there are as many workers as cores
    ForkingPickler.register(Tensor, _reduce_as_array)
    become_worker()


def _prepare_in_worker(message: list) -> list:
    return list(map(_prepare_picture, message))


def _reduce_as_array(tensor: Tensor) -> tuple:
    return torch.from_numpy, (tensor.numpy(),)
