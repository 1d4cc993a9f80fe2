"""A run of a command that is disturbed at a moment or by a limit.

Each run is a fork of this process. This process starts no threads, because a fork of a process with threads may hang.
"""

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import moments
import torch
from moments import Moment, count_all

import capsmith

LATE = 120  # seconds after which a run counts as hanging


def start(
    argv: list[str], when: Moment, log: Path, *, before: Callable[[], None] = lambda: None, report: Path | None = None
) -> int:
    """Start a run that is disturbed at the moment, and return its process id; the run calls `before` first.

    report: the file to which the run writes its number of units by kind, and the modules that it imported
    """
    if child := os.fork():
        return child
    code = 1
    try:
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = open(1, "w", closefd=False, buffering=1)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(LATE)
        moments.moment = when
        count_all(log.parent)
        before()
        code = capsmith.main(argv)
        if report:
            report.write_text(json.dumps({"units": when.units, "modules": sorted(sys.modules)}))
        with suppress(BrokenPipeError):
            sys.stdout.flush()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end_of(process: int) -> int:
    """Wait for a run; return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def stops(process: int) -> bool:
    """Whether the run stops, as its signal asks, before it ends."""
    _, status = os.waitpid(process, os.WUNTRACED)
    return os.WIFSTOPPED(status)


# --- functions for `before` ------------------------------------------------------------------------------------------


def file_size(most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def descriptors(most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def alarm(seconds: float) -> Callable[[], None]:
    return lambda: signal.setitimer(signal.ITIMER_REAL, seconds)


def nobody_reads() -> None:
    """Print into a pipe whose reader has closed it."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def impatient() -> None:
    """Let a lock be taken over after a third of a second without a sign of life."""
    from imagetext import lock

    lock.BEAT, lock.DEAD = 0.05, 0.3


def elsewhere() -> None:
    """Pretend to be another machine, which takes over a lock after a third of a second."""
    from imagetext import lock

    impatient()
    lock._machine = lambda: "another machine"


torch.set_num_threads(1)
