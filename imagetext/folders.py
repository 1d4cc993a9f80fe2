"""Reading a folder of pictures, with captions in `metadata.jsonl` or in `name.txt` beside `name.jpg`."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imagetext.keys import SeenKeys
from imagetext.rows import captions_of, read_picture
from imagetext.sample import Sample
from imagetext.tars import PICTURE_SUFFIXES

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class FolderRow:
    """One picture file, or one line of metadata that names none."""

    key: str
    path: str
    captions: tuple[str, ...]
    meta: dict[str, Any]
    error: str = ""


@dataclass(frozen=True)
class FolderRows:
    """Samples of some of a folder's pictures, read when iterated."""

    folder: str
    rows: tuple[FolderRow, ...]

    def __iter__(self) -> Iterator[Sample]:
        keys = SeenKeys(self.folder)
        for row in self.rows:
            image, error = None, row.error
            try:
                image = None if error else read_picture(row.path)
            except ValueError as problem:
                error = str(problem)
            meta = {"uid": row.key, "source": row.path, **row.meta} | ({"error": error} if error else {})
            yield Sample(keys.unique(row.key), image, row.captions or _captions_beside(row.path), {}, meta)

    def stamp(self) -> dict[str, Any]:
        """Size in bytes, newest change, and a hash over name, size and time of the pictures and their text files."""
        sizes, times, listing = [], [], hashlib.sha256()
        for row in self.rows:
            for path in (row.path, _text_path(row.path)):
                try:
                    status = os.stat(path)
                except (OSError, ValueError):
                    continue
                sizes.append(status.st_size)
                times.append(status.st_mtime_ns)
                name = os.path.relpath(path, self.folder)
                listing.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
            listing.update(json.dumps([row.captions, row.meta, row.error], default=str).encode())
        return {"size": sum(sizes), "mtime_ns": max(times, default=0), "listing": listing.hexdigest()[:16]}


def list_folder(folder: str) -> list[FolderRow]:
    """All pictures in a folder and its subfolders, and all that its metadata files name, sorted by path.

    Hidden files and folders are left out; the key is the path in the folder without suffix, or with it where two
    pictures differ in nothing else.
    """
    pictures, broken = {}, []
    metadata_files = []
    for path in _walk(folder):
        if os.path.basename(path) == METADATA:
            metadata_files.append(path)
        elif os.path.splitext(path)[1].lower().lstrip(".") in PICTURE_SUFFIXES:
            pictures[path] = ((), {})
    for path in metadata_files:
        _read_metadata(path, pictures, broken)
    names = {path: os.path.relpath(path, folder).replace(os.sep, "/") for path in pictures}
    stems = Counter(os.path.splitext(name)[0] for name in names.values())
    rows = []
    for path, name in names.items():
        stem = os.path.splitext(name)[0]
        rows.append(FolderRow(stem if stems[stem] == 1 else name, path, *pictures[path]))
    return sorted(rows + broken, key=lambda row: os.path.relpath(row.path, folder).replace(os.sep, "/"))


def _walk(folder: str) -> Iterator[str]:
    """Files below a folder, links to folders followed once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(files) if not name.startswith("."))


def _read_metadata(path: str, pictures: dict[str, tuple[tuple[str, ...], dict]], broken: list[FolderRow]) -> None:
    """Adds what one metadata.jsonl says to the pictures that it names; a line that is bad is a row of its own."""
    folder = os.path.dirname(path)
    with open(path, "rb") as file:
        lines = [line for line in file.read().removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
                raise ValueError("expected an object with a file_name")
            name = os.path.normpath(os.path.join(folder, row.pop("file_name")))
            captions = captions_of(row)
        except (ValueError, RecursionError) as error:
            reason = f"{path}:{number + 1}: {error}"
            broken.append(FolderRow(f"metadata-{number:09d}", f"{path}:{number + 1}", (), {}, reason))
            continue
        before, meta = pictures.get(name, ((), {}))
        pictures[name] = (before + captions, meta | row)


def _text_path(path: str) -> str:
    return os.path.splitext(path)[0] + ".txt"


def _captions_beside(path: str) -> tuple[str, ...]:
    """The lines of `name.txt` beside `name.jpg`, if there is one."""
    try:
        with open(_text_path(path), encoding="utf-8-sig", errors="replace") as file:
            return tuple(line.strip() for line in file if line.strip())
    except (FileNotFoundError, NotADirectoryError):
        return ()
