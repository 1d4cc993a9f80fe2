"""mypy checks that all captioners, forward passes and writers, and the tests' fakes, implement their protocols."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "protocols"


def check(path: Path, cache: Path) -> str:
    """The output of mypy for a file."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(FOLDER / "mypy.ini"),
        "--cache-dir",
        str(cache),
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_all_are_what_they_stand_for(tmp_path):
    assert check(FOLDER / "assigned.py", tmp_path / "cache") == "Success: no issues found in 1 source file\n"
    wrong = tmp_path / "wrong.py"  # the check must also report what is missing
    wrong.write_text("""
from captioners.base import Captioner
from tests.generate.conftest import FakeCaptioner
from finetune.captioner.forward import CoCaForward
from finetune.forward import Forward
from imagetext.writers.tar import TarShard
from imagetext.writers.writer import Writer
class Deaf(FakeCaptioner):
    def caption(self, requests, sampling): ...
class Unbounded(CoCaForward):
    clamp: int
class Endless(TarShard):
    def close(self, whole: bool) -> None: ...
captioner: Captioner = Deaf()
def assign(unbounded: Unbounded, endless: Endless) -> None:
    forward: Forward = unbounded
    writer: Writer = endless
""")
    output = check(wrong, tmp_path / "cache")
    assert all(f'variable has type "{name}"' in output for name in ("Captioner", "Forward", "Writer")), output
