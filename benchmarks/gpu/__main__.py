"""All that a GPU is measured on, in one command: `python -m benchmarks.gpu --output FOLDER`.

On a machine without a package index, from the root of a checkout with the folder that `make gpu-wheels` has filled:

    python3 -m benchmarks.gpu.install .gpu-wheels /tmp/capsmith && /tmp/capsmith/bin/python -m benchmarks.gpu --output "$OUT"

The parts come in the order of their worth, each with a limit of its own, until the seconds in all are used up. Each figure is a line of
JSON, in FOLDER/parts.jsonl and on the standard output, as soon as it is known; a part that fails costs itself alone, and what did
not fit is named. FOLDER/RESULTS.md is the table of them, FOLDER/profile.txt the profile, FOLDER/log.txt what else was said.

The parts are done by a process of their own, one after the other, so that they share models; where one ends badly, the next
ones get a fresh process. `--rehearse` does all of it on a CPU with tiny models.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.gpu.parts import PARTS, run_parts
from benchmarks.gpu.table import table

LEAST = 8  # seconds for which no part is begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the results are written")
    parser.add_argument(
        "--part", choices=PARTS, nargs="+", action="extend", help="these parts alone, in the order of their worth"
    )
    parser.add_argument("--seconds", type=float, default=420, help="in all, for the parts")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU with tiny models")
    parser.add_argument(
        "--peer-python", type=Path, help="an interpreter with the paper's loop; that of `install` unless given"
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
