"""The Ray engine: an elastic pool of workers of Ray Data does the shards, on this machine or on a cluster.

load the models once where a worker would run -> the shards to do, one row and block each -> workers -> how each ended

Ray replaces a worker that dies and tries its shard again without end. After DEATHS deaths on one shard, the next
worker sets the shard aside.
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
from imagetext.sample import Shard
from imagetext.sets.room import ColumnClash
from imagetext.shown import Progress, say

logger = logging.getLogger(__name__)

BUSY = 0.75  # if this share of the workers is busy, more are started, while shards wait and there is room
CPUS = 1  # CPUs of a worker
OBJECT_STORE = 10**8  # bytes; in a cluster of this machine alone, where it holds only the names of shards
PATIENCE = 30  # seconds that workers have to leave their shards when a run is stopped, and a lost head to come back
ANSWER = 5  # seconds in which the tally, or the head, has to answer
HOW_TO_CONNECT = """\
  A cluster begins with `ray start --head --port 6379` on one node and `ray start --address HOST:6379` on each other.
  If it was begun with a token, set RAY_AUTH_MODE=token here and on each node, and copy ~/.ray/auth_token of the first
  node to them (or set RAY_AUTH_TOKEN). Without the token, Ray says only that it failed to connect."""


class Cluster:
    """The Ray engine; as a context manager, it connects to a cluster, or starts one on this machine until the exit."""

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
        """Call the work's `load` in a process like a worker's, so that what is settled there fits the workers.

        Raises: as the work's `load`; ChildProcessError where that process dies.
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
        """Write the shards. A shard that fails, or whose workers die, is logged and left for the next run.

        Raises: ColumnClash; ValueError where a worker has other weights or versions than the run, or does not see its
        folder; OSError where no other shard could be written either, or the cluster's head is gone.
        """
        pace = Pace(busy=0.0)
        if not shards:
            return pace
        tally, ends, head = Tally.on_this_node(), queue.SimpleQueue(), ClusterHead()
        feeder = threading.Thread(target=self._feed, args=(work, shards, tally, ends), daemon=True)
        feeder.start()
        try:
            with Progress(desc=work.doing, unit="shard", total=len(shards), mininterval=1) as progress:
                for end in _until_none(ends):
                    head.check()
                    if end:
                        _log(end)
                        progress.update()
                    # Where the tally does not answer, the next turn checks the head again.
                    with suppress(ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
                        if total := ray.get(tally.total.remote(), timeout=ANSWER):
                            pictures, captions, failed, pace.waited, pace.busy = total
                            pace.counts = int(pictures), int(captions), int(failed)
                    if not pace.pictures:  # the workers are still starting
                        pace.start = time.monotonic()
                    progress.set_postfix_str(f"{pace.pictures:,} {work.unit}s, {pace}")
        except ConnectionError:  # without the head, no worker can be stopped
            raise
        except BaseException as error:  # interrupted, or the run cannot go on: let workers leave their shards
            if isinstance(error, ray.exceptions.RayError):  # the pool may have noticed first that the head is gone
                head.wait_for_answer()
            with suppress(ray.exceptions.RayError):  # some workers may have died
                ray.get(tally.stop.remote(), timeout=PATIENCE)
                feeder.join(PATIENCE)
            raise
        say(pace)
        return pace

    def _feed(
        self, work: Work, shards: Sequence[Shard], tally: "ray.actor.ActorHandle[Tally]", ends: queue.SimpleQueue
    ) -> None:
        """Give the shards to the pool, and put into the queue how each ended; at last None, or the pool's error."""
        try:
            # Workers with one shard each are busy to at most 100 %; Ray's default threshold is 175 %.
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
    """Connect to the cluster, or start one on this machine that ends with this process.

    Raises: ValueError where there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # all other messages are in Ray's own log files
    own_cluster = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        if address not in (None, "auto"):  # Ray itself would try for many minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own_cluster)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's handler would end this process without a message
    except (OSError, ray.exceptions.RayError) as error:
        raise ValueError(f"--ray-address: {address}: {error}\n{HOW_TO_CONNECT}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def plan(config: RunConfig, nodes: Sequence[Mapping[str, Any]]) -> tuple[Place, int, int]:
    """Return what a worker gets, and the least and greatest number of workers, and print them.

    nodes: as `ray.nodes()` lists them.
    Raises: ValueError where there is no room for the least number, which Ray would wait for without end.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cpus, all_gpus = (sum(resources.get(kind, 0) for resources in alive) for kind in ("CPU", "GPU"))
    gpus = config.gpus_per_worker if config.gpus_per_worker is not None else float(all_gpus > 0)
    rooms = [_room(resources, gpus) for resources in alive]
    room = sum(rooms)
    least, _, most = (config.concurrency or str(max(1, room))).partition(",")
    least, most = int(least), int(most or least)
    cluster = f"{len(alive)} nodes with {cpus:g} CPUs and {all_gpus:g} GPUs"
    if least > room:
        if room:
            advice = f"use --concurrency {room}"
        elif gpus and cpus:
            advice = "use --gpus-per-worker 0"
        else:
            advice = "add nodes to it"
        raise ValueError(
            f"--concurrency: {least} workers, each with {CPUS} CPU and {gpus:g} GPUs, would wait for ever: the "
            f"cluster has {cluster}, room for {room}; {advice}"
        )
    number = least if least == most else f"{least} to {most}"
    say(f"cluster: {cluster}; {number} workers, each with {CPUS} CPU and {gpus:g} GPUs")
    return Place(gpus, os.getcwd(), job_of(config.output), min(most, max(rooms))), least, most


def _room(resources: Mapping[str, float], gpus: float) -> int:
    """Return how many workers a node has room for. A worker's share of a GPU is on a single GPU."""
    by_cpus, node_gpus = int(resources.get("CPU", 0) // CPUS), int(resources.get("GPU", 0))
    if not gpus:
        return by_cpus
    by_gpus = node_gpus * int(round(1 / gpus, 6)) if gpus < 1 else int(node_gpus // gpus)
    return min(by_cpus, by_gpus)


class ClusterHead:
    """The head of the cluster. 60 seconds after it has gone, Ray would end this process without a message."""

    def __init__(self) -> None:
        self.address, self.last_answer = ray.get_runtime_context().gcs_address, time.monotonic()

    def wait_for_answer(self) -> None:
        """Wait until the head answers. Raises: ConnectionError as `check` does."""
        while not self.check():
            time.sleep(1)

    def check(self) -> bool:
        """Return whether the head, or a new one at its address, answers.

        Raises: ConnectionError where there has been no answer for PATIENCE seconds.
        """
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
            self.last_answer = time.monotonic()
            return True
        except OSError as error:
            if time.monotonic() - self.last_answer >= PATIENCE:
                raise ConnectionError(
                    f"the head of the Ray cluster, {self.address}, has gone: {error}; what is done stays, and "
                    "the same command goes on once a cluster is there"
                ) from error
            return False


def _until_none(ends: queue.SimpleQueue) -> Iterator[Mapping[str, str] | None]:
    """Yield the items of the queue up to None; yields None after each second without an item.

    Raises: an item that is an exception.
    """
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


def _log(end: Mapping[str, str]) -> None:
    """Log how a shard ended, as if it had been done in this process. Raises: the errors that end the run."""
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
        for line in others:  # a traceback
            logger.error("  %s", line)
    if end["how"] == "over":
        raise OSError(end["why"])
