"""Find duplicated lines: `python tests/doubles.py` lists them, and fails if there are any.

Two places outside tests may share at most eight equal lines in a row. Blank lines, imports and indentation do not
count, because copied code is usually indented anew. The signatures of functions do not count either, because every
class that implements a protocol repeats them.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHERE = (
    "imagetext",
    "captioners",
    "diversity",
    "generate",
    "finetune",
    "benchmarks",
    "examples",
    "capsmith.py",
    "quickstart.py",
)
MOST = 8  # equal lines in a row

Line = tuple[int, str]  # number of the line in the file, and its text without indentation


def lines_that_count(text: str) -> list[Line]:
    skipped = set()  # numbers of lines that do not count
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            skipped.update(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            skipped.update(range(node.lineno, node.body[0].lineno))
    return [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and number not in skipped
    ]


def doubles(files: dict[str, str]) -> list[str]:
    """Messages `FILE:LINE and FILE:LINE share N lines`, with the longest common piece of each pair of places."""
    lines = {name: lines_that_count(text) for name, text in files.items()}
    places = defaultdict(list)  # MOST + 1 lines in a row -> (file, index) of each place that has them
    for name, counted in lines.items():
        for start in range(len(counted) - MOST):
            places[tuple(text for _, text in counted[start : start + MOST + 1])].append((name, start))
    pairs = {
        (first, second)
        for positions in places.values()
        for i, first in enumerate(positions)
        for second in positions[i + 1 :]
    }
    problems = []
    for (name, start), (other, other_start) in sorted(pairs):
        if ((name, start - 1), (other, other_start - 1)) in pairs:
            continue  # this is the middle of a longer piece
        length = MOST + 1
        while ((name, start + length - MOST), (other, other_start + length - MOST)) in pairs:
            length += 1
        problems.append(
            f"{name}:{lines[name][start][0]} and {other}:{lines[other][other_start][0]} share {length} lines"
        )
    return problems


def sources() -> dict[str, str]:
    paths = [
        path for name in WHERE for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(paths)}


if __name__ == "__main__":
    problems = doubles(sources())
    print("\n".join(problems) or f"No two places share more than {MOST} lines.")
    sys.exit(bool(problems))
