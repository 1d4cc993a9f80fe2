"""Reading a folder of pictures, with captions in `metadata.jsonl` or in `name.txt` beside `name.jpg`."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from imagetext.rows import captions_of, json_object, known_scores, well_formed, with_picture, with_unique_keys
from imagetext.sample import Record
from imagetext.stores import entries, files_below, in_order, is_remote, join, read_bytes
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
    text: str = ""                  # the file of captions beside the picture, where there is one
    stamps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # size and version of these files, by path


@dataclass(frozen=True)
class FolderRows:
    """Records of some of a folder's pictures, read when iterated."""

    folder: str
    rows: tuple[FolderRow, ...]

    def __iter__(self) -> Iterator[Record]:
        return self.records(range(len(self.rows)))

    def records(self, pictures: Collection[int]) -> Iterator[Record]:
        """All of them, with the pictures of those of these numbers."""
        read = in_order((is_remote(row.path), partial(_record, row, at in pictures)) for at, row in enumerate(self.rows))
        return with_unique_keys(read, self.folder)

    def __len__(self) -> int:
        return len(self.rows)

    def stamp(self) -> dict[str, Any]:
        """Size in bytes, newest change, and a hash over name, size and version of the pictures and their text files."""
        stamps, listing = [], hashlib.sha256()
        for row in self.rows:
            for path, stamp in row.stamps.items():
                stamps.append(stamp)
                listing.update(os.fsencode("".join(f"{part}\0" for part in (_name(path, self.folder), *stamp.values()))))
            listing.update(json.dumps([row.captions, row.meta, row.error], default=str).encode())
        times = [stamp["mtime_ns"] for stamp in stamps if "mtime_ns" in stamp]
        return {"size": sum(stamp["size"] for stamp in stamps), **({"mtime_ns": max(times)} if times else {}),
                "listing": listing.hexdigest()[:16]}


def _record(row: FolderRow, picture: bool) -> Record:
    meta = {"uid": row.key, "source": row.path, **row.meta}
    scores, failed_before = known_scores(meta.pop("caption_scores", None)), meta.pop("error", None)
    error = well_formed(str(row.error or failed_before or ""))
    record = Record(row.key, None, row.captions or _lines(row.text), scores=scores, meta=meta, error=error)
    return with_picture(record, row.path) if picture and not row.error else record


def list_folder(folder: str) -> list[FolderRow]:
    """All pictures in a folder and its subfolders, and all that its metadata files name, sorted by path.

    Hidden files and folders are left out; the key is the path in the folder without suffix, or with it where two
    pictures differ in nothing else.
    """
    files = {one.path: one.stamp for one in files_below(folder)}
    pictures = {path: ((), {}) for path in files if os.path.splitext(path)[1].lower().lstrip(".") in PICTURE_SUFFIXES}
    broken = []
    for path in files:
        if os.path.basename(path) == METADATA:
            _read_metadata(path, pictures, broken)
    files |= {path: there.stamp for path, there in entries(path for path in pictures if path not in files).items() if there}
    names = {path: _name(path, folder) for path in pictures}
    stems = Counter(os.path.splitext(name)[0] for name in names.values())
    rows = []
    for path, name in names.items():
        stem, text = os.path.splitext(name)[0], os.path.splitext(path)[0] + ".txt"
        text = text if text in files else ""
        stamps = {one: files[one] for one in (path, text) if one in files}
        rows.append(FolderRow(stem if stems[stem] == 1 else name, path, *pictures[path], "", text, stamps))
    return sorted(rows + broken, key=lambda row: _name(row.path, folder))


def _name(path: str, folder: str) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")


def _read_metadata(path: str, pictures: dict[str, tuple[tuple[str, ...], dict]], broken: list[FolderRow]) -> None:
    """Adds what one metadata.jsonl says to the pictures that it names; a line that is bad is a row of its own."""
    folder = os.path.dirname(path)
    lines = [line for line in read_bytes(path).removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        try:
            row = json_object(line)
            if not isinstance(row.get("file_name"), str) or not row["file_name"]:
                raise ValueError("expected an object with a file_name")
            name = join(folder, row.pop("file_name"))
            name = name if "://" in name else os.path.normpath(name)
            captions = captions_of(row)
        except ValueError as error:
            reason = f"{path}:{number + 1}: {error}"
            broken.append(FolderRow(f"metadata-{number:09d}", f"{path}:{number + 1}", (), {}, reason))
            continue
        before, meta = pictures.get(name, ((), {}))
        pictures[name] = (before + captions, meta | row)


def _lines(path: str) -> tuple[str, ...]:
    """The captions of a text file, one a line."""
    try:
        data = read_bytes(path) if path else b""
    except FileNotFoundError:  # a link to nothing
        data = b""
    lines = (line.decode("utf-8", "replace").strip() for line in data.removeprefix(b"\xef\xbb\xbf").splitlines())
    return tuple(filter(None, lines))
