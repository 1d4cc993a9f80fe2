"""What a run begins with, whatever it trains: its processes and its folder."""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from accelerate import PartialState

from captioners.device import check_device, choose_device
from captioners.ranks import Rank, processes_here
from finetune.checkpoints import BEST, LOG, VALIDATION_LOG, Checkpoints
from finetune.trainer import Config, Trainer, accumulation
from finetune.training_page import PAGE
from imagetext.cards import CARD
from imagetext.outputs import UNFINISHED, write_file

REJECTS = "rejects.jsonl"
DONE = ("open_clip_config.json", "adapter_config.json", "config.json")  # what a finished model has, written last
WAIT = timedelta(days=1)  # of the other ranks for the main one, while it validates; those of one that dies are ended
VERSION = ".".join(version("capsmith").split(".")[:2])  # what one began, another does not go on with
# how a run is carried out, not what comes of it
CARRIED_OUT = {"output", "overwrite", "num_workers", "device", "tf32", "checkpoint_every", "num_processes", "shard",
               "device_batch_size", "report_to", "grad_checkpointing", "push_to_hub"}


def run_in_ranks(config: Config, train: Callable[[Config, PartialState], None]) -> int:
    """Trains in as many processes as asked for, unless it is done; exit code 0, or that of the ranks it starts."""
    check_devices(config)
    rank = Rank.of_this_process()
    if rank.count == 1 and config.num_processes not in (None, 1):
        return launch(config)
    check_launcher(config, rank)
    device = choose_device(config.device, rank.local)
    state = PartialState(cpu=device == "cpu", timeout=WAIT)  # takes the GPU that is the current one
    if state.num_processes != rank.count:
        raise ValueError(f"the launcher started {rank.count} processes, and {state.num_processes} of them found each other")
    with state.main_process_first():
        prepare_output(config)
    if is_done(config.output):
        state.print(f"{config.output} holds the finished model of this very run")
        return 0
    torch.manual_seed(config.seed)
    train(config, state)
    return 0


def check_devices(config: Config) -> None:
    """Raises ValueError where this machine has no such device, or no GPU for each of its processes."""
    device = check_device(config.device)
    processes = processes_here() if Rank.of_this_process().count > 1 else config.num_processes or 1
    if not device.startswith("cuda") or processes == 1:
        return
    if config.device not in (None, "cuda"):
        raise ValueError(f"--device {config.device!r}: is one GPU, and each of {processes} processes needs its own; say cuda")
    if processes > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(f"--num-processes {processes}: each needs a GPU of its own, and torch finds {found}")


def check_launcher(config: Config, rank: Rank) -> None:
    """Raises ValueError where the processes of a launcher are not those asked for, or cannot find each other.

    Else each would train by itself, all of them into one folder. What torch reads of the world is set as the launcher says.
    """
    if config.num_processes not in (None, rank.count):
        raise ValueError(f"--num-processes {config.num_processes}: the launcher started {rank.count}")
    if config.shard and rank.count == 1:
        raise ValueError("--shard: there is one process, and so there are no parts")
    if rank.count == 1:
        if (asked := processes_asked_of_accelerate()) > 1:
            raise ValueError(f"accelerate launch started one process, not {asked}, as it does on a CPU: "
                             f"use --num-processes {asked} or torchrun")
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(
            f"a launcher started this process as number {rank.number} of {rank.count}, but {' and '.join(missing)} are not set, by "
            "which they find each other: export the name of the first node and a free port, or let torchrun start them "
            "(torchrun --nproc-per-node N -m capsmith ...)")
    os.environ |= {"RANK": str(rank.number), "WORLD_SIZE": str(rank.count), "LOCAL_RANK": str(rank.local)}


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

    accumulation(config, config.num_processes)  # what needs no rank to be found is told once, and at once
    prepare_output(config)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each rank would advise how DDP may be called
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // config.num_processes)))  # torchrun's own is 1
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config.model_dump(mode="json"), file)
        file.flush()
        try:
            torchrun(parse_args(["--standalone", "--nproc-per-node", str(config.num_processes), "-m", "capsmith", config.command,
                                 "--config", file.name]))
        except ChildFailedError as error:
            if any(failure.exitcode == 2 for failure in error.failures.values()):
                return 2  # told by the rank that found it
            first = error.get_first_failure()[1]
            end = f"was ended by signal {-first.exitcode}" if first.exitcode < 0 else f"ended with code {first.exitcode}"
            print(f"process {first.local_rank} of {config.num_processes} {end}, and the others were stopped; "
                  "the same command goes on from the last checkpoint", file=sys.stderr)
            return 1
        except SignalException:
            raise KeyboardInterrupt from None
    return 0


def tell_of_rejects(rejects: Sequence[tuple[str, str]], output: Path) -> None:
    """Names the samples that were left out, each with its reason."""
    if rejects:
        lines = [json.dumps({"key": key, "error": error}) + "\n" for key, error in rejects]
        write_file(output / REJECTS, "".join(lines))
        print(f"{len(rejects)} samples left out, see {output / REJECTS}")


def describe(trainer: Trainer) -> str:
    """A run's first line: the batch and its parts, steps, passes over the set."""
    config, processes = trainer.config, trainer.accelerator.num_processes
    size = config.batch_size // processes // trainer.accumulation
    contrastive = f"contrastive batch {config.batch_size}; " if trainer.forward.contrasts else ""
    return (f"batch {config.batch_size} pictures = {processes} x {size} a device x {trainer.accumulation} accumulated, "
            f"captions of each: {config.captions_per_image}; {contrastive}{trainer.steps:,} steps, "
            f"{trainer.steps * config.batch_size / trainer.pictures.weights.sum():.1f} passes over "
            f"{len(trainer.pictures):,} pictures")


def prepare_output(config: Config) -> None:
    """Make the output folder ready: new, or holding the same run; ValueError where it is another run's or not ours."""
    record = config.output / f"{config.command}.json"
    settings = config.model_dump(mode="json", exclude=CARRIED_OUT)
    there = {one.name for one in config.output.iterdir()} if config.output.exists() else set()
    if record.name not in there and there - {record.name + UNFINISHED}:
        raise ValueError(f"--output {config.output}: the folder is not empty and not a run of capsmith {config.command}")
    if config.overwrite:
        for name in (*DONE, LOG, VALIDATION_LOG, REJECTS, PAGE, CARD):
            (config.output / name).unlink(missing_ok=True)
        shutil.rmtree(config.output / BEST, ignore_errors=True)
        Checkpoints(config.output).clear()
    elif record.exists():
        _check_same(config.output, json.loads(record.read_text()), settings)
        return
    write_file(record, json.dumps({"capsmith": VERSION} | settings, indent=2))


def is_done(output: Path) -> bool:
    """Whether the folder holds a finished model."""
    return any((output / name).exists() for name in DONE)


def _check_same(output: Path, earlier: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError where the folder's run has other settings, or another version began it and did not finish it."""
    began = earlier.pop("capsmith", "0.1")  # 0.1 did not say so
    if began != VERSION and not is_done(output):
        raise ValueError(f"--output {output}: capsmith {began} began this run; finish it with capsmith {began}, or --overwrite "
                         "to start anew")
    if other := ", ".join(f"{name} was {value!r}, is {settings[name]!r}" for name, value in earlier.items()
                          if name in settings and settings[name] != value):  # those that both versions know
        raise ValueError(f"--output {output} holds a run with other settings (--overwrite starts anew): {other}")
