"""All measurements on a GPU in one command: `python -m benchmarks.gpu --output FOLDER`.

On a machine without a package index, run this from the root of a checkout with the folder that `make gpu-wheels`
fills:

    python3 -m benchmarks.gpu.install .gpu-wheels /tmp/capsmith
    /tmp/capsmith/bin/python -m benchmarks.gpu --output "$OUT"

The parts run in the order of their importance, each with its own time limit, until `--seconds` are used up. Each
figure is a line of JSON, which is written to FOLDER/parts.jsonl and standard output as soon as it is known. If a part
fails, the others still run. Parts for which no time is left are named. FOLDER/RESULTS.md has a table of the figures,
FOLDER/profile.txt the profile, and FOLDER/log.txt all other output.

One process runs the parts one after the other, so that they share models. If a part leaves the process unusable, a new
process runs the next parts. `--rehearse` runs everything on a CPU with tiny models.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.gpu.parts import PARTS, run_parts
from benchmarks.gpu.table import table

LEAST = 8  # with fewer seconds left than this, no further part begins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the results")
    parser.add_argument(
        "--part",
        choices=PARTS,
        nargs="+",
        action="extend",
        help="run only these parts, in the order of their importance",
    )
    parser.add_argument("--seconds", type=float, default=420, help="seconds for all parts together")
    parser.add_argument("--rehearse", action="store_true", help="run on a CPU with tiny models")
    parser.add_argument(
        "--peer-python", type=Path, help="interpreter with the paper's loop (default: the one that `install` made)"
    )
    args = parser.parse_args()
    installed = Path(f"{sys.prefix}-peer") / "bin" / "python"
    args.peer_python = args.peer_python or (installed if installed.exists() else None)
    args.output.mkdir(parents=True, exist_ok=True)
    for name in ("parts.jsonl", "profile.txt", "log.txt"):
        (args.output / name).unlink(missing_ok=True)
    deadline, lines = time.monotonic() + args.seconds, []
    waiting = [name for name in PARTS if not args.part or name in args.part]
    while waiting and deadline - time.monotonic() > LEAST:
        for line in run_parts(waiting, deadline, args):
            keep(line, lines, args.output)
    for name in waiting:
        keep({"part": name, "status": "left out", "why": f"{args.seconds:.0f} s were used up"}, lines, args.output)
    (args.output / "RESULTS.md").write_text(table(lines), encoding="utf-8")
    print(table(lines))


def keep(line: dict, lines: list[dict], output: Path) -> None:
    lines.append(line)
    with open(output / "parts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
