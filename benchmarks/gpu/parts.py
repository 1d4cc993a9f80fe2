"""The parts, and the process that runs them. A part that hangs or breaks the device does not affect the others."""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

# name: the module and function that yields the figures as dicts, and the limit in seconds
PARTS = {
    "ceilings": ("decoding.ceilings", 25),
    "decoding": ("decoding.decoding", 60),
    "paper": ("decoding.paper", 60),
    "gpu_tests": ("checks.gpu_tests", 95),
    "parity": ("checks.parity", 40),
    "whole_runs": ("runs.whole_runs", 90),
    "shared_card": ("runs.shared_card", 75),
    "profile": ("profiles.steps", 40),
    "other_flights": ("decoding.other_flights", 60),
    "small": ("decoding.small", 30),
    "training": ("training.training", 60),
    "smolvlm": ("vlms.smolvlm", 40),
    "qwen": ("vlms.qwen", 60),
    "embeddings": ("embeddings.embeddings", 30),
}
GRACE = 10  # seconds after its limit after which a part that is still running counts as hanging
LAST_LINES = 12
PATIENCE = 20  # factor for the limits in a rehearsal, because a busy CPU is slower than a card


class OutOfTime(BaseException):
    """The limit of a part is reached; not an Exception, so that the part's own code cannot catch it."""


def run_parts(waiting: list[str], deadline: float, args: argparse.Namespace) -> Iterator[dict]:
    """Run waiting parts in one process until it ends; yield their lines. Parts that have begun are removed from
    `waiting`.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu.parts",
        "--output",
        args.output,
        "--seconds",
        str(deadline - time.monotonic()),
        *(["--rehearse"] if args.rehearse else []),
        *(["--peer-python", args.peer_python] if args.peer_python else []),
        *waiting,
    ]
    with open(args.output / "log.txt", "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        output: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=lambda: [*map(output.put, process.stdout), output.put(None)], daemon=True).start()
        doing, until = None, deadline + GRACE
        try:
            while (text := output.get(timeout=max(0.1, until - time.monotonic()))) is not None:
                line = json.loads(text) if text.startswith('{"part"') else None
                if line is None:
                    log.write(text)
                elif "limit" in line:
                    doing, until = line["part"], time.monotonic() + line["limit"] + GRACE
                    waiting.remove(doing)
                else:
                    yield line
                    if "status" in line:
                        doing, until = None, deadline + GRACE
        except queue.Empty:
            yield failure(doing or waiting.pop(0), "the process hung and was killed")
            doing = None
        finally:
            end(process)
    if doing:
        yield failure(doing, f"the process ended with {process.returncode}; log.txt says more")
    elif process.returncode not in (0, AGAIN) and waiting:
        yield failure(
            waiting.pop(0), f"the process ended with {process.returncode} before it began; log.txt says more"
        )


def failure(part: str, *lines: str) -> dict:
    return {"part": part, "status": "failed", "last_lines": list(lines)}


def end(process: subprocess.Popen) -> None:
    """Kill a process and all processes that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


# In the process

AGAIN = 75  # exit code of a process that leaves the remaining parts to a new process


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("parts", nargs="+")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    out, sys.stdout = sys.stdout, sys.stderr  # standard output is for figures only
    from benchmarks.gpu.bench import Bench  # late: it imports torch

    bench = Bench(args.output, rehearse=args.rehearse, peer_python=args.peer_python)
    for name in args.parts:
        seconds_left = deadline - time.monotonic()
        if seconds_left < 1:
            return  # no time is left for the other parts
        if not do(name, bench, min(PARTS[name][1] * (PATIENCE if args.rehearse else 1), seconds_left), out=out):
            sys.exit(AGAIN)


def do(name: str, bench, limit: float, out) -> bool:
    """Run a part and print its figures; return whether the process can still be used for other parts."""

    def tell(**line) -> None:
        print(json.dumps({"part": name, **rounded(line)}), file=out, flush=True)

    tell(limit=limit)
    start = time.monotonic()
    module, _, function = PARTS[name][0].partition(".")
    sound, status = True, {"status": "done"}
    try:
        with alarm(limit):
            for line in getattr(import_module(f"benchmarks.gpu.{module}"), function)(bench):
                tell(**line)
        bench.forget()
    except OutOfTime:
        sound, status = (
            False,
            {"status": "out of time", "last_lines": traceback.format_exc().splitlines()[-LAST_LINES:-1]},
        )
    except Exception:
        status = {"status": "failed", "last_lines": traceback.format_exc().splitlines()[-LAST_LINES:]}
        traceback.print_exc()
        sound = still_works(bench)
    tell(**status, seconds=time.monotonic() - start, device=str(bench) if sound else "")
    return sound


def still_works(bench) -> bool:
    """Whether the device still computes; after some faults every call of CUDA fails."""
    try:
        bench.forget()
        import torch

        return bool((torch.ones(8, device=bench.device) + 1).sum() == 16)
    except Exception:
        return False


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the `with` block after this number of seconds."""

    def ring(*_) -> None:
        raise OutOfTime(f"{seconds:.0f} s were used up")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def rounded(value):
    """The value with all floats rounded to four digits."""
    if isinstance(value, dict):
        return {name: rounded(number) for name, number in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
