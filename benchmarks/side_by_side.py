"""Run capsmith and a peer on the same work in turns; the peer is a process in an environment of its own.

A peer script prints a JSON line when it is ready, and then one for each line that it is sent; see `decoding_peer.py`.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from captioners.coca.onednn import linear

PEERS = Path("runs/peers")
CLIP_PINS = ("open_clip_torch==3.3.0", "transformers==4.49.0")  # open_clip's `generate` fails with transformers 5


def peer_python(name: str, requirements: Sequence[str], *, shared: bool = False) -> Path:
    """The interpreter of an environment with the peer's pinned versions and our torch, made once under runs/peers.

    shared: the environment also has our own packages, so that only what is missing is installed.
    """
    folder = PEERS / name
    python = folder / "bin" / "python"
    pinned = list(requirements) if shared else [f"torch=={torch.__version__.partition('+')[0]}", *requirements]
    done = folder / "requirements.txt"
    is_made = done.exists() and done.read_text().split() == pinned
    if not is_made:
        print(f"making the peer's environment {folder}: {', '.join(pinned)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    if shared:  # each time, because this project may have been moved
        [site] = folder.glob("lib/python*/site-packages")
        (site / "shared.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    if not is_made:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pinned], check=True)
        done.write_text("\n".join(pinned))
    return python


class Peer:
    """A peer's process, which waits while we work."""

    def __init__(self, python: Path, script: str, **options: Any):
        command = [str(python), str(Path(__file__).parent / script), json.dumps(options)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "HF_HUB_OFFLINE": "1"
        }
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ready = self._answer()

    def ask(self, question: Any = None) -> Any:
        """The peer's answer to a JSON question."""
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the peer ended: exit code {self.process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.stdin.close()
        self.process.wait()


class Cost(NamedTuple):
    """The cost of some work: its seconds, and the bytes by which it raised the peak memory (0 if that is not known).

    The memory is that of the card if the work runs on one, else that of the process.
    """

    seconds: float
    peak: int


def alternate(
    ours: Callable[[], None],
    peer: Peer,
    repeats: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Cost, Cost]:
    """Median costs of our work and of the peer's, in alternating turns.

    Each warms up before its turn, because the memory of an idle process may have been paged out. clock: what counts
    our seconds; the peer has to count its own in the same way.
    """
    ours_costs, peer_costs = [], []
    for turn in range(repeats):
        ours()
        ours_costs.append(cost_of(ours, device, clock))
        peer_costs.append(Cost(**peer.ask()))
        print(
            f"turn {turn + 1} of {repeats}: ours {ours_costs[-1].seconds:.2f} s, peer {peer_costs[-1].seconds:.2f} s, "
            f"ratio {peer_costs[-1].seconds / ours_costs[-1].seconds:.1f}",
            flush=True,
        )
    return tuple(Cost(*map(statistics.median, zip(*costs))) for costs in (ours_costs, peer_costs))


def cost_of(function: Callable[[], Any], device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> Cost:
    """The cost of a call, until its work on the device has ended."""
    if is_card(device):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        seconds = seconds_of(function, device)
        return Cost(seconds, torch.cuda.max_memory_allocated(device) - before)
    reset_peak()
    before = memory("VmRSS")
    seconds = seconds_of(function, clock=clock)
    return Cost(seconds, memory("VmHWM") - before)


def reset_peak() -> None:
    """Reset the process's peak memory, on Linux."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> int:
    """The process's memory in bytes: VmRSS is the present one, VmHWM the peak. 0 if the system is not Linux."""
    status = Path("/proc/self/status")
    match = re.search(rf"{field}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(match[1]) * 1024 if match else 0


def is_card(device: str) -> bool:
    return device.startswith("cuda")


def synchronise(device: str) -> None:
    """Wait until a card has finished its work; nothing to do for a CPU."""
    if is_card(device):
        torch.cuda.synchronize(device)


def product_rate(dtype: torch.dtype, device: str = "cpu", size: int | None = None) -> float:
    """FLOP/s of products of square matrices with random numbers.

    On a CPU this is the best of many products, by torch or by oneDNN, whichever is faster here. On a card it is the
    median, with 8192 rows.
    """
    if is_card(device):
        size = size or 8192
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        return 2 * size**3 / median_on_card(lambda: a @ b)
    size = size or 1024
    a, b = torch.randn(2, size, size, dtype=dtype)
    return (
        2 * size**3 / min(seconds_of(product) for product in (lambda: a @ b, lambda: linear(a, b)) for _ in range(50))
    )


def bandwidth(device: str = "cpu", megabytes: int | None = None) -> float:
    """Bytes/s for memory larger than the caches: bytes that a sum reads on a CPU, or a copy reads and writes on a
    card.
    """
    if is_card(device):
        source = torch.randn((megabytes or 4096) * 2**18, device=device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / median_on_card(lambda: target.copy_(source))
    memory = torch.ones((megabytes or 1024) * 2**18)
    return memory.nbytes / min(seconds_of(memory.sum) for _ in range(10))


def median_on_card(function: Callable[[], Any], repeats: int = 20) -> float:
    """Median seconds of a call by the card's own clock, after warming up."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for _ in range(3):
        function()
    for event in events[:-1]:
        event.record()
        function()
    events[-1].record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in zip(events, events[1:])) / 1e3


def seconds_of(
    function: Callable[[], Any], device: str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of a call, until its work on the device has ended."""
    synchronise(device)
    start = clock()
    function()
    synchronise(device)
    return clock() - start
