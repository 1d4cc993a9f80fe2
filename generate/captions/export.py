"""A finished set's captions as IDEA reads them: of each class a text file, with a picture, a blank and a caption in a line.

IDEA: arXiv 2501.08816. Its reader splits a line at the first blank, so names of pictures have %20 for theirs.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from generate.runs.manifest import expect_run
from imagetext.hashes import name_hash
from imagetext.outputs import write_file
from imagetext.sample import Record, is_caption_column
from imagetext.sources import read_records
from imagetext.stores import is_remote, join, plain_path

LISTED = ".capsmith-export.json"  # the files of the export, so that a later one may replace them
PART = ".part"
LONGEST = 200  # bytes of a file's name


def check_folder(folder: str, output: str) -> None:
    """Raises ValueError where the folder cannot take the files: it is in a store, is the set's, or holds something else."""
    problem = ""
    if is_remote(folder):
        problem = "must be a folder on this machine"
    elif os.path.realpath(folder) == os.path.realpath(plain_path(output)):
        problem = "is the output's folder"
    elif os.path.exists(folder) and not os.path.isdir(folder):
        problem = "is no folder"
    elif os.path.isdir(folder):
        others = sorted(name for name in {*os.listdir(folder)} - _listed(folder) - {LISTED} if not name.endswith(PART))
        if others:
            problem = f"holds {others[0]!r}, which is no export of ours; give another folder"
    if problem:
        raise ValueError(f"--export-by-class {folder}: {problem}")


def export_by_class(output: str, markers: Sequence[Mapping[str, Any]], folder: str) -> tuple[int, int]:
    """Write the files of a set whose shards have these markers, each whole under its name; returns how many lines and classes.

    What an earlier export has written there and this one has not is removed.
    """
    columns = [name for name in expect_run(output)["columns"] if is_caption_column(name)]
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        if name.endswith(PART):  # of a run that was killed
            os.unlink(os.path.join(folder, name))
    lines = 0
    files: dict[str, None] = {}
    for marker in markers:
        of_class: dict[str, list[str]] = defaultdict(list)
        for record in read_records(join(plain_path(output), marker["file"]), check=False):
            of_class[file_of(label_of(record))] += _lines(record, columns)
        for name, found in of_class.items():
            if found:
                with open(os.path.join(folder, name + PART), "a", encoding="utf-8", newline="\n") as file:
                    file.writelines(found)
                files[name] = None
                lines += len(found)
    earlier = _listed(folder)
    write_file(os.path.join(folder, LISTED), json.dumps(sorted(earlier.union(files))).encode())
    for name in files:
        os.replace(os.path.join(folder, name + PART), os.path.join(folder, name))
    for name in earlier.difference(files):
        if os.path.isfile(os.path.join(folder, name)):
            os.unlink(os.path.join(folder, name))
    write_file(os.path.join(folder, LISTED), json.dumps(sorted(files)).encode())
    return lines, len(files)


def label_of(record: Record) -> str:
    """The class in one of our records; "" where there is none."""
    return str(record.label or record.meta.get("label") or "")


def file_of(label: str) -> str:
    """The name of a class's file, no two alike: what no file should have in its name stands as %XX."""
    name = re.sub(r"[\x00-\x1f\x7f%/\\:*?\"<>|]|^[.\s]|[.\s]$", lambda found: f"%{ord(found[0]):02X}", label)
    if len(name.encode()) > LONGEST:
        name = f"{name.encode()[: LONGEST - 20].decode(errors='ignore')}%{name_hash(label):016x}"
    return name + ".txt"


def _lines(record: Record, columns: Sequence[str]) -> Iterator[str]:
    if record.error or not label_of(record):
        return
    image = re.sub(r"\s", lambda found: f"%{ord(found[0]):02X}", str(record.meta.get("source") or record.key))
    for name in columns:
        for text in record.columns.get(name, ()):
            yield f"{image} {' '.join(text.split())}\n"


def _listed(folder: str) -> set[str]:
    """The names of the files that an earlier export has written."""
    try:
        with open(os.path.join(folder, LISTED), "rb") as file:
            names = json.load(file)
    except (OSError, ValueError):
        return set()
    return {
        name for name in names if isinstance(name, str) and name == os.path.basename(name) and name.endswith(".txt")
    }
