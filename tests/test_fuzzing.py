"""A check of many inputs reports the numbers of those that raise, end the process or take too much, and goes on."""

from .fuzzing import problems

SCRIPT = """
import os, signal
from tests import fuzzing

def check(number, folder):
    assert not list(folder.iterdir())
    if number == 1:
        raise ValueError("one")
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3:
        bytearray(3 * 10**9)
    if number == 5:
        signal.pause()

fuzzing.SECONDS = 1
fuzzing.take(check)
"""


def test_each_problem_has_its_number(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    by_number = problems(tmp_path / "script.py", 7, tmp_path / "cases")
    expected = {1: "ValueError: one", 2: "code -11", 3: "MemoryError", 5: "signal.pause()"}
    assert by_number.keys() == expected.keys() and "Timeout" in by_number[5]
    assert all(words in by_number[number] for number, words in expected.items() if number != 5)
