"""Us and a peer on the same work in one run, alternating: the peer is a process in an environment of its own.

A peer script prints a JSON line when it is ready, then one for each line it is sent; see `decoding_peer.py`.
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

from captioners.linear import linear

PEERS = Path("runs/peers")
CLIP_PINS = ("open_clip_torch==3.3.0", "transformers==4.49.0")  # with transformers 5 open_clip's `generate` fails


def peer_python(name: str, requirements: Sequence[str]) -> Path:
    """The interpreter of an environment with the peer's pins and our own torch, made once under runs/peers."""
    folder = PEERS / name
    python = folder / "bin" / "python"
    wanted = [f"torch=={torch.__version__.partition('+')[0]}", *requirements]
    done = folder / "requirements.txt"
    if not done.exists() or done.read_text().split() != wanted:
        print(f"making the peer's environment {folder}: {', '.join(wanted)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
        done.write_text("\n".join(wanted))
    return python


class Peer:
    """A peer's process, kept waiting while we work."""

    def __init__(self, python: Path, script: str, **options: Any):
        command = [str(python), str(Path(__file__).parent / script), json.dumps(options)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
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
    """Of one piece of work: seconds, and bytes by which it raised the process's memory at most (0 where Linux cannot say)."""

    seconds: float
    peak: int


def alternate(ours: Callable[[], None], peer: Peer, repeats: int) -> tuple[Cost, Cost]:
    """Median costs of ours and of the peer, turn by turn; each warms up before its turn, for idle memory may be far away."""
    mine, theirs = [], []
    for turn in range(repeats):
        ours()
        reset_peak()
        before = memory("VmRSS")
        seconds = _seconds(ours)
        mine.append(Cost(seconds, memory("VmHWM") - before))
        theirs.append(Cost(**peer.ask()))
        print(f"turn {turn + 1} of {repeats}: ours {mine[-1].seconds:.2f} s, peer {theirs[-1].seconds:.2f} s, "
              f"ratio {theirs[-1].seconds / mine[-1].seconds:.1f}", flush=True)
    return tuple(Cost(*map(statistics.median, zip(*costs))) for costs in (mine, theirs))


def reset_peak() -> None:
    """Forgets the process's peak memory, on Linux."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> int:
    """VmRSS or VmHWM, the process's memory now or at its peak, in bytes; 0 but on Linux."""
    status = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def product_rate(dtype: torch.dtype, size: int = 1024, repeats: int = 50) -> float:
    """FLOP/s of the best of many square matrix products, torch's own or by oneDNN, whichever is faster here."""
    a, b = torch.randn(2, size, size, dtype=dtype)
    return 2 * size**3 / min(_seconds(product) for product in (lambda: a @ b, lambda: linear(a, b)) for _ in range(repeats))


def bandwidth(megabytes: int = 1024, repeats: int = 10) -> float:
    """Bytes/s that a sum over memory larger than the caches reads."""
    memory = torch.ones(megabytes * 2**18)
    return memory.nbytes / min(_seconds(memory.sum) for _ in range(repeats))


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
