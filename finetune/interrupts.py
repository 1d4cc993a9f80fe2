"""Signals that ask a training run to stop: the run finishes its step, writes a checkpoint, and ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from imagetext.stops import STOPPED

SIGNALS = (signal.SIGINT, *STOPPED)


class Interrupts:
    """Records signals inside its `with` block; `received` is the first signal, or 0.

    It raises KeyboardInterrupt immediately inside `at_once`, where nothing would be lost, and at a second SIGINT if
    the process is `alone`. One of several processes may get the same SIGINT twice, from the terminal and from its
    launcher. After a signal, torch's error that another process has ended becomes KeyboardInterrupt, too.
    """

    def __init__(self, *, alone: bool):
        self.alone, self.received, self._at_once, self._interrupted = alone, 0, False, False

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()  # Python lets only this thread set handlers
        handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._earlier_handlers = {number: signal.signal(number, self._record) for number in handled} if is_main else {}
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)
        if self.received and not self.alone and isinstance(error, RuntimeError):
            # Another process that got the signal ended at once, and this one waited for it.
            raise KeyboardInterrupt(self.received) from error

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this context, raise KeyboardInterrupt at any signal, also for one that was received before."""
        self._at_once = True
        if self.received:
            raise KeyboardInterrupt(self.received)
        yield
        self._at_once = False

    def _record(self, number: int, _: FrameType | None) -> None:
        is_second_interrupt = self.alone and self._interrupted and number == signal.SIGINT
        self.received = self.received or signal.Signals(number)
        self._interrupted = self._interrupted or number == signal.SIGINT
        if self._at_once or is_second_interrupt:
            raise KeyboardInterrupt(self.received)
