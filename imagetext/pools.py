"""A pool of processes in which a killed process makes the calls fail, at whatever moment it is killed."""

import multiprocessing
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

# A forked process has the models, tables and pictures of this one without a copy, and starts at once. Since 3.14,
# Python does not fork unless it is told.
FORK = multiprocessing.get_context("fork")
LOOK = 1.0  # seconds between checks whether the processes are alive

Result = TypeVar("Result")


class Pool(ProcessPoolExecutor):
    """Python's ProcessPoolExecutor, which never waits for a process that is dead.

    Python's own pool waits for ever if a process is killed while it sends an answer: the pool waits for the other half
    of the answer, and the other processes wait for their turn to send theirs.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        # kept here, because the pool drops its own references when it ends
        self._workers, answers = self._processes, self._result_queue
        self._writing_end: Any = vars(answers)["_writer"]  # of the pipe of answers, in this process

    def answer(self, call: "Future[Result]") -> Result:
        """Return what the call returns. Raises what it raises, and BrokenProcessPool if a process has died."""
        while True:
            try:
                return call.result(LOOK)
            except TimeoutError:
                if call.done():  # then the call itself has raised TimeoutError
                    raise
                self.look()

    def look(self) -> None:
        """End the pool if one of its processes has died; all open calls then raise BrokenProcessPool.

        When all processes have ended and this process has closed its writing end, the pipe of answers ends, and
        Python's pool notices that it is broken.
        """
        workers = list(self._workers.values())
        if any(process.exitcode for process in workers):  # neither alive nor ended normally
            for process in workers:
                process.kill()
            self._writing_end.close()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        end = threading.Thread(target=super().shutdown, args=(wait,), kwargs={"cancel_futures": cancel_futures})
        end.start()
        while end.is_alive():
            end.join(LOOK)
            self.look()
