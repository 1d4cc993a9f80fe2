"""Correctness on the card: the suite's `gpu` tests, and captions compared token by token with those of a CPU in
float32.
"""

import copy
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import PATIENCE
from benchmarks.same_tokens import compare, scrambled
from captioners.base import SamplingConfig
from captioners.coca.captioner import CoCaCaptioner
from captioners.resolve import resolve
from captioners.weights import DTYPES

ROOT = Path(__file__).parents[2]
TEST_SECONDS = 85  # less than the limit of the part, so that it can still report what failed


def gpu_tests(bench: Bench) -> Iterator[dict]:
    """Run the tests marked `gpu`: how many passed, and the name and last lines of each test that failed."""
    files = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-v",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *files,
        ]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=TEST_SECONDS * (PATIENCE if bench.rehearse else 1),
            )
        except subprocess.TimeoutExpired as late:
            lines = (late.stdout or b"").decode(errors="replace").splitlines()
            yield {
                "case": "gpu tests",
                "passed": sum(" PASSED" in line for line in lines),
                "failed": 1 + sum(" FAILED" in line for line in lines),
                "last_lines": [f"not done after {TEST_SECONDS} s", *lines[-8:]],
            }
            return
        if not report.exists():
            raise RuntimeError("pytest wrote no report: " + " | ".join((done.stdout + done.stderr).splitlines()[-8:]))
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {
        f"{case.get('classname')}.{case.get('name')}": (problem.text or problem.get("message") or "").splitlines()[-6:]
        for case in cases
        for problem in (*case.findall("failure"), *case.findall("error"))
    }
    skipped = sum(case.find("skipped") is not None for case in cases)
    yield {
        "case": "gpu tests" + (", which a CPU skips" if bench.rehearse else ""),
        "passed": len(cases) - len(failed) - skipped,
        "failed": len(failed),
        "skipped": skipped,
    }
    for name, lines in failed.items():
        yield {"case": name, "last_lines": lines}


def parity(bench: Bench) -> Iterator[dict]:
    """The share of the small CoCa's captions that equal a CPU's in float32, and where the others first differ."""
    scale = bench.scale
    on_cpu = scrambled(scale.small)
    pictures = list(bench.pictures(on_cpu, scale.parity))
    greedy = SamplingConfig(strategy="greedy", max_length=scale.tokens, min_length=0)
    sampled = SamplingConfig(num_captions=scale.captions, top_p=0.9, max_length=scale.tokens, min_length=0)
    expected = {sampling: tokens_of(on_cpu, pictures, sampling) for sampling in (greedy, sampled)}
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # otherwise the first layer of the image tower uses TF32
    try:
        for dtype, name, sampling in (
            ("fp32", "greedy", greedy),
            ("fp32", "drawn", sampled),
            ("fp16", "greedy", greedy),
            ("bf16", "greedy", greedy),
            ("bf16", "drawn", sampled),
        ):
            model = copy.deepcopy(on_cpu.model).to(bench.device, DTYPES[dtype])
            on_device = CoCaCaptioner(model, resolve(scale.small), weights_sha256=on_cpu.weights_sha256)
            comparison = compare(tokens_of(on_device, pictures, sampling), expected[sampling])
            first = comparison.pop("first_difference")
            yield {
                "case": f"{scale.small}, {dtype}, {name}, against the CPU's fp32",
                **comparison,
                "earliest": first[0] if first else None,
                "median": first[len(first) // 2] if first else None,
            }
    finally:
        torch.backends.cudnn.allow_tf32 = before


def tokens_of(captioner: CoCaCaptioner, pictures: list, sampling: SamplingConfig) -> list[list[int]]:
    """The tokens of all captions of the pictures, with start and end."""
    with patch.object(captioner, "decode", list):  # gives the tokens in place of their text
        return [
            caption.text for captioned in captioner.caption(iter(pictures), sampling) for caption in captioned.captions
        ]
