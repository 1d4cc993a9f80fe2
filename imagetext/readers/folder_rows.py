"""Read the pictures that were listed in a folder, with the captions and fields in the files beside them."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from imagetext import limits
from imagetext.fields import json_fields, lines_of, readable, sort_fields, well_formed
from imagetext.picture_files import (
    NotAFile,
    Outside,
    PictureFolders,
    PictureReader,
    PictureReference,
    read_regular,
    real_path,
)
from imagetext.read_ahead import in_order
from imagetext.readers.chats import answer_in_fields
from imagetext.readers.row_records import with_picture, with_unique_keys
from imagetext.sample import Record
from imagetext.stores import is_remote, read_bytes


@dataclass(frozen=True)
class FolderRow:
    """One picture file, or one row of metadata that names no file."""

    key: str
    path: str
    source: str  # the path relative to the folder
    captions: tuple[str, ...]  # from metadata
    meta: dict[str, Any]
    error: str = ""
    text: str = ""  # the path of the caption file beside the picture, if there is one
    fields: str = ""  # the path of the JSON file beside the picture, if there is one
    stamps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # size and version of these files, by path


@dataclass(frozen=True)
class FolderRows:
    """Records of some of a folder's pictures, read when iterated."""

    folder: str
    rows: tuple[FolderRow, ...]
    images: tuple[str, ...] = ()  # further folders in which pictures may lie

    def __iter__(self) -> Iterator[Record]:
        return self.records(range(len(self.rows)))

    def records(self, pictures: Collection[int]) -> Iterator[Record]:
        """Yield all records; those of these numbers have their pictures."""
        reader = PictureReader(PictureFolders(self.folder, self.images, is_input=True))
        return with_unique_keys(self._read(pictures, reader), self.folder)

    def _read(self, pictures: Collection[int], reader: PictureReader) -> Iterator[Record]:
        yield from in_order(
            (is_remote(row.path), partial(_record, row, reader, with_image=number in pictures))
            for number, row in enumerate(self.rows)
        )
        reader.check()

    def __len__(self) -> int:
        return len(self.rows)

    def stamp(self) -> dict[str, Any]:
        """A stamp that changes with the pictures and the files beside them.

        Their size in bytes, the time of the latest change, and a hash of all names, sizes, versions and metadata.
        """
        stamps, listing = [], hashlib.sha256()
        for row in self.rows:
            for path, stamp in row.stamps.items():
                stamps.append(stamp)
                parts = (relative(path, self.folder), *stamp.values())
                listing.update(os.fsencode("".join(f"{part}\0" for part in parts)))
            listing.update(json.dumps([row.captions, row.meta, row.error], default=str).encode())
        times = [stamp["mtime_ns"] for stamp in stamps if "mtime_ns" in stamp]
        return {
            "size": sum(stamp["size"] for stamp in stamps),
            **({"mtime_ns": max(times)} if times else {}),
            "listing": listing.hexdigest()[:16],
        }


def _record(row: FolderRow, reader: PictureReader, *, with_image: bool) -> Record:
    meta = {"uid": row.key, "source": row.source}
    if row.error:
        return Record(row.key, None, meta=meta, error=well_formed(row.error))
    try:
        fields = {**json_fields(read_inside(row.fields, reader.folders) or b"{}"), **row.meta}
        lines = lines_of(readable(read_inside(row.text, reader.folders), row.text))
    except Outside as problem:
        return Record(row.key, None, meta=meta, error=well_formed(str(problem)))
    texts = row.captions or tuple(filter(None, map(str.strip, lines))) or answer_in_fields(fields)
    captions, columns, scores, error, others = sort_fields(fields, texts, picture=True)
    if others.get("uid") in (None, ""):
        others["uid"] = row.key
    record = Record(
        row.key, None, captions=captions, columns=columns, scores=scores, meta={**meta, **others}, error=error
    )
    return with_picture(record, reference(row.path), row.source, reader=reader) if with_image else record


def reference(path: str) -> PictureReference:
    """The picture at a path, which starts from the current folder."""
    return PictureReference(path if "://" in path else os.path.abspath(path))


def read_inside(path: str, folders: PictureFolders) -> bytes:
    """The first limits.TEXT bytes of a file; b"" if there is none, or its link is broken.

    Raises Outside if it lies in none of the folders.
    """
    if not path:
        return b""
    try:
        if is_remote(path):
            return read_bytes(path, limits.TEXT)
        if not folders.hold(real := real_path(path)):
            raise Outside(f"a file outside the set, in no folder of --images: {os.path.basename(path)!r}")
        return read_regular(real, limits.TEXT, cut=True)
    except (FileNotFoundError, NotAFile):
        return b""


def relative(path: str, folder: str) -> str:
    """The path of a file from its folder, with slashes."""
    return os.path.relpath(path, folder).replace(os.sep, "/")
