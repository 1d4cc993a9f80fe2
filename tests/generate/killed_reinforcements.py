"""Run as a script: kills `capsmith reinforce` at its first, second, ... step and resumes it, each time; see test_reinforce.py.

Every run is a fork of this process, which starts no thread of its own: a fork of one that has may hang.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

import generate.reinforce
from generate.reinforce_config import ReinforceConfig
from generate.teachers import Teacher

KILLED, DONE = -signal.SIGKILL, 0


class FakeTeacher(Teacher):
    def embed(self, views, texts, batch_size):
        return views.float().mean((2, 3)), torch.tensor([[len(text), sum(text.encode()), 1.0] for text in texts]).reshape(-1, 3)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(config: ReinforceConfig, kill_at: int = 0) -> int:
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
        generate.reinforce.ShardWriter.write = counted(generate.reinforce.ShardWriter.write)
        generate.reinforce.load_teachers = lambda names, device, dtype: [
            FakeTeacher("fake", None, None, (16, 16), (0.5,) * 3, (0.5,) * 3, 3, 100.0, None, "0" * 64)]
        os._exit(generate.reinforce.run(config))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_and_resume(input: str, folder: Path) -> tuple[list[str], list[bool]]:
    """The files of an undisturbed run; and for each step whether a run killed there was resumed to the same bytes."""
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    asked = {"input": [input], "teacher": ["fake"], "views": 2, "device": "cpu", "num_workers": 0, "max_error_rate": 1}
    config = ReinforceConfig(**asked, output=killed)
    assert run(ReinforceConfig(**asked, output=undisturbed)) == DONE
    expected, resumed = files(undisturbed), []
    while run(config, kill_at=len(resumed) + 1) == KILLED:
        half_done = files(killed) != expected
        resumed.append(half_done and run(config) == DONE and files(killed) == expected)
        shutil.rmtree(killed)
    return sorted(expected), resumed


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(kill_and_resume(sys.argv[1], Path(sys.argv[2]))))
