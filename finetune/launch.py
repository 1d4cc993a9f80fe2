"""What a run begins with, whatever it trains: its processes."""

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
from captioners.ranks import Rank, processes_here
from finetune.accelerator import check_processes
from finetune.config import Config, TrainingConfig
from finetune.folder import check_output, is_done, remove_leftovers
from finetune.trainer import Trainer
from imagetext.lock import FolderLock
from imagetext.shown import say

WAIT = timedelta(days=1)  # of the other ranks for the main one, while it validates; those of one that dies are ended


def run_in_ranks(config: Config, train: Callable[[Config, PartialState], None]) -> int:
    """Trains in as many processes as asked for, unless it is done; exit code 0, or that of the ranks it starts."""
    check_devices(config)
    check_trackers(config)
    rank = Rank.of_this_process()
    if rank.count == 1 and config.num_processes not in (None, 1):
        return launch(config)
    check_processes(config, rank.count)
    check_launcher(rank)
    device = choose_device(config.device, rank.local)
    state = PartialState(cpu=device == "cpu", timeout=WAIT)  # takes the GPU that is the current one
    if state.num_processes != rank.count:
        raise ValueError(
            f"the launcher started {rank.count} processes, and {state.num_processes} of them found each other"
        )
    with FolderLock(config.output):
        with state.main_process_first():
            check_output(config)
        if is_done(config):
            if state.is_main_process:
                remove_leftovers(config)
            say_once(state, f"{config.output} holds the finished model of this very run")
            return 0
        torch.manual_seed(config.seed)
        train(config, state)
    return 0


def check_devices(config: TrainingConfig) -> None:
    """Raises ValueError where this machine has no such device, or no GPU for each of its processes."""
    device = check_device(config.device)
    processes = processes_here() if Rank.of_this_process().count > 1 else config.num_processes or 1
    if not device.startswith("cuda") or processes == 1:
        return
    if config.device not in (None, "cuda"):
        raise ValueError(
            f"--device {config.device!r}: is one GPU, and each of {processes} processes needs its own; say cuda"
        )
    if processes > torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise ValueError(f"--num-processes {processes}: each needs a GPU of its own, and torch finds {gpus}")


def check_launcher(rank: Rank) -> None:
    """Raises ValueError where the processes of a launcher cannot find each other.

    Each would train by itself, all of them into one folder. What torch reads of the world is set as the launcher says.
    """
    if rank.count == 1:
        if (asked := processes_of_accelerate_launch()) > 1:
            raise ValueError(
                f"accelerate launch started one process, not {asked}, as it does on a CPU: "
                f"use --num-processes {asked} or torchrun"
            )
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f"a launcher started this process as number {rank.number} of {rank.count}, but {' and '.join(missing)} are not set, by "
            "which they find each other: export the name of the first node and a free port, or let torchrun start them "
            "(torchrun --nproc-per-node N -m capsmith ...)"
        )
    os.environ |= {"RANK": str(rank.number), "WORLD_SIZE": str(rank.count), "LOCAL_RANK": str(rank.local)}


def check_trackers(config: TrainingConfig) -> None:
    """Raises ValueError for a tracker that cannot be reported to: accelerate says nothing of those that are not installed."""
    installed = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in config.report_to if name not in installed]:
        raise ValueError(f"--report-to {', '.join(missing)}: not installed; pip install {' '.join(missing)}")
    if "wandb" in config.report_to and os.environ.get("WANDB_MODE", "online") == "online":
        try:
            importlib.import_module("wandb").login()
        except Exception as error:  # its own
            raise ValueError(f"--report-to wandb: {error}") from error


def processes_of_accelerate_launch() -> int:
    """What `accelerate launch --num_processes N` above this process asked for; 1 where there is none."""
    parent = psutil.Process().parent()
    words = " ".join(parent.cmdline()) if parent else ""
    asked = re.search(r"\blaunch\b.*--num_processes[ =](\d+)", words)
    return int(asked[1]) if asked else 1


def launch(config: TrainingConfig) -> int:
    """Starts the ranks, each of them this very run; exit code 0, 2 where one of them found a mistake in the command, else 1."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    processes = config.num_processes or 1
    check_processes(config, processes)  # what needs no rank to be found is told once, and at once
    with FolderLock(config.output):
        check_output(config)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each rank would advise how DDP may be called
    threads = max(1, torch.get_num_threads() // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torchrun's own is 1
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config.model_dump(mode="json", exclude={"push_to_hub"}), file)  # which this process does
        file.flush()
        try:
            start = ["--standalone", "--nproc-per-node", str(processes)]
            torchrun(parse_args([*start, "-m", "capsmith", config.command, "--config", file.name]))
        except ChildFailedError as error:
            if any(failure.exitcode == 2 for failure in error.failures.values()):
                return 2  # told by the rank that found it
            first = error.get_first_failure()[1]
            end = (
                f"was ended by signal {-first.exitcode}" if first.exitcode < 0 else f"ended with code {first.exitcode}"
            )
            say(
                f"process {first.local_rank} of {processes} {end}, and the others were stopped; "
                "the same command goes on from the last checkpoint",
                file=sys.stderr,
            )
            return 1
        except SignalException as stop:
            raise KeyboardInterrupt(stop.sigval) from None
    return 0


def say_once(state: PartialState, *lines: object) -> None:
    """As `say`, in one of the processes on this machine."""
    if state.is_local_main_process:
        say(*lines)


def describe(trainer: Trainer) -> str:
    """A run's first line: the batch and its parts, steps, passes over the set."""
    config, processes = trainer.config, trainer.accelerator.num_processes
    size = config.batch_size // processes // trainer.accumulation
    contrastive = f"contrastive batch {config.batch_size}; " if trainer.forward.contrasts else ""
    return (
        f"batch {config.batch_size} pictures = {processes} x {size} a device x {trainer.accumulation} accumulated, "
        f"captions of each: {config.captions_per_image}; {contrastive}{trainer.steps:,} steps, "
        f"{trainer.steps * config.batch_size / trainer.pictures.weights.sum():.1f} passes over "
        f"{len(trainer.pictures):,} pictures"
    )
