"""The parts, and the process that does them: a part that hangs or breaks the device costs itself, not the others."""

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

# name: module and function that gives its figures, a dict each; and the most seconds that it may take
PARTS = {
    "ceilings": ("decoding.ceilings", 25),
    "decoding": ("decoding.decoding", 60),
    "paper": ("decoding.paper", 60),
    "gpu_tests": ("checks.gpu_tests", 95),
    "parity": ("checks.parity", 40),
    "whole_runs": ("runs.whole_runs", 90),
    "profile": ("profiles.steps", 40),
    "other_flights": ("decoding.other_flights", 60),
    "small": ("decoding.small", 30),
    "training": ("training.training", 60),
    "smolvlm": ("vlms.smolvlm", 40),
    "qwen": ("vlms.qwen", 60),
    "embeddings": ("embeddings.embeddings", 30),
}
GRACE = 10  # seconds after its limit in which a part must have noticed
LAST_LINES = 12
PATIENCE = 20  # times the limits, in a rehearsal: a busy CPU is no card


class OutOfTime(BaseException):
    """A part's limit; no `except Exception` of what it runs may keep it."""


def run_parts(waiting: list[str], deadline: float, args: argparse.Namespace) -> Iterator[dict]:
    """The lines of the parts that wait, done by one process until it ends; those that it has begun are taken from the list."""
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
        said: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=lambda: [*map(said.put, process.stdout), said.put(None)], daemon=True).start()
        doing, until = None, deadline + GRACE
        try:
            while (text := said.get(timeout=max(0.1, until - time.monotonic()))) is not None:
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
            yield failure(doing or waiting.pop(0), "the process hung, and was ended")
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
    """Ends a process with all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


# In the process

AGAIN = 75  # the exit code of one that leaves the other parts to a fresh one


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("parts", nargs="+")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    out, sys.stdout = sys.stdout, sys.stderr  # what the parts print is no figure
    from benchmarks.gpu.bench import Bench  # late: it imports torch

    bench = Bench(args.output, rehearse=args.rehearse, peer_python=args.peer_python)
    for name in args.parts:
        left = deadline - time.monotonic()
        if left < 1:
            return  # the others are left out
        if not do(name, bench, min(PARTS[name][1] * (PATIENCE if args.rehearse else 1), left), out):
            sys.exit(AGAIN)


def do(name: str, bench, limit: float, out) -> bool:
    """Does a part and tells its figures; whether the process is as good as before."""

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
    """Whether the device still computes: after some faults, every call of CUDA fails."""
    try:
        bench.forget()
        import torch

        return bool((torch.ones(8, device=bench.device) + 1).sum() == 16)
    except Exception:
        return False


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the block after so many seconds."""

    def ring(*_) -> None:
        raise OutOfTime(f"{seconds:.0f} s were used up")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def rounded(value):
    """JSON with numbers of four digits."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
