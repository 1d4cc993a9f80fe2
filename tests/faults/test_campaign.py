"""Whatever disturbs a run, resumed it gives the bytes of a run that was left alone: faults drawn from a seed.

`CAPSMITH_FAULTS` says how many; `make soak` has 200.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import capsmith

ROOT = Path(capsmith.__file__).parent
COUNT = int(os.environ.get("CAPSMITH_FAULTS", 20))
SEED = int(os.environ.get("CAPSMITH_SEED", 0))


def test_disturbed_runs_are_resumed_to_the_bytes_of_an_undisturbed_one(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("campaign.py")), str(tmp_path), str(COUNT), str(SEED)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'generate'}", "OMP_NUM_THREADS": "1"},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    results = list(map(json.loads, done.stdout.splitlines()))
    assert len(results) == COUNT
    assert [result for result in results if result["problems"]] == []
