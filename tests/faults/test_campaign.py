"""Whatever disturbs a command, the same command again gives the bytes of a run that was left alone: faults drawn from a seed.

`CAPSMITH_FAULTS` says how many there are of all commands together; `make soak` has 1,000.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import capsmith

ROOT = Path(capsmith.__file__).parent
SHARES = {"generate": 30, "reinforce": 15, "join": 12, "verify": 5, "diversity": 6, "finetune": 16, "train-student": 16}  # %
FEW = {"generate": 8, "reinforce": 3, "join": 2, "verify": 1, "diversity": 1, "finetune": 2, "train-student": 2}
SEED = int(os.environ.get("CAPSMITH_SEED", 0))
COUNTS = {name: int(os.environ["CAPSMITH_FAULTS"]) * share // 100 for name, share in SHARES.items()} \
    if "CAPSMITH_FAULTS" in os.environ else FEW


def test_disturbed_runs_are_resumed_to_the_bytes_of_an_undisturbed_one(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("campaign.py")), str(tmp_path), str(SEED), json.dumps(COUNTS)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    results = list(map(json.loads, done.stdout.splitlines()))
    assert Counter(result["command"] for result in results) == COUNTS
    assert [result for result in results if result["problems"]] == []
