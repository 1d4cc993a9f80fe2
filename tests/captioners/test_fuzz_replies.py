"""Malformed replies of servers, drawn by number: `CAPSMITH_FUZZ=1000` draws so many.

Whatever comes, it is captions, or a trouble in a line without secrets, in little memory and time.
"""

import os
from pathlib import Path

from ..fuzzing import problems

CASES = int(os.environ.get("CAPSMITH_FUZZ", 100))


def test_malformed_replies_are_refused_in_words(tmp_path):
    assert problems(Path(__file__).with_name("fuzz_replies.py"), CASES, tmp_path) == {}
