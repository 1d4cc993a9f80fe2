"""Starts a training run: checks devices and launcher, and starts the processes (ranks) of the run."""

import importlib
import os
import re
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta

import psutil
import torch
import yaml
from accelerate import PartialState
from accelerate.tracking import get_available_trackers

from captioners.device import check_device, choose_device
from captioners.machine import free_cores
from captioners.ranks import Rank, processes_here
from finetune.accelerator import check_processes
from finetune.config import Config, TrainingConfig
from finetune.folder import check_output, is_done, remove_leftovers
from finetune.trainer import Trainer
from imagetext.lock import FolderLock
from imagetext.shown import reason, say

# How long the other processes wait for the main process, which may validate. If it dies, the launcher stops them.
WAIT = timedelta(days=1)
# In torch's errors if a process that prepares pictures, or another process of the training, has ended, as when memory
# runs out.
ENDED = ("DataLoader worker (pid", "gloo/transport")


def run_in_ranks(config: Config, train: Callable[[Config, PartialState], None]) -> int:
    """Train in the configured number of processes, unless the run is finished already; return the exit code.

    The exit code is 0, or that of the processes that this process starts. Raises OSError if another process of the
    training ends early.
    """
    check_devices(config)
    check_trackers(config)
    rank = Rank.of_this_process()
    if rank.count == 1 and config.num_processes not in (None, 1):
        return launch(config)
    check_processes(config, rank.count)
    check_launcher(rank)
    device = choose_device(config.device, rank.local)
    state = PartialState(cpu=device == "cpu", timeout=WAIT)  # uses the current GPU, which choose_device has set
    if state.num_processes != rank.count:
        raise ValueError(
            f"the launcher started {rank.count} processes, but only {state.num_processes} of them found each other"
        )
    with FolderLock(config.output):
        with state.main_process_first():
            check_output(config)
        if is_done(config):
            if state.is_main_process:
                remove_leftovers(config)
            say_once(state, f"{config.output} already holds the finished model of this run")
            return 0
        torch.manual_seed(config.seed)
        try:
            train(config, state)
        except RuntimeError as error:
            if not any(words in str(error) for words in ENDED):
                raise
            raise OSError(f"{reason(error).rstrip('.')}; the same command resumes from the last checkpoint") from error
    return 0


def check_devices(config: TrainingConfig) -> None:
    """Raise ValueError if this machine does not have the configured device, or a GPU for each of its processes.

    Also raises it for fp16 on a CPU, where accelerate scales no gradients.
    """
    device = check_device(config.device)
    if device == "cpu" and config.dtype == "fp16":
        raise ValueError("--dtype fp16: needs a GPU; a CPU trains in fp32 or bf16")
    processes = processes_here() if Rank.of_this_process().count > 1 else config.num_processes or 1
    if not device.startswith("cuda") or processes == 1:
        return
    if config.device not in (None, "cuda"):
        raise ValueError(
            f"--device {config.device!r}: is one GPU, and each of {processes} processes needs its own; use --device "
            "cuda"
        )
    gpus = torch.cuda.device_count()
    if processes > gpus:
        hint = ""
        if "SLURM_JOB_ID" in os.environ:
            hint = (
                "; with Slurm, use --gpus-per-node or --gpu-bind=none, so that each process sees all GPUs of its node"
            )
        raise ValueError(
            f"--num-processes {processes}: each process needs a GPU of its own, and torch finds {gpus}{hint}"
        )


def check_launcher(rank: Rank) -> None:
    """Raise ValueError if the processes of a launcher cannot find each other; set torch's environment variables.

    Without this check each process would train on its own, and all of them would write into one folder.
    """
    if rank.count == 1:
        requested = processes_of_accelerate_launch()
        if requested > 1:
            raise ValueError(
                f"accelerate launch started one process, not {requested}, as it does on a CPU: "
                f"use --num-processes {requested} or torchrun"
            )
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"a launcher started this process as number {rank.number} of {rank.count}, but {' and '.join(missing)} "
            "are not set, which the processes need to find each other: export the name of the first node and a free "
            "port, or let torchrun start the processes (torchrun --nproc-per-node N -m capsmith ...)"
        )
    os.environ |= {"RANK": str(rank.number), "WORLD_SIZE": str(rank.count), "LOCAL_RANK": str(rank.local)}


def check_trackers(config: TrainingConfig) -> None:
    """Raise ValueError for a tracker that is not installed, which accelerate would silently skip, or needs a login."""
    installed = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in config.report_to if name not in installed]:
        raise ValueError(f"--report-to {', '.join(missing)}: not installed; pip install {' '.join(missing)}")
    if "wandb" in config.report_to and os.environ.get("WANDB_MODE", "online") == "online":
        try:
            importlib.import_module("wandb").login()
        except Exception as error:  # wandb has error classes of its own
            raise ValueError(f"--report-to wandb: {error}") from error


def processes_of_accelerate_launch() -> int:
    """Return N if the parent process is `accelerate launch --num_processes N`, otherwise 1."""
    parent = psutil.Process().parent()
    command = " ".join(parent.cmdline()) if parent else ""
    match = re.search(r"\blaunch\b.*--num_processes[ =](\d+)", command)
    return int(match[1]) if match else 1


def launch(config: TrainingConfig) -> int:
    """Start the processes of this run with torchrun, and return the exit code.

    It is 0 if all succeed, 2 if one finds a problem in the configuration, and 1 if one fails otherwise.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    processes = config.num_processes or 1
    check_processes(config, processes)  # this process reports what it can find itself, once and early
    with FolderLock(config.output):
        check_output(config)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # hides each process's advice on how to call DDP
    threads = max(1, min(torch.get_num_threads(), free_cores()) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torchrun would set it to 1
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        # Without push_to_hub, because this process does the upload.
        yaml.safe_dump(config.model_dump(mode="json", exclude={"push_to_hub"}), file)
        file.flush()
        try:
            start = ["--standalone", "--nproc-per-node", str(processes)]
            torchrun(parse_args([*start, "-m", "capsmith", config.command, "--config", file.name]))
        except ChildFailedError as error:
            if any(failure.exitcode == 2 for failure in error.failures.values()):
                return 2  # the process that found the problem has reported it
            failure = error.get_first_failure()[1]
            end = f"ended with code {failure.exitcode}"
            if failure.exitcode < 0:
                end = f"was ended by signal {-failure.exitcode}"
            say(
                f"process {failure.local_rank} of {processes} {end}, and the others were stopped; "
                "the same command resumes from the last checkpoint",
                file=sys.stderr,
            )
            return 1
        except SignalException as stop:
            raise KeyboardInterrupt(stop.sigval) from None
    return 0


def say_once(state: PartialState, *lines: object) -> None:
    """Print lines like `say`, in only one of the processes on this machine."""
    if state.is_local_main_process:
        say(*lines)


def describe(trainer: Trainer) -> str:
    """Return a run's first line: the batch and its parts, the number of steps, and the passes over the set."""
    config, processes = trainer.config, trainer.accelerator.num_processes
    size = config.batch_size // processes // trainer.accumulation
    contrastive = f"contrastive batch {config.batch_size}; " if trainer.forward.contrasts else ""
    passes = trainer.steps * config.batch_size / trainer.pictures.weights.sum()
    return (
        f"batch of {config.batch_size} pictures = {processes} devices x {size} pictures x {trainer.accumulation} "
        f"accumulation steps, {config.captions_per_image} captions of each picture; {contrastive}{trainer.steps:,} "
        f"steps, {passes:.1f} passes over {len(trainer.pictures):,} pictures"
    )
