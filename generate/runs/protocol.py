"""The protocol between a command and the engine that runs it, and the embedded engine, which works in this process."""

import errno
import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from captioners.device import choose_device
from captioners.machine import free_cores
from captioners.ranks import Rank, processes_here
from captioners.server.load import Spent
from generate.runs.config import RunConfig
from generate.runs.inputs import hashed
from generate.runs.workers import Stopwatch
from imagetext.lock import LockLost
from imagetext.sample import Shard
from imagetext.sets.room import ColumnClash
from imagetext.shown import Progress, say

logger = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
MOST_WORKERS = 32  # workers that prepare pictures, unless more are asked for; an H100 needs about 16


@dataclass
class Pace(Stopwatch):
    """What a run has done so far, and how fast.

    start: time of the first picture. tell: is called after each picture.
    busy: seconds that all processes together have worked; None where only this one works.
    """

    pictures: int = 0
    captions: int = 0
    failed: int = 0
    start: float = field(default_factory=time.monotonic)
    busy: float | None = None
    tell: Callable[[], object] = lambda: None

    def count(self, failed: bool, captions: int = 0) -> None:
        self.pictures += 1
        self.captions += captions
        self.failed += failed
        self.tell()

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.pictures, self.captions, self.failed

    @counts.setter
    def counts(self, counts: tuple[int, int, int]) -> None:
        self.pictures, self.captions, self.failed = counts
        self.tell()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / self.seconds

    def __str__(self) -> str:
        rates = [f"{self.pictures_per_second:.1f} pictures/s"]
        if self.captions:
            rates.append(f"{self.captions / self.seconds:.1f} captions/s")
        if self.waited:  # only captioning measures it
            rates.append(f"the model waited {self.waited / (self.busy or self.seconds):.0%} of the time")
        return f"{', '.join(rates)}; {self.failed:,} failed"


class Loaded(NamedTuple):
    """What loading the models gives.

    fingerprint: of the run, with all that was settled while loading. models: some lines on each model, to be printed.
    beside: files to write beside `run.json`, by name.
    """

    fingerprint: dict[str, Any]
    models: list[str]
    beside: Mapping[str, bytes] = {}


class Work(Protocol):
    """What a command does to each shard. Before its models are loaded, it can be sent to another process."""

    doing: str  # what it does, for the progress bar, such as "captioning"
    unit: str  # what a sample of a shard is called
    instead: str  # what to do instead, where the output is the input

    @property
    def config(self) -> RunConfig:
        """The configuration of the run."""
        ...

    def load(self, device: str, settled: Mapping[str, Any]) -> Loaded:
        """Load the models.

        settled: the fingerprint of the run if it was begun earlier, else {}; what stands there is used again.
        Raises: ValueError where a model cannot be loaded, or does not fit the configuration.
        """
        ...

    def write(self, shard: Shard, pace: Pace, following: Shard | None = None) -> None:
        """Write one shard, and count its samples.

        ColumnClash, LockLost and Spent end the run; any other exception fails the shard.
        following: the next shard; its first samples may be read once this shard is read to its end.
        """

    def close(self) -> None:
        """End the processes and threads that were started to write shards."""


class Engine(Protocol):
    """Where, and by how many processes, the work is done."""

    def load(self, work: Work, settled: Mapping[str, Any]) -> Loaded:
        """Call the work's `load` in one of the processes that will do the work."""
        ...

    def do(self, work: Work, shards: Sequence[Shard]) -> Pace:
        """Write the shards. A shard that fails is logged and left for the next run."""
        ...


class Embedded:
    """The engine that does one shard after the other in this process."""

    def __init__(self, rank: Rank):
        self.rank = rank

    def load(self, work: Work, settled: Mapping[str, Any]) -> Loaded:
        return work.load(choose_device(work.config.device, self.rank.local), settled)

    def do(self, work: Work, shards: Sequence[Shard]) -> Pace:
        with (
            Progress(
                desc=work.doing, unit=work.unit, mininterval=1, disable=not shards, position=self.rank.local
            ) as progress,
            closing(work),
            present_objects_kept(),
        ):
            pace, shards = Pace(tell=lambda: progress.update(pace.pictures - progress.n)), list(map(hashed, shards))
            progress.note = pace
            for number, (shard, following) in enumerate(zip(shards, [*shards[1:], None]), 1):
                progress.set_description(f"{work.doing} {shard.name} ({number}/{len(shards)})")
                try:
                    work.write(shard, pace, following)
                except (ColumnClash, LockLost, Spent, BrokenPipeError):  # BrokenPipeError: nobody reads the terminal
                    raise
                except Exception as error:  # a store, a damaged file, the model: the shard fails, the run goes on
                    is_unexpected = not isinstance(error, (OSError, ValueError))
                    message = "shard %s of %s failed: %s"
                    logger.error(message, shard.name, shard.path, error, exc_info=is_unexpected)
                    if is_full(error):  # all other shards would fail as well
                        raise
        if pace.pictures:
            say(pace)
        return pace


@contextmanager
def present_objects_kept() -> Iterator[None]:
    """A context in which Python does not look for garbage among the objects that exist now.

    Those of models and libraries are many, and they stay. A run makes so many objects that Python would go through all
    of them again and again, which takes a sixth of the main process's time.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def is_full(error: Exception) -> bool:
    """Return whether the error says that a disk, or the user's quota, is full."""
    return isinstance(error, OSError) and error.errno in DISK_FULL


def processes_wanted(config: RunConfig) -> int:
    """Return how many processes are to work on this machine: as configured, or one for each GPU."""
    if config.engine == "ray":
        return 1
    return config.num_processes or max(1, torch.cuda.device_count() if config.device in (None, "cuda") else 1)


def workers_wanted(config: RunConfig) -> int:
    """Return how many workers prepare pictures for this process: as configured, or its share of the cores less one."""
    if config.num_workers is not None:
        return config.num_workers
    if config.engine == "ray":
        return 2
    cores = free_cores() // processes_here()
    return min(max(2, cores - 1), MOST_WORKERS)
