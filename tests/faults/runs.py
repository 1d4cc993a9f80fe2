"""A run of a command, disturbed at a moment or by a limit: a fork of this process, which starts no thread of its own.

A fork of a process that has threads may hang.
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

LATE = 120  # seconds, after which a run hangs


def start(
    argv: list[str], when: Moment, log: Path, *, before: Callable[[], None] = lambda: None, report: Path | None = None
) -> int:
    """The process of a run, which is disturbed at the moment; `before` is called in it first.

    report: the file that says afterwards how many units there were of each kind, and which modules were imported.
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
    """The exit code of a run."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def stops(process: int) -> bool:
    """Whether the run stops, as it is told to, before it ends."""
    _, status = os.waitpid(process, os.WUNTRACED)
    return os.WIFSTOPPED(status)


# --- what `before` may be -------------------------------------------------------------------------------------------------------


def file_size(most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def descriptors(most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def alarm(seconds: float) -> Callable[[], None]:
    return lambda: signal.setitimer(signal.ITIMER_REAL, seconds)


def nobody_reads() -> None:
    """What is printed goes into a pipe that has no other end."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def impatient() -> None:
    """A lock without a sign of life may be taken over after a third of a second."""
    from imagetext import lock

    lock.BEAT, lock.DEAD = 0.05, 0.3


def elsewhere() -> None:
    """This is another machine, which is impatient."""
    from imagetext import lock

    impatient()
    lock._machine = lambda: "another machine"


torch.set_num_threads(1)
