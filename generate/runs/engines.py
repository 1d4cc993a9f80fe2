"""Chooses the engine that does the work of a run: this process, or a Ray cluster."""

from contextlib import AbstractContextManager, nullcontext

from captioners.ranks import Rank
from generate.runs.config import RunConfig
from generate.runs.protocol import Embedded, Engine


def engine_of(config: RunConfig, rank: Rank) -> AbstractContextManager[Engine]:
    """Return the engine that the configuration names. Raises: ValueError where it is not installed."""
    if config.engine == "embedded":
        return nullcontext(Embedded(rank))
    try:
        from generate.runs.ray_engine import Cluster
    except ImportError as error:
        raise ValueError(f"--engine ray: is not installed; run pip install 'capsmith[ray]' ({error})") from error
    return Cluster(config)
