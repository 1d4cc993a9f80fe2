"""Runs the Triton kernels in Triton's interpreter, and compiles them; both in processes of their own.

Triton chooses its interpreter when it is imported, and keeps compiled kernels in the user's folder.
"""

import os
import subprocess
import sys
from pathlib import Path

INTERPRETED = Path(__file__).with_name("kernels_interpreted.py")
COMPILED = Path(__file__).with_name("kernels_compiled.py")


def test_kernels_do_what_they_stand_for():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[:2] == ["the", "kernels"], done.stderr


def test_kernels_fit_on_cards_of_all_generations(tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, COMPILED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "90 torch.bfloat16" in done.stdout, done.stdout + done.stderr
