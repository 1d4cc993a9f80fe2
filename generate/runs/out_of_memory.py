"""What a run does out of memory: a shard is begun anew with smaller batches, and no shard after it."""

import logging
from collections.abc import Callable, Sequence

import torch

from generate.runs.protocol import Pace
from imagetext.sources import Shard

logger = logging.getLogger(__name__)


def with_halved_batches(
    write: Callable[[Sequence[int]], None], sizes: Sequence[int], unit: str, shard: Shard, pace: Pace
) -> None:
    """Write a shard with batches of these sizes, of what `unit` says; out of memory, anew with half of each, down to 1."""
    before = pace.counts
    while True:
        try:
            return write(sizes)
        except torch.OutOfMemoryError:
            if max(sizes) == 1:
                raise
        sizes = [max(1, size // 2) for size in sizes]
        pace.counts = before
        logger.warning("shard %s: out of memory, begun anew with %s %s", shard.name, ", ".join(map(str, sizes)), unit)
        torch.cuda.empty_cache()  # nothing without a GPU
