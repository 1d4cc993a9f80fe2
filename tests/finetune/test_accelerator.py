"""The memory of a training on a CPU."""

import ctypes
import platform
import subprocess
import sys

import pytest

from finetune.accelerator import keep_freed_memory

STEPS = """
import resource
import torch
from finetune.accelerator import keep_freed_memory

def step():
    return [torch.ones(6 * 2**20) for _ in range(3)]

keep_freed_memory()
step(), step()
pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_being_cleared():
    """The third step's tensors, of 24 MiB each, take no new pages: 18,432 would be cleared by default.

    The steps have a process of their own, because in this one other tests have left memory in pieces.
    """
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) < 1000, done.stdout + done.stderr


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    keep_freed_memory()
