"""What a run does when memory runs out: it begins the shard anew with smaller batches; later shards keep theirs."""

import logging
from collections.abc import Callable, Sequence

import torch

from generate.runs.protocol import Pace
from imagetext.sample import Shard

logger = logging.getLogger(__name__)


def with_halved_batches(
    write: Callable[[Sequence[int]], None], sizes: Sequence[int], unit: str, *, shard: Shard, pace: Pace
) -> None:
    """Write a shard with batches of these sizes; when memory runs out, begin anew with half of each, down to 1.

    unit: what the sizes count, for the warning.
    """
    counts_before = pace.counts
    while True:
        try:
            return write(sizes)
        except torch.OutOfMemoryError:
            if max(sizes) == 1:
                raise
        sizes = [max(1, size // 2) for size in sizes]
        pace.counts = counts_before
        logger.warning(
            "shard %s: memory ran out, so it is begun anew with %s %s", shard.name, ", ".join(map(str, sizes)), unit
        )
        torch.cuda.empty_cache()  # does nothing without a GPU
