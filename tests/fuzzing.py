"""Check many malformed inputs, drawn by number, in a child process with little memory and time.

Inputs that crash it, hang it or take too much memory are reported by their numbers.
"""

import faulthandler
import json
import os
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import capsmith

SECONDS = 60  # for one input
MEMORY = 2 * 10**9  # bytes of address space that the child may add


def problems(script: Path, count: int, folder: Path) -> dict[int, str]:
    """The problems with the first `count` inputs, by number; if an input ends the child, a new child continues."""
    by_number: dict[int, str] = {}
    environment = {**os.environ, "PYTHONPATH": str(Path(capsmith.__file__).parent), "OMP_NUM_THREADS": "1"}
    environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # Arrow's own pool reserves a GB that it may never use
    first = 0
    while first < count:
        done = subprocess.run(
            [sys.executable, str(script), str(folder), str(first), str(count)],
            env=environment,
            capture_output=True,
            text=True,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        by_number |= {line["number"]: line["problem"] for line in lines if "problem" in line}
        if not done.returncode:
            return by_number
        last = max((line["number"] for line in lines), default=first)
        by_number[last] = f"it ends the process with code {done.returncode}: {done.stderr[-3000:]}"
        first = last + 1
    return by_number


def take(check: Callable[[int, Path], None]) -> None:
    """Call `check` with each number that `problems` sends, and an empty folder; report what it raises."""
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in range(first, count):
        print(json.dumps({"number": number}), flush=True)
        place = folder / str(number)
        place.mkdir(parents=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)  # works even if no line of Python is reached any more
        try:
            check(number, place)
        except BaseException:
            print(json.dumps({"number": number, "problem": traceback.format_exc()[-3000:]}), flush=True)
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(place, ignore_errors=True)
