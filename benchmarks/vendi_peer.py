"""The peer of `vendi.py`, in its own environment: vendi-score's dual form.

This file imports nothing of ours. Its argument is a JSON object: `rows`, a file of embeddings (N, D); `orders`, the
orders q of the scores.
"""

import json
import sys
import time

import numpy as np
from vendi_score import vendi


def memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def main() -> None:
    options = json.loads(sys.argv[1])
    rows = np.load(options["rows"], allow_pickle=False)

    def scores():
        return {
            q: float(vendi.score_dual(rows, q="inf" if q == "inf" else float(q), normalize=True))
            for q in options["orders"]
        }

    print(json.dumps({"rows": len(rows)}), flush=True)
    for line in sys.stdin:
        values = scores()  # warms up
        if json.loads(line) == "scores":
            print(json.dumps(values), flush=True)
            continue
        with open("/proc/self/clear_refs", "w") as file:  # resets the peak
            file.write("5")
        before, start = memory("VmRSS"), time.perf_counter()
        scores()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak": memory("VmHWM") - before}), flush=True)


if __name__ == "__main__":
    main()
