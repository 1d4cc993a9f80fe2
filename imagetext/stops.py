"""How processes end: a command in order, whatever ends it, and workers with the process that started them."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = (signal.SIGTERM, signal.SIGHUP)  # beside SIGINT, which Python makes a KeyboardInterrupt of by itself


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block, the signals that end a process are a KeyboardInterrupt(number) of its main thread: nothing half done is left.

    A signal that is ignored, as `nohup` asks for, or has a handler stays as it is.
    """
    is_main = threading.current_thread() is threading.main_thread()  # no other thread may do so
    ours = [number for number in STOPPED if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt_once)
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is interrupt_once:  # else it came, and the process is about to end
                signal.signal(number, signal.SIG_DFL)


def interrupt_once(number: int, frame: FrameType | None) -> None:
    """A handler that raises KeyboardInterrupt; the same signal again does not disturb the clean stop."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number))


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells have it: 130 of SIGINT, 143 of SIGTERM."""
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def become_worker() -> None:
    """Prepares a process that another one has started for its work: a terminal's Ctrl-C is left to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in STOPPED:
        signal.signal(number, signal.SIG_DFL)  # of a fork it would be the parent's handler
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the process that started this one, and end with it: killed, it must leave none that works on."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def open_standard_files() -> None:
    """Opens what is closed of standard input, output and error on nothing.

    Else a file of ours would get their numbers, and what libraries print would go into it.
    """
    nothing = os.open(os.devnull, os.O_RDWR)  # gets the first number that is free
    while nothing <= 2:
        nothing = os.dup(nothing)
    os.close(nothing)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
