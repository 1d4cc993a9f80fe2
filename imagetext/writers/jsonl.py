"""Shards as JSON lines, with pictures in separate files."""

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
    """JSONL: each row has its picture as a path relative to the file, or as a URL.

    A picture that was read from a file stays there; other pictures are stored in the folder `NAME.images`. The folder
    of an earlier shard of this name stays until the new shard is complete; in a store, its pictures are overwritten.
    """

    def __init__(self, file: Output, *, columns: Iterable[str], **_: Any):
        self.file = file
        self.folder = os.path.dirname(file.path)
        self.images = os.path.splitext(os.path.basename(file.path))[0] + ".images"
        self.columns, self.rows = dict.fromkeys(columns), 0
        self.discard()  # pictures that a killed process has left
        # the suffix of the folder while the shard is unfinished
        self.suffix = UNFINISHED if os.path.isdir(join(self.folder, self.images)) else ""

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
        clash = {name: value for name, value in fields.items() if name in row or name == "members"}
        fields = with_source_fields(fields, clash)
        others = {name: value for name, value in fields.items() if name not in row and name != "members"}
        row |= {name: others.pop(name) for name in ("sha256", "width", "height", "error", "caption_scores")} | others
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
            if well_formed(path) == path:  # otherwise the path cannot be written as text
                return path
        name = f"{self.rows:09d}{_suffix(data)}"
        self._store(join(self.folder, f"{self.images}{self.suffix}/{name}"), data)
        return f"{self.images}/{name}"

    def _store(self, path: str, data: bytes) -> None:
        """Write a picture. It needs no temporary name, because no finished row names it yet."""
        if is_remote(path):
            write_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        to_disk(path)

    def _stays(self, source: str, data: bytes) -> bool:
        """Whether the row may name the file that the picture was read from: it is unchanged and all can reach it."""
        if is_remote(source):
            file = entry(source)
            return file is not None and file.stamp["size"] == len(data) and read_bytes(source) == data
        return (
            not is_remote(self.folder)
            and os.path.isfile(source)
            and os.path.getsize(source) == len(data)
            and read_bytes(source) == data
        )

    def close(self) -> None:
        if os.path.isdir(images := join(self.folder, self.images + self.suffix)):
            to_disk(images)  # the names of the pictures in this folder

    def commit(self) -> None:
        if self.suffix:
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
