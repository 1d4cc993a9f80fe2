"""Shards as JSON lines, with pictures in files."""

import os
import shutil
from collections.abc import Iterable
from typing import Any

from imagetext.fields import well_formed
from imagetext.outputs import UNFINISHED, Output, to_disk, write_file
from imagetext.sample import Record
from imagetext.stores import entry, is_remote, join, read_bytes
from imagetext.writers.record_fields import (
    json_text,
    json_types,
    record_fields,
    record_members,
    unnamed_columns,
    with_caption_fields,
    with_source_fields,
)


class JsonlShard:
    """JSONL: the picture as a path relative to the file, or as a URL.

    A picture that was found as a file stays where it is; others are stored in the folder `NAME.images`. Where an earlier shard has
    one, that stays until this shard is whole; in a store, its pictures are written over.
    """

    def __init__(self, file: Output, *, columns: Iterable[str], **_: Any):
        self.file = file
        self.folder = os.path.dirname(file.path)
        self.images = os.path.splitext(os.path.basename(file.path))[0] + ".images"
        self.columns, self.rows = dict.fromkeys(columns), 0
        self.discard()  # what a killed process has left
        self.aside = UNFINISHED if os.path.isdir(join(self.folder, self.images)) else ""

    def write(self, key: str, record: Record, text: str | None) -> None:
        columns, members = record.named_columns, record_members(record)
        self.columns |= dict.fromkeys(columns)
        fields = with_caption_fields(record_fields(record), unnamed_columns(record))
        row = {
            "key": key,
            "image": None if record.error else self._image(record),
            "captions": fields.pop("captions"),
            **{name: list(columns.get(name, ())) for name in self.columns},
        }
        rest = with_source_fields(
            fields, {name: value for name, value in fields.items() if name in row or name == "members"}
        )
        rest = {name: value for name, value in rest.items() if name not in row and name != "members"}
        row |= {name: rest.pop(name) for name in ("sha256", "width", "height", "error", "caption_scores")} | rest
        if members:
            row["members"] = json_types(members)
        self.file.write(f"{json_text(row)}\n".encode())
        self.rows += 1

    def _image(self, record: Record) -> str | None:
        data, source = record.image, record.path
        if data is None:
            return None
        if source and self._stays(source, data):
            path = source if is_remote(source) else os.path.relpath(source, self.folder).replace(os.sep, "/")
            if well_formed(path) == path:  # else its name is no text
                return path
        name = f"{self.rows:09d}{_suffix(data)}"
        self._store(join(self.folder, f"{self.images}{self.aside}/{name}"), data)
        return f"{self.images}/{name}"

    def _store(self, path: str, data: bytes) -> None:
        """Writes a picture, which counts only once the row that names it does: it needs no temporary name."""
        if is_remote(path):
            write_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        to_disk(path)

    def _stays(self, source: str, data: bytes) -> bool:
        """Whether the row may name the file that the picture was read from: it is there still, and there for all readers."""
        if is_remote(source):
            there = entry(source)
            return there is not None and there.stamp["size"] == len(data) and read_bytes(source) == data
        return (
            not is_remote(self.folder)
            and os.path.isfile(source)
            and os.path.getsize(source) == len(data)
            and read_bytes(source) == data
        )

    def close(self) -> None:
        if os.path.isdir(images := join(self.folder, self.images + self.aside)):
            to_disk(images)  # the pictures' names, as the rows have them

    def commit(self) -> None:
        if self.aside:
            images = join(self.folder, self.images)
            shutil.rmtree(images)
            if os.path.isdir(images + UNFINISHED):
                os.replace(images + UNFINISHED, images)

    def discard(self) -> None:
        if not is_remote(self.folder):
            shutil.rmtree(join(self.folder, self.images + UNFINISHED), ignore_errors=True)


def _suffix(data: bytes) -> str:
    for start, suffix in (
        (b"\xff\xd8", ".jpg"),
        (b"\x89PNG", ".png"),
        (b"RIFF", ".webp"),
        (b"GIF8", ".gif"),
        (b"BM", ".bmp"),
        (b"II", ".tif"),
        (b"MM", ".tif"),
        (b"P", ".ppm"),
    ):
        if data.startswith(start):
            return suffix
    return ".avif" if data[4:8] == b"ftyp" else ".jp2"
