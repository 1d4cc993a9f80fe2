"""Run as a script: kills a run at its first, second, ... step and resumes it, each time; see test_manifest.py.

Every run is a fork of this process, which starts no thread of its own: a fork of one that has may hang.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pandas  # noqa: F401  (pyarrow imports it at first use: here once, instead of in each fork)
from conftest import FakeCaptioner

import generate.engine
from generate.config import GenerateConfig

KILLED, DONE = -signal.SIGKILL, 0


def files(folder: str) -> dict[str, bytes]:
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(config: GenerateConfig, kill_at: int = 0) -> int:
    """The exit code of a run that SIGKILLs itself at its nth step: a record written or a file renamed."""
    if (child := os.fork()) == 0:
        steps = 0

        def counted(function):
            def call(*args, **kwargs):
                nonlocal steps
                steps += 1
                if steps == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)
            return call
        os.replace = counted(os.replace)
        generate.engine.ShardWriter.write = counted(generate.engine.ShardWriter.write)
        generate.engine.load_captioner = lambda *args, **kwargs: FakeCaptioner()
        os._exit(generate.engine.run(config))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_and_resume(input: str, folder: Path, format: str) -> tuple[list[str], list[bool]]:
    """The files of an undisturbed run; and for each step whether a run killed there was resumed to the same bytes."""
    asked = {"input": [input], "model": "fake", "device": "cpu", "batch_size": 2, "format": format, "max_error_rate": 1}
    undisturbed = GenerateConfig(**asked, output=folder / "undisturbed")
    config = GenerateConfig(**asked, output=folder / "killed")
    assert run(undisturbed) == DONE
    expected, resumed = files(undisturbed.output), []
    while run(config, kill_at=len(resumed) + 1) == KILLED:
        half_done = files(config.output) != expected
        resumed.append(half_done and run(config) == DONE and files(config.output) == expected)
        shutil.rmtree(config.output)
    return sorted(expected), resumed


if __name__ == "__main__":
    input, folder, *formats = sys.argv[1:]
    print(json.dumps({format: kill_and_resume(input, Path(folder, format), format) for format in formats}))
