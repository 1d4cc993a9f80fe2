"""Damaged YAML as a configuration, drawn by number; `CAPSMITH_FUZZ=1000` draws 1,000.

Each file is read as a configuration, or its problems are reported, in little memory and time.
"""

import os
from pathlib import Path

from .fuzzing import problems

CASES = int(os.environ.get("CAPSMITH_FUZZ", 25))


def test_damaged_configurations_are_refused_in_words(tmp_path):
    assert problems(Path(__file__).with_name("fuzz_configs.py"), CASES, tmp_path) == {}
