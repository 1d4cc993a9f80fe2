"""What the workers of a cluster have done, and which died at what: kept in a process beside the driver, which outlives them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Tally:
    """Counts of all workers by shard, so that those of a worker that died are its successor's; and the deaths on each."""

    def __init__(self) -> None:
        self._at: dict[str, str] = {}  # the shards that are being written, and by whom
        self._deaths: dict[str, list[str]] = defaultdict(list)
        self._counts: dict[str, Sequence[float]] = {}
        self._stopped = False

    @classmethod
    def on_this_node(cls) -> Any:  # an ActorHandle[Self], which Ray's own types do not say
        """A tally in a process of its own, on the node of this one."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return ray.remote(cls).options(num_cpus=0, scheduling_strategy=here).remote()

    def begin(self, shard: str, worker: str) -> list[str] | None:
        """A worker comes to a shard: the workers that have died on it, or None where no more shards are to be begun."""
        if self._stopped:
            return None
        if shard in self._at:  # it was begun and never left
            self._deaths[shard].append(self._at[shard])
        self._at[shard] = worker
        return self._deaths[shard]

    def count(self, shard: str, counts: Sequence[float]) -> bool:
        """A shard's counts, those before included; returns whether it is to be left."""
        self._counts[shard] = counts
        return self._stopped

    def end(self, shard: str, counts: Sequence[float]) -> None:
        """A worker leaves a shard, whatever became of it."""
        self._counts[shard] = counts
        self._at.pop(shard, None)

    def total(self) -> list[float]:
        """The counts of all shards together."""
        return [sum(column) for column in zip(*self._counts.values())]

    def stop(self) -> None:
        """No more shards are to be begun, and those that are begun are to be left."""
        self._stopped = True

    def busy(self) -> bool:
        """Whether a shard is being written."""
        return bool(self._at)
