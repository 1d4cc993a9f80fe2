"""Whatever disturbs a command, the same command given again makes the bytes of an undisturbed run.

Faults are drawn from a seed. `CAPSMITH_FAULTS` is their number for all commands together. `make soak` has 1,000 of
them, a tenth as many in a bucket, and one in fifty on a Ray cluster.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import capsmith

ROOT = Path(capsmith.__file__).parent
SHARES = {
    "generate": 30,
    "reinforce": 15,
    "join": 8,
    "select": 4,
    "verify": 5,
    "diversity": 6,
    "finetune": 16,
    "train-student": 16,
}  # %
FEW = {"generate": 4, "reinforce": 1, "join": 1, "select": 1, "finetune": 1}
SEED = int(os.environ.get("CAPSMITH_SEED", 0))
COUNTS = (
    {name: int(os.environ["CAPSMITH_FAULTS"]) * share // 100 for name, share in SHARES.items()}
    if "CAPSMITH_FAULTS" in os.environ
    else FEW
)


FOR_BUCKETS, FOR_CLUSTERS = sum(COUNTS.values()) // 10, sum(COUNTS.values()) // 50


def run(script: str, *arguments: object) -> list[dict]:
    """Run a script of this folder; return the results that it prints, one per line."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)],
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(arguments[0])},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return list(map(json.loads, done.stdout.splitlines()))


def test_disturbed_runs_are_resumed_to_the_bytes_of_an_undisturbed_one(tmp_path):
    results = run("campaign.py", tmp_path, SEED, json.dumps(COUNTS))
    assert Counter(result["command"] for result in results) == COUNTS
    assert [result for result in results if result["problems"]] == []


@pytest.mark.skipif(COUNTS is FEW, reason="takes a minute; CAPSMITH_FAULTS asks for it")
def test_in_a_bucket_too(tmp_path):
    results = run("buckets.py", tmp_path, SEED, FOR_BUCKETS)
    assert len(results) == FOR_BUCKETS
    assert [result for result in results if result["problems"]] == []


@pytest.mark.skipif(COUNTS is FEW, reason="takes minutes; CAPSMITH_FAULTS asks for it")
def test_on_a_ray_cluster_too(tmp_path):
    results = run("clusters.py", tmp_path, SEED, FOR_CLUSTERS)
    assert len(results) == FOR_CLUSTERS
    assert [result for result in results if result["problems"]] == []
