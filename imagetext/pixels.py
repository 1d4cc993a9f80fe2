"""Pixels that are decoded at once have one bound together: a large picture waits for others to be done."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager

from imagetext import limits
from imagetext.sample import open_image


class Pixels:
    """At most limits.IN_FLIGHT pixels of large pictures in all threads and processes that have this.

    A process that is killed takes its share along. ranks: processes of the run on this machine, which have one of these each and
    the pixels in equal parts, but so many that any picture can be decoded.
    """

    SHARE = 1 << 22  # pixels that are counted together; a smaller picture does not count

    def __init__(self, ranks: int = 1) -> None:
        self.shares = max(limits.IN_FLIGHT // ranks, min(limits.IN_FLIGHT, limits.PIXELS)) // self.SHARE
        self.turn, self.free = multiprocessing.Lock(), multiprocessing.Semaphore(self.shares)

    @contextmanager
    def held(self, encoded: bytes | None) -> Iterator[None]:
        """A block that decodes this picture, and lets go of what it decoded; ValueError as of `decode_image`."""
        width, height = open_image(encoded).size
        shares = min(self.shares, width * height // self.SHARE)
        if shares:
            with self.turn:  # two that have some of their shares would wait for each other
                for _ in range(shares):
                    self.free.acquire()
        try:
            yield
        finally:
            for _ in range(shares):
                self.free.release()
