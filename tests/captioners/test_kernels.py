"""Runs the Triton kernels in Triton's interpreter, in its own process, because Triton chooses it when imported."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("kernels_interpreted.py")


def test_kernels_do_what_they_stand_for():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[:2] == ["the", "kernels"], done.stderr
