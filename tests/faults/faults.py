"""What happens to a run: faults at a random moment, two runs at once, mistakes in the command, and changed input."""

import errno
import io
import multiprocessing
import os
import random
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import moments
import runs
import torch
from commands import Command
from moments import Moment

from imagetext.lock import LOCK
from imagetext.shards import MARKER, SUFFIXES

INTERRUPTED, REFUSED = 130, 2


class Trial(Protocol):
    """A command that runs in a folder and is disturbed there; see `campaign.Trial`."""

    name: str
    command: Command
    format: str
    output: Path
    draw: random.Random
    units: dict[str, float]  # number of units in an undisturbed run, by kind

    def run(self, *flags: str, when: Moment = Moment(), before: Callable[[], None] = lambda: None) -> int:
        """Run the command; return its exit code."""

    def start(self, *flags: str, when: Moment = Moment(), before: Callable[[], None] = lambda: None) -> int:
        """Start the command; return its process id."""

    def expect(self, holds: bool, message: str) -> None:
        """Record a problem if `holds` is false."""

    def snapshot(self) -> dict[str, bytes]:
        """The bytes of all files in the input and the output, by name."""


def raising(error: BaseException) -> Callable[[], None]:
    def strike():
        raise error

    return strike


def signalling(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def kill_worker() -> None:
    if workers := multiprocessing.active_children():
        os.kill(workers[0].pid, signal.SIGKILL)
    else:  # those of this shard have ended
        moments.moment.number += 1
        moments.hit.unlink()


def hang() -> None:
    time.sleep(0.05)
    raise TimeoutError(errno.ETIMEDOUT, "the store does not answer")


class Fault(NamedTuple):
    """A fault, the kinds of units in which its moment is counted, and the exit codes that it may cause.

    clean: whether the run must say without a traceback why it ended
    """

    strike: Callable[[], Any]
    kinds: tuple[str, ...]
    codes: tuple[int, ...]
    clean: bool = False
    lasting: bool = False
    flags: tuple[str, ...] = ()
    keeps_on: bool = False  # input seems to have changed, so not for commands that record what they read


ANYWHERE = ("step", "batch", "picture", "read", "written")
FAULTS = {
    "killed": Fault(signalling(signal.SIGKILL), ANYWHERE, (-signal.SIGKILL,)),
    "interrupted": Fault(signalling(signal.SIGINT), ANYWHERE, (INTERRUPTED, 0), clean=True),
    "terminated": Fault(
        signalling(signal.SIGTERM), ANYWHERE, (-signal.SIGTERM, 128 + signal.SIGTERM, INTERRUPTED, 0), clean=True
    ),
    "a worker killed": Fault(
        kill_worker, ("batch",), (1, 0), flags=("--num-workers", "2")
    ),  # 0: the worker had already finished its work
    "no space left": Fault(
        raising(OSError(errno.ENOSPC, "No space left on device")), ("written", "step"), (1,), True, lasting=True
    ),
    "writing fails": Fault(raising(OSError(errno.EIO, "Input/output error")), ("written", "step"), (1,), True),
    "reading fails": Fault(
        raising(OSError(errno.EIO, "Input/output error")), ("read",), (1, 0, REFUSED)
    ),  # 0: a second attempt may succeed
    "reading hangs": Fault(hang, ("read",), (1, 0, REFUSED)),
    "reading stops short": Fault(lambda: True, ("read",), (1, 0, REFUSED), keeps_on=True),
    "the model raises": Fault(raising(RuntimeError("an illegal instruction")), ("batch",), (1,)),
    "out of memory": Fault(raising(torch.OutOfMemoryError("injected")), ("batch",), (0, 1)),
    "out of memory decoding": Fault(raising(MemoryError()), ("picture",), (1,)),
}


def strike(trial: Trial, name: str) -> bool:
    """Let a fault of FAULTS strike a run; return whether it struck."""
    fault = FAULTS[name]
    kind = trial.draw.choice([kind for kind in fault.kinds if trial.units.get(kind)])
    most = trial.units[kind] - (8 if fault.flags else 0)  # workers have ended before the last batches
    code = trial.run(*fault.flags, when=Moment(kind, trial.draw.randint(1, most), fault.strike, lasting=fault.lasting))
    if moments.hit.exists():
        trial.expect(code in fault.codes, f"exit code {code}")
        trial.expect(not fault.clean or "Traceback" not in trial.printed, "it ends with a traceback")
    return moments.hit.exists()


def applies(name: str, command: Command, units: dict[str, float]) -> bool:
    """Whether the fault can strike the command."""
    fault = FAULTS[name]
    return (
        any(units.get(kind) for kind in fault.kinds)
        and (not fault.flags or "--teacher" in command.flags or "fake" in command.flags)
        and not (fault.keeps_on and not command.formats[0])
    )


# --- faults from outside, or with several steps; each function returns whether the fault struck ----------------------


def killed_by_the_clock(trial: Trial) -> bool:
    code = trial.run(before=runs.alarm(trial.draw.uniform(0.01, trial.units["seconds"])))
    trial.expect(code in (-signal.SIGALRM, 0), f"exit code {code}")
    return True


def limited_file_size(trial: Trial) -> bool:
    code = trial.run(before=runs.file_size(trial.draw.randint(1, max(1, trial.units["largest"] - 1))))
    trial.expect(code in (0, 1, REFUSED), f"exit code {code}")
    return code != 0


def few_descriptors(trial: Trial) -> bool:
    """Limit the file descriptors to 64, which is enough, or to fewer."""
    most = trial.draw.choice([64, trial.draw.randint(12, 63)])
    code = trial.run(before=runs.descriptors(most))
    trial.expect(code == 0 if most == 64 else code in (0, 1, REFUSED), f"{most} descriptors: exit code {code}")
    trial.expect("Traceback" not in trial.printed, f"{most} descriptors: it ends with a traceback")
    return True


def nobody_reads(trial: Trial) -> bool:
    code = trial.run(before=runs.nobody_reads)
    trial.expect(code >= 0 and "Traceback" not in trial.printed, f"exit code {code}")
    return True


def cut_afterwards(trial: Trial) -> bool:
    """Truncate a shard, a marker or the last checkpoint after the run."""
    if trial.command.trains:
        if not trial.run(
            when=Moment("batch", trial.draw.randint(3, trial.units["batch"]), signalling(signal.SIGKILL))
        ):
            return True  # the run was already done
        path = max(trial.output.glob("checkpoints/*.pt"))
    else:
        trial.run()
        suffix = trial.draw.choice([SUFFIXES[trial.format], MARKER])
        path = trial.draw.choice(sorted(path for path in trial.output.iterdir() if path.name.endswith(suffix)))
    with open(path, "r+b") as file:
        file.truncate(trial.draw.randrange(path.stat().st_size))
    return True


def another_at_once(trial: Trial) -> bool:
    """Start the same command while the first one is working; then the first continues or is killed."""
    first = trial.start(when=trial.moment(signal.SIGSTOP))
    if not runs.stops(first):
        return False
    before = trial.snapshot()
    code = trial.run()
    trial.expect(code == REFUSED, f"the second run: exit code {code}")
    trial.expect(trial.snapshot() == before, "the second run has changed files")
    killed = trial.draw.random() < 0.5
    os.kill(first, signal.SIGKILL if killed else signal.SIGCONT)
    code = runs.end_of(first)
    trial.expect(code == (-signal.SIGKILL if killed else 0), f"the first run: exit code {code}")
    return True


def taken_over(trial: Trial) -> bool:
    """Pause the first run until another machine takes the folder over, and then let the first continue."""
    first = trial.start(when=trial.moment(signal.SIGSTOP), before=runs.impatient)
    if not runs.stops(first):
        return False
    lock, deadline = trial.output / LOCK, time.monotonic() + 20
    if not lock.exists():  # the lock is not taken yet, or already released
        os.kill(first, signal.SIGCONT)
        runs.end_of(first)
        return True
    of_first = lock.read_bytes()
    second = trial.start(before=runs.elsewhere)
    while lock.exists() and lock.read_bytes() == of_first and time.monotonic() < deadline:
        time.sleep(0.02)
    if trial.draw.random() < 0.3:
        os.kill(first, signal.SIGKILL)
    else:
        os.kill(first, signal.SIGCONT)
    codes = runs.end_of(first), runs.end_of(second)
    trial.expect(codes[0] in (0, 1, REFUSED, -signal.SIGKILL) and codes[1] in (0, 1), f"exit codes {codes}")
    return True


def mistaken_command(trial: Trial) -> bool:
    """Give a command with a mistake after a run was killed or is done."""
    done = trial.draw.random() < 0.5
    trial.run(when=Moment() if done else trial.moment(signal.SIGKILL))
    flags = trial.draw.choice(
        [flags for flags in trial.command.mistakes if done or "--output" in flags or "--overwrit" in flags[0]]
    )
    before = trial.snapshot()
    code = trial.run(*flags)
    trial.expect(code == REFUSED, f"{' '.join(flags)}: exit code {code}")
    changed = [
        name
        for name, data in (before | trial.snapshot()).items()
        if data != before.get(name) or data != trial.snapshot().get(name)
    ]
    trial.expect(not changed, f"{' '.join(flags)}: changed {changed}")
    return True


def changed_input(trial: Trial) -> bool:
    """Change, extend or remove a file of the input before the command runs again; then restore the file."""
    last = trial.units["batch"] if trial.command.trains else 0
    code = trial.run(when=Moment("batch", last, signalling(signal.SIGKILL)) if last else Moment())
    if last and not code:
        return True  # the run was already done, and does not read its input again
    path = trial.draw.choice(sorted(trial.command.input.glob("*.tar")))
    data, status, output = path.read_bytes(), path.stat(), trial.files()
    how = trial.draw.choice(["other", "longer", "gone"])
    try:
        if how == "gone":
            path.unlink()
        else:
            position = data.index(b"\xff\xd8\xff") + 30 if b"\xff\xd8\xff" in data else data.index(b"\x89PNG") + 40
            path.write_bytes(data[:position] + b"!" + data[position + 1 :] if how == "other" else grown(data))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        code = trial.run()
        is_named = path.name in trial.printed or path.stem in trial.printed
        trial.expect(
            is_named and code in ((0, REFUSED) if how == "gone" else (REFUSED,)),
            f"{how}: exit code {code}, told: {is_named}",
        )
        changed = [name for name, data_now in trial.files().items() if output.get(name) != data_now]
        trial.expect(how == "gone" or not changed, f"{how}: changed {changed}")
    finally:
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return True


def grown(archive: bytes) -> bytes:
    """The tar with a copy of its first record under another key."""
    file = io.BytesIO(archive)
    with tarfile.open(fileobj=file) as first:
        key = first.next().name.partition(".")[0]
        again = [(member, first.extractfile(member).read()) for member in first if member.name.startswith(f"{key}.")]
    with tarfile.open(fileobj=file, mode="a") as more:
        for member, data in again:
            member.name = f"more{member.name}"
            more.addfile(member, io.BytesIO(data))
    return file.getvalue()


COURSES = {
    "killed by the clock": killed_by_the_clock,
    "a limit on the file's size": limited_file_size,
    "few descriptors": few_descriptors,
    "nobody reads what it prints": nobody_reads,
    "a file cut afterwards": cut_afterwards,
    "another run at once": another_at_once,
    "taken over by another machine": taken_over,
    "a mistake in the command": mistaken_command,
    "input that changes": changed_input,
}
LOCKED = ("generate", "reinforce", "join", "select", "finetune", "train-student")


def courses_of(name: str, command: Command) -> list[str]:
    """The names of the COURSES that apply to a command."""
    without = set()
    if command.reads:
        without = {
            "a limit on the file's size",
            "a file cut afterwards",
            "a mistake in the command",
            "input that changes",
        }
    elif name == "diversity":
        without = {"a file cut afterwards", "input that changes"}
    elif name == "join":
        without = {"input that changes"}
    if name not in LOCKED:
        without |= {"another run at once", "taken over by another machine"}
    return [course for course in COURSES if course not in without]
