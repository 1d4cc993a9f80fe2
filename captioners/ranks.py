"""This process's number among the processes that a launcher started for one run.

This file does not import torch, because the number of threads must be set before torch is imported.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple, Self, TypeVar

T = TypeVar("T")
# For each launcher, the environment variables of the process's number, of the number of processes, and of the
# process's number on this machine.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, accelerate launch
    # srun. Not SLURM_NTASKS, which is also set in a batch script without a step.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # mpirun of Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # mpirun of MPICH and Intel MPI
)
# The environment variables of the number of processes on this machine, one per launcher.
ON_THIS_MACHINE = ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


class Rank(NamedTuple):
    """A process's number in a run of `count` processes, and its number among those on the same machine."""

    number: int = 0  # from 0
    count: int = 1
    local: int = 0  # from 0

    @classmethod
    def of_this_process(cls) -> Self:
        """Read the rank from the launcher's environment variables; without a launcher, this is the only process."""
        for names in LAUNCHERS:
            if all(os.environ.get(name) for name in names):
                return cls(*(int(os.environ[name]) for name in names))
        return cls()

    def share(self, shards: Sequence[T]) -> Sequence[T]:
        """The shards that belong to this process: every `count`-th, starting at `number`."""
        return shards[self.number :: self.count]


def processes_here() -> int:
    """The number of the run's processes on this machine, from the launcher's variables; 1 without any."""
    for name in ON_THIS_MACHINE:
        if number := re.match(r"\d+", os.environ.get(name, "")):  # Slurm's value looks like "4(x2),3"
            return int(number[0])
    return 1
