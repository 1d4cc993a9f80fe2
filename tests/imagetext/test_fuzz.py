"""Malformed input of every kind, drawn by number: `CAPSMITH_FUZZ=1000` draws 1,000 inputs.

Reading any input ends either with all rows, each with its picture or an error, or, after whole rows, with an error
that names the file. The rows can be written and read again in every format without losing one.
"""

import os
from pathlib import Path

from ..fuzzing import problems

CASES = int(os.environ.get("CAPSMITH_FUZZ", 48))


def test_malformed_input_fails_in_words_and_within_bounds(tmp_path):
    assert problems(Path(__file__).with_name("fuzz.py"), CASES, tmp_path) == {}
