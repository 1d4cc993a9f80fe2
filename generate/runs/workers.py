"""What goes on beside the model: processes that prepare pictures, kept from shard to shard, and threads that read and write.

samples -> read (a thread) -> messages of several pictures -> prepared (processes) -> the same samples, in their order
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
from imagetext.pools import Pool
from imagetext.sample import Record
from imagetext.stops import become_worker

MESSAGE = 16  # pictures that travel to a process and back together, so that what a message costs is shared
PATIENCE = 5  # seconds that the end of a run waits for a thread that waits for a store

Kept = TypeVar("Kept")  # what this process keeps of a sample
Asked = TypeVar("Asked")  # what a worker is told of it
Made = TypeVar("Made")  # what comes back
Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopwatch:
    """How long the captioners waited for pictures, in seconds."""

    waited = 0.0


class Background:
    """A thread that makes calls one after the other."""

    def __init__(self, patience: float | None = None):
        self._patience = patience  # seconds that `close` waits; None: as long as it takes
        self._calls: SimpleQueue[tuple[Future, Callable, tuple] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        future = Future()
        self._calls.put((future, call, arguments))
        return future

    def map(self, call: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
        """What the calls return, in order, while at most `ahead` items wait; raises what a call raises."""
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(self.submit(call, item))
            while waiting and (len(waiting) > ahead or waiting[0].done()):
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)

    def close(self) -> None:
        """Drops the calls that have not begun, and waits for the one that has."""
        with suppress(Empty):
            while True:
                if waiting := self._calls.get_nowait():
                    waiting[0].cancel()
        self._calls.put(None)
        self._thread.join(self._patience)

    def _run(self) -> None:
        while (asked := self._calls.get()) is not None:
            future, call, arguments = asked
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(*arguments))
                except BaseException as error:  # an interruption, too, is for the thread that waits
                    future.set_exception(error)
            del asked, future, call, arguments  # while it waits, it holds nothing


class Workers(Generic[Kept, Asked, Made]):
    """`count` processes that prepare pictures, until they are closed; with none, the thread that reads does it.

    requests: what this process keeps of each sample, and what is told to the worker that prepares its picture.
    message: pictures at most that travel together.
    prepare: what the worker makes of that. Tensors come back as copies, not in shared memory, of which containers have 64 MB.
    """

    def __init__(
        self,
        requests: Callable[[Iterable[Record]], Iterator[tuple[Kept, Asked]]],
        prepare: Callable[[Asked], Made],
        count: int,
        message: int = MESSAGE,
    ):
        self.requests, self.prepare, self.count, self.message = requests, prepare, count, message
        self._processes: Pool | None = None
        self._start()  # before there is a thread: a fork of a process that has some may hang
        self._reading = Background(PATIENCE)
        self._next: _Ahead[Kept, Made] | None = None

    def prepared(
        self, samples: Iterable[Record], ahead: int, following: Iterable[Record] | None = None
    ) -> Iterator[tuple[Kept, Made]]:
        """What is kept of each sample, with its picture as prepared, in order, while about `ahead` more are read and prepared.

        Once all samples are given out, those that are `following` are begun, so that they are ready when they are asked for.
        Raises what `samples` and `prepare` raise; RuntimeError where a process dies, others then prepare the next samples.
        """
        begun = self._next if self._next and self._next.samples is samples else self._begin(samples, ahead)
        if begun is self._next:
            self._next = None
        try:
            yield from begun
            if following is not None and self._next is None:
                self._next = self._begin(following, ahead)
        except BrokenProcessPool as error:
            self._processes = None
            raise RuntimeError("a process that prepares pictures has died, killed or out of memory") from error
        finally:
            begun.drop()

    def _begin(self, samples: Iterable[Record], ahead: int) -> "_Ahead[Kept, Made]":
        if self._processes is None:
            self._start()
        size = max(1, min(self.message, ahead // (2 * max(1, self.count))))
        return _Ahead(samples, self.requests(samples), self._ask, self._reading, size, -(-ahead // size))

    def _start(self) -> None:
        if self.count:
            self._processes = Pool(
                self.count, initializer=_begin_worker, initargs=(self.prepare, Pixels(processes_here()))
            )
            self._processes.submit(abs, 0)  # starts all of them

    def _ask(self, asked: list[Asked]) -> Callable[[], list[Made]]:
        """Have these prepared; the answer waits for it."""
        if self._processes is not None:
            return partial(self._processes.answer, self._processes.submit(_prepare, asked))
        made = list(map(self.prepare, asked))
        return lambda: made

    def close(self) -> None:
        self._reading.close()
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)


class _Ahead(Generic[Kept, Made]):
    """Samples that are read and prepared in messages of `size`, `count` of them ahead of where they are given out."""

    def __init__(
        self,
        samples: Iterable[Record],
        requests: Iterator[tuple[Kept, Any]],
        ask: Callable[[list[Any]], Callable[[], list[Made]]],
        reading: Background,
        size: int,
        count: int,
    ):
        self.samples, self.requests, self.ask, self.reading, self.size = samples, requests, ask, reading, size
        self.messages = deque(reading.submit(self._read) for _ in range(count))

    def _read(self) -> tuple[list[Kept], Callable[[], list[Made]]]:
        message = list(islice(self.requests, self.size))
        return [kept for kept, _ in message], self.ask([asked for _, asked in message]) if message else list

    def __iter__(self) -> Iterator[tuple[Kept, Made]]:
        while True:
            kept, made = self.messages.popleft().result()
            if not kept:
                return
            self.messages.append(self.reading.submit(self._read))
            yield from zip(kept, made(), strict=True)

    def drop(self) -> None:
        """Read no more."""
        for message in self.messages:
            message.cancel()


_pixels: Pixels | None = None  # of a worker: what it shares with the others


def decoding(encoded: bytes | None) -> AbstractContextManager[None]:
    """A block in which a picture is decoded, in a worker or not; ValueError as of `decode_image`."""
    return _pixels.held(encoded) if _pixels else nullcontext()


def _begin_worker(prepare: Callable, pixels: Pixels) -> None:
    """What a worker does first; it has what it needs of this process by then, without a copy."""
    global _of_this_worker, _pixels
    _of_this_worker, _pixels = prepare, pixels
    torch.set_num_threads(1)  # workers are as many as there are cores
    ForkingPickler.register(Tensor, _as_array)
    become_worker()


def _prepare(asked: list) -> list:
    return list(map(_of_this_worker, asked))


def _as_array(tensor: Tensor) -> tuple:
    return torch.from_numpy, (tensor.numpy(),)
