"""What the workers of a cluster have done, and on which shards workers died.

The tally is kept in a process beside the driver, which outlives the workers.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Tally:
    """Counts of pictures by shard, and the workers that died on each shard.

    Because counts belong to shards, the worker that takes over the shard of a dead one replaces its counts.
    """

    def __init__(self) -> None:
        self._writer_of: dict[str, str] = {}  # the worker that is writing each shard
        self._deaths: dict[str, list[str]] = defaultdict(list)
        self._counts: dict[str, Sequence[float]] = {}
        self._stopped = False

    @classmethod
    def on_this_node(cls) -> Any:  # an ActorHandle[Self], which Ray's type hints do not say
        """Start a tally in a process of its own, on the node of this process."""
        this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return ray.remote(cls).options(num_cpus=0, scheduling_strategy=this_node).remote()

    def begin(self, shard: str, worker: str) -> list[str] | None:
        """Note that a worker begins a shard.

        Returns: the workers that have died on this shard, or None where the run is stopped and the shard must not be
        begun.
        """
        if self._stopped:
            return None
        if shard in self._writer_of:  # the worker that began it has never ended it
            self._deaths[shard].append(self._writer_of[shard])
        self._writer_of[shard] = worker
        return self._deaths[shard]

    def count(self, shard: str, counts: Sequence[float]) -> bool:
        """Set a shard's counts, from its beginning on; returns whether the worker must leave the shard."""
        self._counts[shard] = counts
        return self._stopped

    def end(self, shard: str, counts: Sequence[float]) -> None:
        """Note that a worker has ended a shard, whether it was written or failed."""
        self._counts[shard] = counts
        self._writer_of.pop(shard, None)

    def total(self) -> list[float]:
        """Return the sums of the counts of all shards."""
        return [sum(column) for column in zip(*self._counts.values())]

    def stop(self) -> None:
        """Stop the run: no more shards are begun, and workers leave those that they have begun."""
        self._stopped = True

    def busy(self) -> bool:
        """Return whether a shard is being written."""
        return bool(self._writer_of)
