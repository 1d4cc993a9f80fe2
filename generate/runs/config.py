"""What every run over shards takes; imports no torch, so that --help is quick."""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from imagetext.stores import plain_path

# a folder on this machine or in a store; as text, because a Path spoils URLs
Folder = Annotated[
    str,
    BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path),
    AfterValidator(plain_path),
]


def _check_concurrency(asked: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)?", asked):
        raise ValueError("is neither a number of workers nor MIN,MAX")
    least, _, most = asked.partition(",")
    if most and int(most) < int(least):
        raise ValueError(f"at least {least} workers, and at most {most}")
    return asked


def _check_gpus(number: float) -> float:
    if number > 1 and number % 1:
        raise ValueError("is neither whole GPUs nor a share of one")
    return number


class RunConfig(BaseModel):
    """Where a run writes, and on which devices by how many processes it is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: Folder = Field(
        description="folder for the records, one file per input shard; here or s3://…, gs://…, hf://…; the nodes "
        "of a cluster must all see it"
    )
    format: Literal["webdataset", "jsonl", "parquet"] = Field("webdataset", description="of the records")
    overwrite: bool = Field(False, description="start anew in a folder that holds an earlier run")
    trust_input: bool = Field(
        False,
        description="take inputs of the same size for the same, though their time is another, without "
        "reading them again",
    )
    verify_done: bool = Field(
        False,
        description="hash the shards that are done before they are believed; else only those whose file is "
        "newer than its marker",
    )
    retry_failed: bool = Field(
        False,
        description="make shards anew in which rows failed for a passing reason: a missing file, a "
        "server; the old ones stay until the new are whole",
    )
    device: str | None = Field(None, description="cpu, cuda, …; the best there is unless given")
    num_processes: int | None = Field(
        None, gt=0, description="processes, each with shards of its own; one per GPU unless given"
    )
    num_workers: int | None = Field(
        None,
        ge=0,
        description="processes that prepare pictures, for each process; 0: none; one less "
        "than it has cores unless given, but at least 2, and 2 for a Ray worker",
    )
    engine: Literal["embedded", "ray"] = Field(
        "embedded",
        description="embedded: processes on this machine; ray: workers of a Ray cluster, which replaces those that die",
    )
    ray_address: str | None = Field(
        None,
        pattern=r"^(auto|[\w.-]+:\d+)$",
        description="auto: the cluster that this machine belongs "
        "to; or host:port of one; without, this machine is one for the time of the run",
    )
    concurrency: (
        Annotated[
            str,
            BeforeValidator(lambda number: str(number) if isinstance(number, int) else number),
            AfterValidator(_check_concurrency),
        ]
        | None
    ) = Field(None, description="Ray workers, or MIN,MAX of them; as many as there is room for unless given")
    gpus_per_worker: Annotated[float, AfterValidator(_check_gpus)] | None = Field(
        None,
        ge=0,
        description="GPUs of a Ray worker, or the share of one; 1 where the cluster has any unless given, else 0",
    )

    def engine_problems(self) -> list[str]:
        """What does not go with the engine."""
        if self.engine == "ray":
            return (
                ["--num-processes: is for --engine embedded; --concurrency is for ray"] if self.num_processes else []
            )
        return [
            f"--{name.replace('_', '-')}: {value} is for --engine ray"
            for name in ("ray_address", "concurrency", "gpus_per_worker")
            if (value := getattr(self, name)) is not None and name in self.model_fields_set
        ]
