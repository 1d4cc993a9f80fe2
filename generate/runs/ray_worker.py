"""A worker of a Ray cluster: what it has of its node, and how it writes the shards that it is given, one at a time."""

import logging
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.actor
from filelock import FileLock
from ray import cloudpickle

from captioners.device import choose_device
from captioners.server.load import Spent
from generate.runs.inputs import hashed
from generate.runs.manifest import differences, read_run
from generate.runs.protocol import Loaded, Pace, Work, is_full
from generate.runs.ray_tally import Tally
from imagetext.lock import FolderLock, LockLost
from imagetext.sets.room import ColumnClash
from imagetext.shards import read_marker
from imagetext.shown import at_terminal
from imagetext.sources import Shard

DEATHS = 3  # of workers on one shard, which is then set aside


class Place(NamedTuple):
    """What a worker has of its node beside a CPU, from where relative paths lead, and whose lock of the output it shares."""

    gpus: float
    folder: str
    job: str = ""

    def load(self, work: Work, settled: Mapping[str, Any]) -> Loaded:
        """Load the models, one process of a node after the other: so the first fetches weights for all."""
        with suppress(OSError):  # a node that lacks it may need none of its files
            os.chdir(self.folder)
        with FileLock(os.path.join(tempfile.gettempdir(), f"capsmith-{os.getuid()}.lock")):
            return work.load(choose_device(work.config.device or ("cuda" if self.gpus else "cpu")), settled)


class Worker:
    """A process of the pool: it loads the models once, then writes the shards that it is given, one at a time."""

    def __init__(self, work: Work, place: Place, tally: "ray.actor.ActorHandle[Tally]"):
        self.work, self.place, self.tally = work, place, tally
        self.name = f"process {os.getpid()} on {socket.gethostname()}"
        self.loaded, self.told = False, 0.0
        at_terminal().__enter__()  # which it leaves when it ends
        self.warnings = _Warnings()
        logging.getLogger().addHandler(self.warnings)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list]:
        """A shard's name and path, how it ended, why, and what was warned of on the way."""
        shard = cloudpickle.loads(batch["shard"][0])
        how, why = self.take(shard)
        return {
            "shard": [shard.name],
            "path": [shard.path],
            "how": [how],
            "why": [why],
            "warnings": ["\n".join(self.warnings.drain())],
        }

    def take(self, shard: Shard) -> tuple[str, str]:
        """Write a shard unless it is done: how that ended, and why so."""
        pace = Pace(tell=lambda: self.tell(shard, pace))
        deaths = ray.get(
            self.tally.begin.remote(shard.name, self.name)
        )  # counted before anything can kill this process
        if deaths is None:
            return "stopped", ""
        try:
            if len(deaths) >= DEATHS:
                return (
                    "failed",
                    f"set aside: {len(deaths)} workers died on it, killed or out of memory: {', '.join(deaths)}",
                )
            self.load()
            again = self.work.config.retry_failed
            if (
                again or read_marker(self.work.config.output, shard.name) is None
            ):  # else it was done by one that died after that
                self.work.write(hashed(shard), pace)
            return "done", ""
        except _Stopped:
            return "stopped", ""
        except _Refused as error:
            return "refused", f"{self.name}: {error}"
        except ColumnClash as error:
            return "clash", str(error)
        except Exception as error:
            how = "over" if isinstance(error, (LockLost, Spent)) or is_full(error) else "failed"
            return how, f"{error}" if isinstance(
                error, (OSError, ValueError)
            ) else f"{error}\n{traceback.format_exc()}"
        finally:
            ray.get(self.tally.end.remote(shard.name, _counts(pace)))

    def load(self) -> None:
        """Load the models, the first time; they, and the versions here, must be those of `run.json`."""
        if self.loaded:
            return
        folder = self.work.config.output
        try:
            run = read_run(folder)
            if run is None:
                raise ValueError(f"finds no run in {folder}, which all nodes must see")
            if others := differences(run, self.place.load(self.work, run).fingerprint):
                raise ValueError("\n  ".join([f"has loaded what the run in {folder} is not made with:", *others]))
            if self.place.job:
                FolderLock(folder, guest_of=self.place.job).__enter__()  # which it leaves when it ends
        except (ValueError, OSError) as error:
            raise _Refused(str(error)) from error
        self.loaded = True

    def tell(self, shard: Shard, pace: Pace) -> None:
        """Once a second, have the shard's pictures counted, and hear whether to leave it."""
        if time.monotonic() - self.told > 1:
            self.told = time.monotonic()
            if ray.get(self.tally.count.remote(shard.name, _counts(pace))):
                raise _Stopped


class _Stopped(Exception):
    """The run is stopped: the shard is left, and nothing of it."""


class _Refused(ValueError):
    """A worker that cannot do as the others do."""


class _Warnings(logging.Handler):
    """What is warned of in a process that has no terminal."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def drain(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


def _counts(pace: Pace) -> tuple[float, ...]:
    return *pace.counts, pace.waited, pace.seconds
