"""A worker of a Ray cluster: what it gets of its node, and how it writes shards, one at a time."""

import gc
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
from imagetext.sample import Shard
from imagetext.sets.room import ColumnClash
from imagetext.shards import read_marker
from imagetext.shown import at_terminal

DEATHS = 3  # if so many workers have died on one shard, it is set aside


class Place(NamedTuple):
    """What a worker gets: GPUs of its node, the folder that relative paths start from, and a share in the lock."""

    gpus: float
    folder: str
    job: str = ""  # the job whose lock of the output folder the worker shares
    workers_on_node: int = 1  # the most workers of any node, which share its memory

    def load(self, work: Work, settled: Mapping[str, Any]) -> Loaded:
        """Load the models, one process of a node after the other, so that only the first downloads weights."""
        with suppress(OSError):  # a node without the folder may need none of its files
            os.chdir(self.folder)
        os.environ["LOCAL_WORLD_SIZE"] = str(self.workers_on_node)  # as torchrun says how many share a machine
        with FileLock(os.path.join(tempfile.gettempdir(), f"capsmith-{os.getuid()}.lock")):
            return work.load(choose_device(work.config.device or ("cuda" if self.gpus else "cpu")), settled)


class Worker:
    """A process of the pool: it loads the models once, and then writes one shard at a time."""

    def __init__(self, work: Work, place: Place, tally: "ray.actor.ActorHandle[Tally]"):
        self.work, self.place, self.tally = work, place, tally
        self.name = f"process {os.getpid()} on {socket.gethostname()}"
        self.is_loaded, self.last_report = False, 0.0
        at_terminal().__enter__()  # until the process ends
        self.warnings = _Warnings()
        logging.getLogger().addHandler(self.warnings)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list]:
        """Write a shard; returns its name and path, how it ended and why, and the warnings that were logged."""
        shard = cloudpickle.loads(batch["shard"][0])
        how, why = self.write(shard)
        return {
            "shard": [shard.name],
            "path": [shard.path],
            "how": [how],
            "why": [why],
            "warnings": ["\n".join(self.warnings.drain())],
        }

    def write(self, shard: Shard) -> tuple[str, str]:
        """Write a shard unless it is done; returns how that ended, and why."""
        pace = Pace(tell=lambda: self.report(shard, pace))
        deaths = ray.get(self.tally.begin.remote(shard.name, self.name))  # before anything can kill this process
        if deaths is None:
            return "stopped", ""
        try:
            if len(deaths) >= DEATHS:
                names = ", ".join(deaths)
                return "failed", f"set aside: {len(deaths)} workers died on it, killed or out of memory: {names}"
            self.load()
            # A worker that has died since may have finished the shard before.
            is_done = read_marker(self.work.config.output, shard.name) is not None
            if self.work.config.retry_failed or not is_done:
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
            is_expected = isinstance(error, (OSError, ValueError))
            return how, str(error) if is_expected else f"{error}\n{traceback.format_exc()}"
        finally:
            ray.get(self.tally.end.remote(shard.name, _counts(pace)))

    def load(self) -> None:
        """Load the models, if this has not been done yet.

        Raises: _Refused where models or versions are not those of `run.json`, or the output folder is not there.
        """
        if self.is_loaded:
            return
        folder = self.work.config.output
        try:
            run = read_run(folder)
            if run is None:
                raise ValueError(f"finds no run in {folder}, which all nodes must see")
            if differing := differences(run, self.place.load(self.work, run).fingerprint):
                first_line = f"has loaded other models, versions or settings than the run in {folder} has:"
                raise ValueError("\n  ".join([first_line, *differing]))
            if self.place.job:
                FolderLock(folder, guest_of=self.place.job).__enter__()  # until the process ends
        except (ValueError, OSError) as error:
            raise _Refused(str(error)) from error
        gc.freeze()  # until the process ends, as in `generate.runs.protocol.present_objects_kept`
        self.is_loaded = True

    def report(self, shard: Shard, pace: Pace) -> None:
        """Once a second, report the shard's counts to the tally. Raises: _Stopped where the run is stopped."""
        if time.monotonic() - self.last_report > 1:
            self.last_report = time.monotonic()
            if ray.get(self.tally.count.remote(shard.name, _counts(pace))):
                raise _Stopped


class _Stopped(Exception):
    """The run is stopped: the worker leaves the shard, and nothing of it is kept."""


class _Refused(ValueError):
    """The worker would not write the same as the others."""


class _Warnings(logging.Handler):
    """Collects warnings in a process that has no terminal."""

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
