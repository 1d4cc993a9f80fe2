"""The engine that does a run's work: this process, or a Ray cluster."""

from contextlib import AbstractContextManager, nullcontext

from captioners.ranks import Rank
from generate.runs.config import RunConfig
from generate.runs.protocol import Embedded, Engine


def engine_of(config: RunConfig, rank: Rank) -> AbstractContextManager[Engine]:
    """The engine that is asked for; ValueError where it is not installed."""
    if config.engine == "embedded":
        return nullcontext(Embedded(rank))
    try:
        from generate.runs.ray_engine import Cluster
    except ImportError as error:
        raise ValueError(f"--engine ray: pip install 'capsmith[ray]' brings what it needs ({error})") from error
    return Cluster(config)
