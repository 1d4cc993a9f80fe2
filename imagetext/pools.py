"""Processes that make calls, of which one that is killed, whenever that is, fails the calls and keeps nobody waiting."""

import threading
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

LOOK = 1.0  # seconds between looks at whether the processes are alive

Result = TypeVar("Result")


class Pool(ProcessPoolExecutor):
    """Python's own pool, which waits for ever where a process is killed while it sends an answer.

    Of that answer the pool waits for the other half, and the other processes wait for their turn to send theirs.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._own, answers = self._processes, self._result_queue  # the pool itself lets go of them where it ends
        self._end: Any = vars(answers)["_writer"]  # this process's, of the pipe of answers

    def answer(self, asked: "Future[Result]") -> Result:
        """What the call returns; raises what it raises, BrokenProcessPool where a process has died."""
        while True:
            try:
                return asked.result(LOOK)
            except TimeoutError:
                if asked.done():  # it is what the call has raised
                    raise
                self.look()

    def look(self) -> None:
        """Ends the pool where one of its processes has died: whoever waits gets BrokenProcessPool.

        Once all of them are gone, and this process's own end of the pipe, the pipe ends, and the pool finds itself broken.
        """
        own = list(self._own.values())
        if any(process.exitcode for process in own):  # neither alive nor ended as asked
            for process in own:
                process.kill()
            self._end.close()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        end = threading.Thread(target=super().shutdown, args=(wait,), kwargs={"cancel_futures": cancel_futures})
        end.start()
        while end.is_alive():
            end.join(LOOK)
            self.look()
