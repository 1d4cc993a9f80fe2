"""How processes end: a command cleans up on any signal, and workers end with the process that started them."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType

STOPPED = (signal.SIGTERM, signal.SIGHUP)  # and SIGINT, which Python itself turns into a KeyboardInterrupt


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """In the block, a signal that ends the process raises KeyboardInterrupt(number) in its main thread.

    So the process can clean up. A signal that is ignored (as with `nohup`) or has a handler already is left alone.
    """
    is_main = threading.current_thread() is threading.main_thread()  # only the main thread may set handlers
    handled = [number for number in STOPPED if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, interrupt_once)
    try:
        yield
    finally:
        for number in handled:
            if signal.getsignal(number) is interrupt_once:  # otherwise it has come, and the process is about to end
                signal.signal(number, signal.SIG_DFL)


def interrupt_once(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises KeyboardInterrupt, and ignores the same signal while the process cleans up."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number))


def interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt that an error comes from, if any: C++ modules make an ImportError of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code for a process that a signal ended, as in shells: 128 + its number, 130 for SIGINT."""
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def become_worker() -> None:
    """Prepare this process to be a worker of the process that started it, which alone handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in STOPPED:
        signal.signal(number, signal.SIG_DFL)  # a fork has the handlers of its parent
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait until the process that started this one ends, even if it is killed; then end this process, too."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def open_standard_files() -> None:
    """Open standard input, output and error on /dev/null if they are closed.

    Otherwise a file that we open would get one of their numbers, and the output of libraries would go into it.
    Characters that standard output cannot encode will be replaced, so that they end no command.
    """
    number = os.open(os.devnull, os.O_RDWR)  # gets the first free number
    while number <= 2:
        number = os.dup(number)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        with suppress(OSError):  # its number was given to another file after Python had opened it
            sys.stdout.reconfigure(errors="replace")
