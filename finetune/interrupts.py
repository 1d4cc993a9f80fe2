"""Signals that ask a run that trains to end: it ends after its step, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from imagetext.stops import STOPPED

SIGNALS = (signal.SIGINT, *STOPPED)


class Interrupts:
    """Notes the signals while its block is entered: `asked` is the first that came, or 0.

    Raises KeyboardInterrupt at once within `at_once`, where nothing would be lost, and at a second SIGINT to a process that is
    alone: of several, each is told more than once, by the terminal and by what started them.
    """

    def __init__(self, *, alone: bool):
        self.alone, self.asked, self._at_once, self._interrupted = alone, 0, False, False

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()  # no other thread may do so
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heard} if is_main else {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        self._at_once = True
        if self.asked:
            raise KeyboardInterrupt(self.asked)
        yield
        self._at_once = False

    def _note(self, number: int, _: FrameType | None) -> None:
        again = self.alone and self._interrupted and number == signal.SIGINT
        self.asked, self._interrupted = (
            self.asked or signal.Signals(number),
            self._interrupted or number == signal.SIGINT,
        )
        if self._at_once or again:
            raise KeyboardInterrupt(self.asked)
