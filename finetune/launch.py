"""What a run begins with, whatever it trains: its processes."""

import importlib
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta

import psutil
import torch
import yaml
from accelerate import PartialState
from accelerate.tracking import get_available_trackers

from captioners.device import check_device, choose_device
from finetune.folder import Config, check_output, is_done, locked
from finetune.trainer import Trainer, check_processes

WAIT = timedelta(days=1)  # of the other ranks for the main one, while it validates; those of one that dies are ended


def run_in_ranks(config: Config, train: Callable[[Config, PartialState], None]) -> int:
    """Trains in as many processes as asked for, unless it is done; exit code 0, or that of the ranks it starts."""
    check_devices(config)
    check_trackers(config)
    if config.num_processes not in (None, 1) and "LOCAL_RANK" not in os.environ:
        return launch(config)
    if (asked := processes_asked_of_accelerate()) > 1 and "LOCAL_RANK" not in os.environ:
        raise ValueError(f"accelerate launch started one process, not {asked}, as it does on a CPU: "
                         f"use --num-processes {asked} or torchrun")
    device = choose_device(config.device, int(os.environ.get("LOCAL_RANK", 0)))
    state = PartialState(cpu=device == "cpu", timeout=WAIT)  # takes the GPU that is the current one
    with ExitStack() as folder:
        with state.main_process_first():
            if state.is_main_process:
                folder.enter_context(locked(config.output))
            check_output(config)
        if is_done(config):
            state.print(f"{config.output} holds the finished model of this very run")
            return 0
        check_processes(config, state.num_processes)
        torch.manual_seed(config.seed)
        train(config, state)
    return 0


def check_devices(config: Config) -> None:
    """Raises ValueError where this machine has no such device, or no GPU for each of its processes."""
    device = check_device(config.device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", config.num_processes or 1))
    if not device.startswith("cuda") or processes == 1:
        return
    if config.device not in (None, "cuda"):
        raise ValueError(f"--device {config.device!r}: is one GPU, and each of {processes} processes needs its own; say cuda")
    if processes > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(f"--num-processes {processes}: each needs a GPU of its own, and torch finds {found}")


def check_trackers(config: Config) -> None:
    """Raises ValueError for a tracker that cannot be reported to: accelerate says nothing of those that are not installed."""
    there = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in config.report_to if name not in there]:
        raise ValueError(f"--report-to {', '.join(missing)}: not installed; pip install {' '.join(missing)}")
    if "wandb" in config.report_to and os.environ.get("WANDB_MODE", "online") == "online":
        try:
            importlib.import_module("wandb").login()
        except Exception as error:  # its own
            raise ValueError(f"--report-to wandb: {error}") from error


def processes_asked_of_accelerate() -> int:
    """What `accelerate launch --num_processes N` above this process asked for; 1 where there is none."""
    parent = psutil.Process().parent()
    words = " ".join(parent.cmdline()) if parent else ""
    found = re.search(r"\blaunch\b.*--num_processes[ =](\d+)", words)
    return int(found[1]) if found else 1


def launch(config: Config) -> int:
    """Starts the ranks, each of them this very run; exit code 0, 2 where one of them found a mistake in the command, else 1."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    check_processes(config, config.num_processes)  # what needs no rank to be found is told once, and at once
    with locked(config.output):
        check_output(config)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // config.num_processes)))  # torchrun's own is 1
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config.model_dump(mode="json", exclude={"push_to_hub"}), file)  # which this process does
        file.flush()
        try:
            torchrun(parse_args(["--standalone", "--nproc-per-node", str(config.num_processes), "-m", "capsmith", config.command,
                                 "--config", file.name]))
        except ChildFailedError as error:
            return 2 if any(failure.exitcode == 2 for failure in error.failures.values()) else 1
        except SignalException:
            raise KeyboardInterrupt from None
    return 0


def describe(trainer: Trainer) -> str:
    """A run's first line: the batch and its parts, steps, passes over the set."""
    config, processes = trainer.config, trainer.accelerator.num_processes
    size = config.batch_size // processes // trainer.accumulation
    contrastive = f"contrastive batch {config.batch_size}; " if trainer.forward.contrasts else ""
    return (f"batch {config.batch_size} pictures = {processes} x {size} a device x {trainer.accumulation} accumulated, "
            f"captions of each: {config.captions_per_image}; {contrastive}{trainer.steps:,} steps, "
            f"{trainer.steps * config.batch_size / trainer.pictures.weights.sum():.1f} passes over "
            f"{len(trainer.pictures):,} pictures")
