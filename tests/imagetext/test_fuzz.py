"""Malformed input of every kind, drawn by number: `CAPSMITH_FUZZ=1000` draws so many.

Whatever comes, reading ends, either with all rows, each with its picture or a reason, or with an error that names the file
after rows that are whole; and what was read can be written and read again in every format without losing a row.
"""

import os
from pathlib import Path

from ..fuzzing import problems

CASES = int(os.environ.get("CAPSMITH_FUZZ", 48))


def test_malformed_input(tmp_path):
    assert problems(Path(__file__).with_name("fuzz.py"), CASES, tmp_path) == {}
