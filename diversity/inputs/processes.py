"""Do the same work on many tasks in several processes, with one progress bar."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from ctypes import Array
from typing import TypeVar

from imagetext.pools import Pool
from imagetext.shown import Progress, at_terminal
from imagetext.stops import become_worker

Task = TypeVar("Task")
Result = TypeVar("Result")
Run = Callable[[Callable[[Iterable[Task]], Result], Sequence[Task], str], list[Result]]

_done: Array  # in a worker process: how many tasks each worker has done


@contextmanager
def processes(workers: int) -> Iterator[Run]:
    """Yield `run(work, tasks, description)`, which divides tasks among `workers` processes and returns the results.

    Worker w calls `work` once, on tasks[w::workers], and result w is what it returns; so no result depends on which
    process is faster. A single worker is this process. Several workers are spawned, because a fork of a process with
    threads may hang; so a script that calls this needs the usual `if __name__ == "__main__"`.
    """
    if workers == 1:
        yield lambda work, tasks, description: [work(Progress(tasks, description, unit="piece", delay=2))]
        return
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    done = context.RawArray("q", workers)  # without a lock, which a killed worker might keep
    with Pool(workers, context, _start_worker, initargs=(done,)) as pool:

        def run(work: Callable[[Iterable[Task]], Result], tasks: Sequence[Task], description: str) -> list[Result]:
            done[:] = [0] * workers
            parts = [pool.submit(_work, work, tasks[first::workers], first) for first in range(workers)]
            with Progress(desc=description, total=len(tasks), unit="piece", delay=2) as progress:
                while wait(parts, timeout=0.1).not_done:
                    progress.update(sum(done) - progress.n)
                    pool.look()
                progress.update(len(tasks) - progress.n)
            return [part.result() for part in parts]

        try:
            yield run
        except BaseException:  # after an interrupt or an error in one worker, the work of the others is useless
            for process in set(multiprocessing.active_children()).difference(others):
                process.terminate()
            raise


def _start_worker(done: Array) -> None:
    """Prepare a worker process; `done`, the numbers of finished tasks, is shared by all workers."""
    global _done
    _done = done
    become_worker()
    at_terminal().__enter__()  # the worker leaves it when the process ends


def _work(work: Callable[[Iterable[Task]], Result], tasks: Sequence[Task], number: int) -> Result:
    return work(_counted(tasks, number))


def _counted(tasks: Sequence[Task], number: int) -> Iterator[Task]:
    """Yield the tasks of a worker, and count each when the next one is requested."""
    for task in tasks:
        yield task
        _done[number] += 1
