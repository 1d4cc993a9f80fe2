"""The scale-out engine: Ray Data's elastic pool of workers takes the shards, on this machine or on the nodes of a cluster.

settle what the run is, on a worker's place -> the shards to do, a row and a block each -> workers -> how each ended

Ray replaces a worker that dies and has its shard tried again, for ever; after some deaths on one shard, the next worker sets it aside.
"""

import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import ray
import ray.actor
import ray.data
import ray.exceptions
from ray import cloudpickle

from generate.runs.config import RunConfig
from generate.runs.protocol import Loaded, Pace, Work
from generate.runs.ray_tally import Tally
from generate.runs.ray_worker import Place, Worker
from imagetext.lock import job_of
from imagetext.sets.room import ColumnClash
from imagetext.shown import Progress, say
from imagetext.sources import Shard

logger = logging.getLogger(__name__)

BUSY = 0.75  # share of the workers from which on more come, while shards wait and there is room
CPUS = 1  # of a worker
OBJECT_STORE = 10**8  # bytes, of a cluster of this machine alone: only names of shards lie in it
PATIENCE = 30  # seconds that workers have to leave their shards where a run is stopped, and a head to be there again
ANSWER = 5  # seconds that the tally has to answer, or the head
HOW_TO_CONNECT = """\
  A cluster begins with `ray start --head --port 6379` on one node and `ray start --address HOST:6379` on each other.
  If it was begun with a token, set RAY_AUTH_MODE=token here and on each node, and copy ~/.ray/auth_token of the first node to them
  (or set RAY_AUTH_TOKEN): without it Ray says no more than that it failed to connect."""


class Cluster:
    """The engine, as a context manager: connected to a cluster, or with one that is this machine and ends with it."""

    def __init__(self, config: RunConfig):
        self.config = config

    def __enter__(self) -> Self:
        self.own = not ray.is_initialized()
        if self.own:
            connect(self.config.ray_address)
        try:
            self.place, self.least, self.most = plan(self.config, ray.nodes())
        except ValueError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        if self.own:
            ray.shutdown()

    def load(self, work: Work, settled: Mapping[str, Any]) -> Loaded:
        """As of the work, at a worker's place, so that what is settled there suits a worker.

        Raises: ChildProcessError where that process dies.
        """
        task = ray.remote(Place.load).options(num_cpus=CPUS, num_gpus=self.place.gpus, max_retries=0)
        try:
            return ray.get(task.remote(self.place, work, settled))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise ChildProcessError(
                f"the worker that was to load the models died, killed or out of memory: {error}"
            ) from error

    def do(self, work: Work, shards: Sequence[Shard]) -> Pace:
        """Write the shards; one that fails, or kills its workers, is logged and left for the next run.

        Raises: ColumnClash; ValueError where a worker has other weights or versions than the run, or does not see its folder;
        OSError where no other shard could be written either, or the cluster's head is gone.
        """
        pace = Pace(busy=0.0)
        if not shards:
            return pace
        tally, ends, head = Tally.on_this_node(), queue.SimpleQueue(), Head()
        feeder = threading.Thread(target=self._feed, args=(work, shards, tally, ends), daemon=True)
        feeder.start()
        try:
            with Progress(desc=work.doing, unit="shard", total=len(shards), mininterval=1) as progress:
                for end in _until_none(ends):
                    head.check()
                    if end:
                        _tell(end)
                        progress.update()
                    with suppress(
                        ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError
                    ):  # the head is looked at again
                        if total := ray.get(tally.total.remote(), timeout=ANSWER):
                            pictures, captions, failed, pace.waited, pace.busy = total
                            pace.counts = int(pictures), int(captions), int(failed)
                    if not pace.pictures:  # the workers are on their way
                        pace.start = time.monotonic()
                    progress.set_postfix_str(f"{pace.pictures:,} {work.unit}s, {pace}")
        except ConnectionError:  # the head has gone, and with it whoever could stop a worker
            raise
        except BaseException as error:  # interrupted, or the run cannot go on: no shard is left half written
            if isinstance(error, ray.exceptions.RayError):  # of the pool, which may just have noticed sooner
                head.wait_for_answer()
            with suppress(ray.exceptions.RayError):  # some may have died
                ray.get(tally.stop.remote(), timeout=PATIENCE)
                feeder.join(PATIENCE)
            raise
        say(pace)
        return pace

    def _feed(
        self, work: Work, shards: Sequence[Shard], tally: "ray.actor.ActorHandle[Tally]", ends: queue.SimpleQueue
    ) -> None:
        """Give the shards to the pool; how each ended goes into the queue, and at last None, or what ended the pool."""
        try:
            # of workers with one shard each at most 100 % are busy, and Ray's own threshold is 175 %; from ours on, a third more come
            ray.data.DataContext.get_current().autoscaling_config.actor_pool_util_upscaling_threshold = BUSY
            pool = ray.data.ActorPoolStrategy(
                min_size=min(self.least, len(shards)),
                max_size=min(self.most, len(shards)),
                max_tasks_in_flight_per_actor=1,
            )
            rows = ray.data.from_items(
                [{"shard": cloudpickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards)
            )
            for end in rows.map_batches(
                Worker,
                fn_constructor_args=(work, self.place, tally),
                compute=pool,
                batch_size=1,
                num_cpus=CPUS,
                num_gpus=self.place.gpus,
            ).iter_rows():
                ends.put(end)
                if end["how"] == "stopped" and not ray.get(tally.busy.remote()):
                    break
            ends.put(None)
        except BaseException as error:
            ends.put(error)


def connect(address: str | None) -> None:
    """Connect to the cluster, or start one on this machine that ends with this process; ValueError where there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_BACKEND_LOG_LEVEL", "fatal"
    )  # what else is said in this process stays in Ray's own files
    alone = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        if address not in (None, "auto"):  # Ray itself tries for many minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process, and say nothing
    except (OSError, ray.exceptions.RayError) as error:
        raise ValueError(f"--ray-address: {address}: {error}\n{HOW_TO_CONNECT}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def plan(config: RunConfig, nodes: Sequence[Mapping[str, Any]]) -> tuple[Place, int, int]:
    """What a worker gets, and how many there are at least and at most, on these nodes as `ray.nodes()` lists them; told, too.

    Raises: ValueError where there is no room for the least, which Ray would wait for without end.
    """
    held = [node["Resources"] for node in nodes if node["Alive"]]
    cpus, all_gpus = (sum(resources.get(kind, 0) for resources in held) for kind in ("CPU", "GPU"))
    gpus = config.gpus_per_worker if config.gpus_per_worker is not None else float(all_gpus > 0)
    room = sum(_room(resources, gpus) for resources in held)
    least, _, most = (config.concurrency or str(max(1, room))).partition(",")
    least, most = int(least), int(most or least)
    cluster = f"{len(held)} nodes with {cpus:g} CPUs and {all_gpus:g} GPUs"
    if least > room:
        instead = (
            f"say --concurrency {room}" if room else "say --gpus-per-worker 0" if gpus and cpus else "add nodes to it"
        )
        raise ValueError(
            f"--concurrency: {least} workers, each with {CPUS} CPU and {gpus:g} GPUs, would wait for ever: the cluster "
            f"has {cluster}, room for {room}; {instead}"
        )
    say(
        f"cluster: {cluster}; {least if least == most else f'{least} to {most}'} workers, each with {CPUS} CPU and {gpus:g} GPUs"
    )
    return Place(gpus, os.getcwd(), job_of(config.output)), least, most


def _room(resources: Mapping[str, float], gpus: float) -> int:
    """How many workers a node holds."""
    by_cpus, held = int(resources.get("CPU", 0) // CPUS), int(resources.get("GPU", 0))
    if not gpus:
        return by_cpus
    return min(
        by_cpus, held * int(round(1 / gpus, 6)) if gpus < 1 else int(held // gpus)
    )  # the shares of one GPU lie on it


class Head:
    """The head of the cluster: 60 seconds after it has gone, Ray ends this process without a word."""

    def __init__(self) -> None:
        self.address, self.seen = ray.get_runtime_context().gcs_address, time.monotonic()

    def wait_for_answer(self) -> None:
        """Returns once the head is there; raises ConnectionError as `check` does."""
        while not self.check():
            time.sleep(1)

    def check(self) -> bool:
        """Whether the head is there, or one that was begun again; ConnectionError where it has been gone for PATIENCE seconds."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
            self.seen = time.monotonic()
            return True
        except OSError as error:
            if time.monotonic() - self.seen >= PATIENCE:
                raise ConnectionError(
                    f"the head of the Ray cluster, {self.address}, has gone: {error}; what is done stays, and "
                    "the same command goes on once a cluster is there"
                ) from error
            return False


def _until_none(ends: queue.SimpleQueue) -> Iterator[Mapping[str, str] | None]:
    """What comes through the queue, None in every second without anything; raises what comes as an exception."""
    while True:
        try:
            end = ends.get(timeout=1)
        except queue.Empty:
            yield None
            continue
        if end is None:
            return
        if isinstance(end, BaseException):
            raise end
        yield end


def _tell(end: Mapping[str, str]) -> None:
    """Log how a shard ended, as if it had been done here; raise what ends the run."""
    if end["warnings"]:
        for line in end["warnings"].split("\n"):
            logger.warning("%s", line)
    if end["how"] == "refused":
        raise ValueError(end["why"])
    if end["how"] == "clash":
        raise ColumnClash(end["why"])
    if end["how"] in ("failed", "over"):
        first, *others = end["why"].split("\n")
        logger.error("shard %s of %s failed: %s", end["shard"], end["path"], first)
        for line in others:  # of a traceback
            logger.error("  %s", line)
    if end["how"] == "over":
        raise OSError(end["why"])
