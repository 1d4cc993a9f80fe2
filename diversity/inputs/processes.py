"""The same work on many tasks, by several processes, with one progress bar."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

from imagetext.pools import Pool
from imagetext.shown import Progress, at_terminal
from imagetext.stops import become_worker

Task = TypeVar("Task")
Result = TypeVar("Result")
Run = Callable[[Callable[[Iterable[Task]], Result], Sequence[Task], str], list[Result]]

_done: Synchronized  # of a worker: the tasks that all of them have done


@contextmanager
def processes(workers: int) -> Iterator[Run]:
    """Gives `run(work, tasks, description)`, the results of `work` on every `workers`-th task, as many as there are workers.

    Result w is that of tasks[w::workers], so it does not depend on which process is faster. One worker is this process.
    The others are spawned, since a fork of a process that has threads may hang; a script must keep to the usual
    `if __name__ == "__main__"`.
    """
    if workers == 1:
        yield lambda work, tasks, description: [work(Progress(tasks, description, unit="piece", delay=2))]
        return
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    done = context.Value("q", 0)
    with Pool(workers, context, _share, (done,)) as pool:

        def run(work: Callable[[Iterable[Task]], Result], tasks: Sequence[Task], description: str) -> list[Result]:
            done.value = 0
            parts = [pool.submit(_work, work, tasks[first::workers]) for first in range(workers)]
            with Progress(desc=description, total=len(tasks), unit="piece", delay=2) as progress:
                while wait(parts, timeout=0.1).not_done:
                    progress.update(done.value - progress.n)
                    pool.look()
                progress.update(len(tasks) - progress.n)
            return [part.result() for part in parts]

        try:
            yield run
        except BaseException:  # interrupted, or a mistake in one part: what the others still do is in vain
            for process in set(multiprocessing.active_children()).difference(others):
                process.terminate()
            raise


def _share(done: Synchronized) -> None:
    global _done
    _done = done
    become_worker()
    at_terminal().__enter__()  # which it leaves when it ends


def _work(work: Callable[[Iterable[Task]], Result], tasks: Sequence[Task]) -> Result:
    return work(_counted(tasks))


def _counted(tasks: Sequence[Task]) -> Iterator[Task]:
    for task in tasks:
        yield task
        with _done.get_lock():
            _done.value += 1
