"""This process's place among those that a launcher started for one run. Imports no torch: threads are settled before it comes."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple, Self, TypeVar

T = TypeVar("T")
LAUNCHERS = (  # names of: the process's number, how many there are, its number on this machine
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, accelerate launch
    (
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID",
    ),  # srun; not SLURM_NTASKS, which a batch script without a step has, too
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # mpirun of Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # mpirun of MPICH and Intel MPI
)
ON_THIS_MACHINE = ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


class Rank(NamedTuple):
    """A process's place: its number among `count`, and its number on this machine."""

    number: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of_this_process(cls) -> Self:
        """As the launcher says that started it; the only one where none did."""
        for names in LAUNCHERS:
            if all(os.environ.get(name) for name in names):
                return cls(*(int(os.environ[name]) for name in names))
        return cls()

    def share(self, shards: Sequence[T]) -> Sequence[T]:
        """The shards of this process, where each owns every n-th."""
        return shards[self.number :: self.count]


def processes_here() -> int:
    """How many processes of the run share this machine, as the launcher says; 1 where it says nothing."""
    for name in ON_THIS_MACHINE:
        if number := re.match(r"\d+", os.environ.get(name, "")):  # Slurm's is "4(x2),3"
            return int(number[0])
    return 1
