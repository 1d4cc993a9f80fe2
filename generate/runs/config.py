"""The settings of every run over shards. This module imports no torch, so that --help is quick."""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from imagetext.stores import plain_path

# A folder on this machine or in a store, as text: a Path would change the slashes of URLs.
Folder = Annotated[
    str,
    BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path),
    AfterValidator(plain_path),
]


def _check_concurrency(value: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)?", value):
        raise ValueError("is neither a number of workers nor MIN,MAX")
    least, _, most = value.partition(",")
    if most and int(most) < int(least):
        raise ValueError(f"MIN is {least}, which is more than MAX, {most}")
    return value


def _check_ray_address(address: str) -> str:
    if not re.fullmatch(r"auto|[\w.-]+:\d+", address):
        raise ValueError("is neither host:port nor auto")
    return address


def _check_gpus(number: float) -> float:
    if number > 1 and number % 1:
        raise ValueError("is neither a whole number of GPUs nor a share of one")
    return number


class RunConfig(BaseModel):
    """Where a run writes, and on which devices and by how many processes the work is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: Folder = Field(
        description="folder for the records, one file per input shard; local or s3://…, gs://…, hf://…; all nodes of "
        "a cluster must see it"
    )
    format: Literal["webdataset", "jsonl", "parquet"] = Field("webdataset", description="file format of the records")
    overwrite: bool = Field(False, description="start anew in a folder that holds an earlier run")
    trust_input: bool = Field(
        False,
        description="when resuming, take inputs as unchanged if their size is the same, even if their time is not, "
        "instead of reading them again",
    )
    verify_done: bool = Field(
        False,
        description="when resuming, check the hashes of all finished shards, instead of only those whose file is "
        "newer than its marker",
    )
    retry_failed: bool = Field(
        False,
        description="make the shards again in which records failed for a reason that may be gone now (a missing file, "
        "a server); an old shard stays until its new one is complete",
    )
    device: str | None = Field(None, description="cpu, cuda, … (default: the best that this machine has)")
    num_processes: int | None = Field(
        None, gt=0, description="processes that share the shards (default: one for each GPU, or one)"
    )
    num_workers: int | None = Field(
        None,
        ge=0,
        description="worker processes that prepare pictures, for each process; 0 for none (default: the process's CPU "
        "cores less one, at least 2; with Ray, 2)",
    )
    engine: Literal["embedded", "ray"] = Field(
        "embedded",
        description="embedded: processes on this machine; ray: workers of a Ray cluster, which replaces dead ones",
    )
    ray_address: Annotated[str, AfterValidator(_check_ray_address)] | None = Field(
        None,
        description="Ray cluster to use: host:port, or auto for the one that this machine belongs to (default: start "
        "one on this machine for the run)",
    )
    concurrency: (
        Annotated[
            str,
            BeforeValidator(lambda number: str(number) if isinstance(number, int) else number),
            AfterValidator(_check_concurrency),
        ]
        | None
    ) = Field(None, description="number of Ray workers, or MIN,MAX (default: as many as the cluster has room for)")
    gpus_per_worker: Annotated[float, AfterValidator(_check_gpus)] | None = Field(
        None,
        ge=0,
        description="GPUs for each Ray worker, or a share of one (default: 1 if the cluster has GPUs, else 0)",
    )

    def engine_problems(self) -> list[str]:
        """Return a line for each setting that does not belong to the engine."""
        if self.engine == "ray" and self.num_processes:
            return ["--num-processes: is for --engine embedded; with --engine ray, use --concurrency"]
        if self.engine == "ray":
            return []
        return [
            f"--{name.replace('_', '-')}: {value} is for --engine ray"
            for name in ("ray_address", "concurrency", "gpus_per_worker")
            if (value := getattr(self, name)) is not None and name in self.model_fields_set
        ]
