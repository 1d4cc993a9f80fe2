"""A rehearsal of the GPU benchmark on this CPU, so that no line of it runs for the first time on an expensive card."""

import json
import os
import subprocess
import sys
from pathlib import Path

import capsmith
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.table import HEADINGS

ROOT = Path(capsmith.__file__).parent


def command(output: Path, *flags: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--output", str(output), "--rehearse", *flags],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (output / "parts.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] == lines
    return lines


def test_every_part_gives_its_figures_and_the_table_has_them(tmp_path):
    lines = command(tmp_path, "--seconds", "1800")
    ends = {line["part"]: line for line in lines if "status" in line}
    assert {part: end["status"] for part, end in ends.items()} == dict.fromkeys(PARTS, "done"), ends
    assert [line["part"] for line in lines if "status" in line] == list(PARTS) == list(HEADINGS)
    for part in PARTS:
        assert [line for line in lines if line["part"] == part and "case" in line], part
    ending = next(line for line in lines if line.get("case", "").endswith("captions that end"))
    assert 8 <= ending["tokens"] < 12  # captions end by themselves after at least 8 tokens; the limit is 12
    text = (tmp_path / "RESULTS.md").read_text()
    assert all(f"### {heading}\n" in text for heading in HEADINGS.values()) and "a CPU, rehearsed" in text
    assert (tmp_path / "profile.txt").read_text().count("# coca_tiny") == 2


def test_what_does_not_fit_is_named(tmp_path):
    lines = command(tmp_path, "--seconds", "1", "--part", "ceilings", "small")
    assert [(line["part"], line["status"]) for line in lines] == [("ceilings", "left out"), ("small", "left out")]
