"""A common limit for the pixels that are decoded at the same time: a large picture waits until others are done."""

from collections.abc import Iterator
from contextlib import contextmanager

from imagetext import limits
from imagetext.pools import FORK
from imagetext.sample import open_image


class Pixels:
    """Limits the pixels of large pictures that all threads and processes which share this object decode at once.

    The limit is limits.IN_FLIGHT pixels. The share of a killed process is not given back.

    ranks: the processes of the run on this machine. Each has a Pixels object with an equal part of the limit, but at
        least as much as the largest picture takes.
    """

    SHARE = 1 << 22  # pixels of one share; smaller pictures are not counted

    def __init__(self, ranks: int = 1) -> None:
        self.shares = max(limits.IN_FLIGHT // ranks, min(limits.IN_FLIGHT, limits.PIXELS)) // self.SHARE
        self.turn, self.free = FORK.Lock(), FORK.Semaphore(self.shares)

    @contextmanager
    def held(self, encoded: bytes | None) -> Iterator[None]:
        """Hold this picture's share of the pixels during the block that decodes and drops it.

        Raises ValueError as `decode_image` does.
        """
        width, height = open_image(encoded).size
        shares = min(self.shares, width * height // self.SHARE)
        if shares:
            with self.turn:  # otherwise two processes that each have some of their shares would wait for each other
                for _ in range(shares):
                    self.free.acquire()
        try:
            yield
        finally:
            for _ in range(shares):
                self.free.release()
