"""What a run does to its shards, whichever engine does it; and the embedded engine, which does it in this process."""

import errno
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from captioners.device import choose_device
from captioners.ranks import Rank, processes_here
from captioners.server.load import Spent
from generate.runs.config import RunConfig
from generate.runs.inputs import hashed
from generate.runs.workers import Stopwatch
from imagetext.lock import LockLost
from imagetext.sets.room import ColumnClash
from imagetext.shown import Progress, say
from imagetext.sources import Shard

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
MOST_WORKERS = 32  # that prepare pictures, unless more are asked for; an H100 needs about 16


@dataclass
class Pace(Stopwatch):
    """How fast a run goes, from its first picture on."""

    pictures: int = 0
    captions: int = 0
    failed: int = 0
    start: float = field(default_factory=time.monotonic)
    busy: float | None = None  # seconds of all processes together; of this one unless given
    tell: Callable[[], None] = lambda: None  # is called at each picture

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
        captions = f"{self.captions / self.seconds:.1f} captions/s, " if self.captions else ""
        return (
            f"{self.pictures_per_second:.1f} pictures/s, {captions}the model waited "
            f"{self.waited / (self.busy or self.seconds):.0%} of the time; {self.failed:,} failed"
        )


class Loaded(NamedTuple):
    """What a process has loaded: the run's fingerprint as it came out there, a line on each model, and files that go beside `run.json`."""

    fingerprint: dict[str, Any]
    models: list[str]
    beside: Mapping[str, bytes] = {}


class Work(Protocol):
    """What is done to a shard, by a process that has loaded the models for it; before that, it can travel to another."""

    doing: str  # in the progress bar
    unit: str  # one of a shard's samples
    instead: str  # of an output that is the input: the way that works

    @property
    def config(self) -> RunConfig:
        """What the run was asked for."""
        ...

    def load(self, device: str, settled: Mapping[str, Any]) -> Loaded:
        """Load the models; what the run has `settled` in its fingerprint stays as it is.

        Raises: ValueError where one cannot be loaded, or does not fit the configuration.
        """
        ...

    def write(self, shard: Shard, pace: Pace, following: Shard | None = None) -> None:
        """Write one shard, counting its samples; ColumnClash, LockLost and Spent end the run, any other exception fails the shard.

        following: the next shard, of which the first samples may be read once this one is read to its end.
        """

    def close(self) -> None:
        """End what was started to write shards."""


class Engine(Protocol):
    """Where and by how many processes the work is done."""

    def load(self, work: Work, settled: Mapping[str, Any]) -> Loaded:
        """As of the work, in a process of those that will do it."""
        ...

    def do(self, work: Work, shards: Sequence[Shard]) -> Pace:
        """Write the shards; one that fails is logged and left for the next run."""
        ...


class Embedded:
    """This process, which does one shard after the other."""

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
        ):

            def tell() -> None:
                progress.set_postfix_str(str(pace), refresh=False)
                progress.update(pace.pictures - progress.n)

            pace, shards = Pace(tell=tell), list(map(hashed, shards))
            for number, (shard, following) in enumerate(zip(shards, [*shards[1:], None]), 1):
                progress.set_description(f"{work.doing} {shard.name} ({number}/{len(shards)})")
                try:
                    work.write(shard, pace, following)
                except (ColumnClash, LockLost, Spent, BrokenPipeError):  # of the terminal's: nobody reads on
                    raise
                except Exception as error:  # a store, a damaged file, the model: the shard fails, the run goes on
                    logger.error(
                        "shard %s of %s failed: %s",
                        shard.name,
                        shard.path,
                        error,
                        exc_info=not isinstance(error, (OSError, ValueError)),
                    )
                    if is_full(error):  # the other shards would fail as well
                        raise
        if pace.pictures:
            say(pace)
        return pace


def is_full(error: Exception) -> bool:
    """Whether a disk, or the user's part of it, is full."""
    return isinstance(error, OSError) and error.errno in FULL


def processes_wanted(config: RunConfig) -> int:
    """How many processes the run is for on this machine."""
    if config.engine == "ray":
        return 1
    return config.num_processes or max(1, torch.cuda.device_count() if config.device in (None, "cuda") else 1)


def workers_wanted(config: RunConfig) -> int:
    """How many processes prepare pictures for this one: as asked for, or one less than its share of the machine's cores."""
    if config.num_workers is not None or config.engine == "ray":
        return 2 if config.num_workers is None else config.num_workers
    cores = len(os.sched_getaffinity(0)) // processes_here()
    return min(max(2, cores - 1), MOST_WORKERS)
