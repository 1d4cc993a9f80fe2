"""Exports the captions of a finished set in IDEA's format: a text file for each class, with lines `picture caption`.

IDEA: arXiv 2501.08816. Its reader splits a line at the first blank, so blanks in the names of pictures become %20.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from generate.runs.manifest import expect_run
from imagetext.columns import is_caption_column
from imagetext.hashes import name_hash
from imagetext.outputs import write_file
from imagetext.sample import Record
from imagetext.sources import read_records
from imagetext.stores import is_remote, join, plain_path

LISTED = ".capsmith-export.json"  # lists the files of the export, so that a later export may replace them
PART = ".part"
LONGEST = 200  # bytes of a file's name


def check_folder(folder: str, output: str) -> None:
    """Check that the folder can take the files of an export.

    Raises: ValueError where the folder is in a store, is the set's own, or holds anything but an earlier export.
    """
    problem = ""
    if is_remote(folder):
        problem = "must be a folder on this machine"
    elif os.path.realpath(folder) == os.path.realpath(plain_path(output)):
        problem = "is the output's folder"
    elif os.path.exists(folder) and not os.path.isdir(folder):
        problem = "is no folder"
    elif os.path.isdir(folder):
        unlisted = {*os.listdir(folder)} - _listed_files(folder) - {LISTED}
        others = sorted(name for name in unlisted if not name.endswith(PART))
        if others:
            problem = f"holds {others[0]!r}, which is no export of ours; give another folder"
    if problem:
        raise ValueError(f"--export-by-class {folder}: {problem}")


def export_by_class(output: str, markers: Sequence[Mapping[str, Any]], folder: str) -> tuple[int, int]:
    """Write the files of a set whose shards have these markers; returns how many lines and classes were written.

    Each file appears under its name once it is complete. Files of an earlier export that this one lacks are removed.
    """
    columns = [name for name in expect_run(output)["columns"] if is_caption_column(name)]
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        if name.endswith(PART):  # of a run that was killed
            os.unlink(os.path.join(folder, name))
    line_count = 0
    files: dict[str, None] = {}
    for marker in markers:
        lines_of_class: dict[str, list[str]] = defaultdict(list)
        for record in read_records(join(plain_path(output), marker["file"]), check=False):
            lines_of_class[file_of(label_of(record))] += _lines(record, columns)
        for name, lines in lines_of_class.items():
            if lines:
                with open(os.path.join(folder, name + PART), "a", encoding="utf-8", newline="\n") as file:
                    file.writelines(lines)
                files[name] = None
                line_count += len(lines)
    earlier_files = _listed_files(folder)
    write_file(os.path.join(folder, LISTED), json.dumps(sorted(earlier_files.union(files))).encode())
    for name in files:
        os.replace(os.path.join(folder, name + PART), os.path.join(folder, name))
    for name in earlier_files.difference(files):
        if os.path.isfile(os.path.join(folder, name)):
            os.unlink(os.path.join(folder, name))
    write_file(os.path.join(folder, LISTED), json.dumps(sorted(files)).encode())
    return line_count, len(files)


def label_of(record: Record) -> str:
    """Return the class of one of our records; "" where it has none."""
    return str(record.label or record.meta.get("label") or "")


def file_of(label: str) -> str:
    """Return the file name of a class; different classes have different files.

    Characters that do not belong in a file name become %XX.
    """
    name = re.sub(r"[\x00-\x1f\x7f%/\\:*?\"<>|]|^[.\s]|[.\s]$", lambda match: f"%{ord(match[0]):02X}", label)
    if len(name.encode()) > LONGEST:
        name = f"{name.encode()[: LONGEST - 20].decode(errors='ignore')}%{name_hash(label):016x}"
    return name + ".txt"


def _lines(record: Record, columns: Sequence[str]) -> Iterator[str]:
    if record.error or not label_of(record):
        return
    image = re.sub(r"\s", lambda match: f"%{ord(match[0]):02X}", str(record.meta.get("source") or record.key))
    for name in columns:
        for text in record.columns.get(name, ()):
            yield f"{image} {' '.join(text.split())}\n"


def _listed_files(folder: str) -> set[str]:
    """Return the names of the files that an earlier export has written."""
    try:
        with open(os.path.join(folder, LISTED), "rb") as file:
            names = json.load(file)
    except (OSError, ValueError):
        return set()
    return {
        name for name in names if isinstance(name, str) and name == os.path.basename(name) and name.endswith(".txt")
    }
