"""Several processes on one run: each does every n-th shard, and they share nothing."""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.synchronize import Semaphore

from captioners.machine import free_cores
from captioners.ranks import Rank
from generate.runs.config import RunConfig
from imagetext.lock import JOB
from imagetext.shown import at_terminal, say_error
from imagetext.stops import STOPPED, end_with_parent, exit_code, interrupt_once

STOPPED_CODES = [128 + number for number in (signal.SIGINT, *STOPPED)]  # exit codes of a process that a signal ended
RUNS = {  # the module of each command, by name, because a spawned process imports it anew
    "generate": "generate.captions.run",
    "reinforce": "generate.reinforce.run",
    "select": "generate.select.run",
}


def own_rank(config: RunConfig) -> Rank:
    """Return this process's rank.

    Raises: ValueError where a launcher started this process as one of several, and the command asks for something that
    only a single process can do.
    """
    rank = Rank.of_this_process()
    needs_one_process = {
        "--overwrite": config.overwrite,
        "--num-processes": config.num_processes,
        "--engine ray": config.engine == "ray",
    }
    flags = [flag for flag, is_given in needs_one_process.items() if is_given]
    if rank.count > 1 and flags:
        raise ValueError(
            f"{', '.join(flags)}: cannot be used under a launcher, which has started this process as number "
            f"{rank.number} of {rank.count}; none of them can begin the run anew or start other processes"
        )
    return rank


def launch(command: str, config: RunConfig, count: int, *, job: str) -> int:
    """Run the command in `count` processes, and return its exit code.

    The first process begins the run, so that a mistake in the command is reported once; the others import their
    libraries meanwhile. If a process dies, the others finish their shards. job: the job that has locked the output
    folder; the processes share its lock.
    Returns: 2 where a process found a mistake in the command, 1 where one failed, else 0.
    Raises: KeyboardInterrupt, once all processes have stopped.
    """
    context = multiprocessing.get_context("spawn")
    begun = context.Semaphore(0)  # not an Event, whose set() waits for ever for a process that died as it waited
    other_config = config.model_copy(update={"overwrite": False})
    arguments: list[tuple] = [(command, config, Rank(0, count), begun, job)]
    for number in range(1, count):
        arguments.append((command, other_config, Rank(number, count, number), begun, job))
    processes = [context.Process(target=_run_rank, args=rank_arguments) for rank_arguments in arguments]
    first, *others = processes
    try:
        for process in processes:
            process.start()
        has_begun = False
        while first.is_alive() and not has_begun:
            has_begun = begun.acquire(timeout=0.1)
        if not (has_begun or begun.acquire(block=False)):  # the first has failed: the others have nothing to do
            for process in others:
                process.kill()
            processes = [first]
        for process in (first, *others):
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGINT)
        for process in processes:
            if process.pid is not None:
                process.join()
        raise
    codes = [process.exitcode for process in processes]
    if signals := [code - 128 for code in codes if code in STOPPED_CODES]:
        raise KeyboardInterrupt(signal.Signals(signals[0]))
    return 2 if 2 in codes else int(any(codes))


def _run_rank(command: str, config: RunConfig, rank: Rank, begun: Semaphore, job: str) -> None:
    """Run the command as one of the processes that `launch` started; all but the first wait until it has begun."""
    os.environ[JOB] = job
    os.environ["LOCAL_WORLD_SIZE"] = str(rank.count)  # torchrun's variable for the processes that share a machine
    threads = max(1, free_cores() // rank.count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before torch is imported
    for number in (signal.SIGINT, *STOPPED):
        signal.signal(number, interrupt_once)  # Ctrl-C comes twice: from the terminal and from `launch`
    threading.Thread(target=end_with_parent, daemon=True).start()

    def release_all() -> None:
        for _ in range(rank.count):  # the other processes and `launch`
            begun.release()

    try:
        with at_terminal():
            run = importlib.import_module(RUNS[command]).run
            if rank.number:
                begun.acquire()
            sys.exit(run(config, rank, None if rank.number else release_all))
    except ValueError as error:
        say_error(command, error)
        sys.exit(2)
    except OSError as error:  # a full disk, a lock that is lost
        say_error(command, error)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        sys.exit(exit_code(stop))
