"""A script that kills a command at its first, second, ... step, and resumes it each time.

test_manifest.py and test_reinforce.py run it. Every run is a fork of this process, which starts no threads, because a
fork of a process with threads may hang.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pandas  # noqa: F401  (pyarrow imports it at first use: here once, instead of in each fork)
import torch
from conftest import FakeCaptioner

import generate.captions.load
import generate.captions.run
import generate.reinforce.run
from generate.captions.config import GenerateConfig
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.teachers import Teacher
from imagetext.shards import ShardWriter

KILLED, DONE = -signal.SIGKILL, 0


class FakeTeacher(Teacher):
    def embed(self, views, texts, batch_size):
        return views.float().mean((2, 3)), torch.tensor(
            [[len(text), sum(text.encode()), 1.0] for text in texts]
        ).reshape(-1, 3)


COMMANDS = {
    "generate": (generate.captions.run.run, GenerateConfig, {"model": "fake", "batch_size": 2}),
    "reinforce": (generate.reinforce.run.run, ReinforceConfig, {"teacher": ["fake"], "views": 2, "num_workers": 0}),
}
generate.captions.load.load_captioner = lambda *args, **kwargs: FakeCaptioner()
generate.reinforce.run.load_teachers = lambda *args, **kwargs: [
    FakeTeacher(
        "fake",
        None,
        None,
        size=(16, 16),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        dimension=3,
        logit_scale=100.0,
        logit_bias=None,
        weights_sha256="0" * 64,
    )
]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(command: str, options: dict, output: Path, kill_at: int = 0) -> int:
    """Return the exit code of a run that kills itself at its nth step: a record written, or a file renamed."""
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

        os.replace, ShardWriter.write = counted(os.replace), counted(ShardWriter.write)
        run, config, _ = COMMANDS[command]
        os._exit(run(config(**options, output=output)))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_and_resume(command: str, input: str, folder: Path, format: str) -> tuple[list[str], list[bool]]:
    """Return the files of an undisturbed run; and, for each step, whether a run killed there resumed to the same."""
    options = {"input": [input], "device": "cpu", "format": format, "max_error_rate": 1, **COMMANDS[command][2]}
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    assert run(command, options, undisturbed) == DONE
    expected, resumed = files(undisturbed), []
    while run(command, options, killed, kill_at=len(resumed) + 1) == KILLED:
        half_done = files(killed) != expected
        resumed.append(half_done and run(command, options, killed) == DONE and files(killed) == expected)
        shutil.rmtree(killed)
    return sorted(expected), resumed


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, input, folder, *formats = sys.argv[1:]
    print(
        json.dumps(
            {format: kill_and_resume(command, input, Path(folder, format), format=format) for format in formats}
        )
    )
