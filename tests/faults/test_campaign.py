"""Whatever disturbs a run, resumed it gives the bytes of a run that was left alone: faults drawn from a seed.

`CAPSMITH_FAULTS` says how many in `generate`, and two for each five of them in `reinforce`; `make soak` has 200 and 80.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import capsmith

ROOT = Path(capsmith.__file__).parent
COUNTS = {"generate": (count := int(os.environ.get("CAPSMITH_FAULTS", 20))), "reinforce": count * 2 // 5}
SEED = int(os.environ.get("CAPSMITH_SEED", 0))


def test_disturbed_runs_are_resumed_to_the_bytes_of_an_undisturbed_one(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("campaign.py")), str(tmp_path), str(SEED), *map(str, COUNTS.values())]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'generate'}", "OMP_NUM_THREADS": "1"},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    results = list(map(json.loads, done.stdout.splitlines()))
    assert Counter(result["command"] for result in results) == COUNTS
    assert [result for result in results if result["problems"]] == []
