"""Several processes on one run: each owns every n-th shard, and they share nothing."""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.synchronize import Event

from captioners.ranks import Rank
from generate.runs.config import RunConfig
from imagetext.lock import JOB
from imagetext.shown import at_terminal, say_error
from imagetext.stops import STOPPED, end_with_parent, exit_code, interrupt_once

STOPPED_CODES = [128 + number for number in (signal.SIGINT, *STOPPED)]  # of a rank that was asked to end
RUNS = {
    "generate": "generate.captions.run",
    "reinforce": "generate.reinforce.run",
    "select": "generate.select.run",
}  # by name: a process comes to them on its own


def own_rank(config: RunConfig) -> Rank:
    """This process's rank; ValueError where a launcher started it, and the command asks for what one of several cannot do."""
    rank = Rank.of_this_process()
    asked = {
        "--overwrite": config.overwrite,
        "--num-processes": config.num_processes,
        "--engine ray": config.engine == "ray",
    }
    if rank.count > 1 and any(asked.values()):
        raise ValueError(
            f"{', '.join(name for name in asked if asked[name])}: a launcher has started this process as number "
            f"{rank.number} of {rank.count}, and none of them can begin anew or start others"
        )
    return rank


def launch(command: str, config: RunConfig, count: int, job: str) -> int:
    """Run the command in `count` processes; 2 where one of them found a mistake in the command, 1 where one failed, else 0.

    The first begins the run, then the others start: so a mistake is told once. One that dies leaves the others to finish.
    job: has the lock of the folder, which they share.
    Raises: KeyboardInterrupt, once all have stopped.
    """
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    others = config.model_copy(update={"overwrite": False})
    told = [
        (command, config, Rank(0, count), begun, job),
        *((command, others, Rank(number, count, number), None, job) for number in range(1, count)),
    ]
    ranks = [context.Process(target=_run_rank, args=what) for what in told]
    started = ranks[:1]
    try:
        ranks[0].start()
        while ranks[0].is_alive() and not begun.wait(0.1):
            pass
        if begun.is_set():
            for rank in ranks[1:]:
                rank.start()
                started.append(rank)
        for rank in started:
            rank.join()
    except KeyboardInterrupt:
        for rank in started:
            if rank.is_alive() and rank.pid is not None:
                os.kill(rank.pid, signal.SIGINT)
        for rank in started:
            rank.join()
        raise
    codes = [rank.exitcode for rank in started]
    if stopped := [code - 128 for code in codes if code in STOPPED_CODES]:
        raise KeyboardInterrupt(signal.Signals(stopped[0]))
    return 2 if 2 in codes else int(any(codes))


def _run_rank(command: str, config: RunConfig, rank: Rank, begun: Event | None, job: str) -> None:
    """What a process does that `launch` started."""
    os.environ[JOB] = job
    os.environ["LOCAL_WORLD_SIZE"] = str(rank.count)  # as torchrun says how many processes share a machine
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // rank.count))
    )  # before torch comes
    for number in (signal.SIGINT, *STOPPED):
        signal.signal(number, interrupt_once)  # a terminal's Ctrl-C comes twice: from the terminal and from `launch`
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        with at_terminal():
            sys.exit(importlib.import_module(RUNS[command]).run(config, rank, begun))
    except ValueError as error:
        say_error(command, error)
        sys.exit(2)
    except OSError as error:  # a full disk, a lock that is lost
        say_error(command, error)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        sys.exit(exit_code(stop))
