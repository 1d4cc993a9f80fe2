"""The peer of `gate.py`, in its own environment: data-juicer's executor, which `dj-process` runs.

This file imports nothing of ours. Its argument is a JSON object: `folder`, for everything that it writes. A question
is an object: `rows`, a JSONL file of texts; `process`, the operators of a recipe. The answer is the file of the rows
that are left. null asks for the cost of the last question, in processor seconds.
"""

import json
import resource
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def run(rows: str, process: list, folder: Path) -> tuple[dict, str]:
    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor

    recipe = folder / "recipe.json"
    output = folder / "left.jsonl"
    settings = {
        "project_name": "captions",
        "dataset_path": rows,
        "export_path": str(output),
        "work_dir": str(folder / "work"),
        "np": 1,
        "use_cache": False,  # else another turn reads what the first has computed
        "process": process,
    }
    recipe.write_text(json.dumps(settings))  # JSON is YAML
    with open("/proc/self/clear_refs", "w") as file:  # resets the peak
        file.write("5")
    before, start = memory("VmRSS"), processor_seconds()
    DefaultExecutor(init_configs(["--config", str(recipe)])).run()
    return {"seconds": processor_seconds() - start, "peak": memory("VmHWM") - before}, str(output)


def main() -> None:
    options = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # data-juicer prints on standard output
    print(json.dumps({"data-juicer": metadata.version("py-data-juicer")}), file=answers, flush=True)
    question = {}
    for line in sys.stdin:
        question = json.loads(line) or question
        cost, left = run(**question, folder=Path(tempfile.mkdtemp(dir=options["folder"])))
        print(json.dumps(cost if line.strip() == "null" else {"left": left}), file=answers, flush=True)


if __name__ == "__main__":
    main()
