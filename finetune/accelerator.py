"""The devices of a training run (by accelerate), their memory, and how batches are split over them."""

import ctypes

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType

from captioners.device import check_device
from finetune.config import TrainingConfig

# What glibc's malloc.h calls these parameters, and their values in bytes. A larger MMAP threshold is refused.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_BYTES, MMAP_BYTES = 2**29, 2**25


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Return an Accelerator for the configured devices; raises ValueError if the launcher started others."""
    accelerator = Accelerator(
        mixed_precision="no" if config.dtype == "fp32" else config.dtype,
        cpu=check_device(config.device) == "cpu",
        project_dir=config.output,
        log_with=[*config.report_to] or None,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(f"training with {accelerator.distributed_type.value} is not supported: use DDP, or --shard")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    check_processes(config, accelerator.num_processes)
    return accelerator


def check_processes(config: TrainingConfig, processes: int) -> None:
    """Raise ValueError if this number of processes is not the configured one, or does not suit batch or --shard."""
    if config.num_processes not in (None, processes):
        raise ValueError(
            f"--num-processes {config.num_processes}: the launcher started {processes}; leave the flag out"
        )
    if config.shard and processes == 1:
        raise ValueError("--shard: needs at least two processes, and there is one")
    accumulation(config, processes)


def accumulation(config: TrainingConfig, processes: int) -> int:
    """Return into how many parts a device splits its share of a batch; raises ValueError if sizes would differ."""
    size = config.device_batch_size or config.batch_size // processes
    if config.batch_size % processes or config.batch_size % (processes * size):
        raise ValueError(
            f"--batch-size {config.batch_size} is not a multiple of {processes} processes times {size} pictures"
        )
    return config.batch_size // (processes * size)


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, where it uses glibc.

    Every step of a training on a CPU needs the same memory again. By default, glibc returns much of it to the system,
    which has to clear it before the next step can have it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
