"""Reading a folder of pictures, with what is known of them in metadata files, or in files beside each picture.

| file | what it says |
|---|---|
| `metadata.jsonl`, `metadata.csv`, `metadata.parquet` | rows with a `file_name`, as `datasets` reads them, of pictures from there on |
| `NAME.txt`, else `NAME.caption`, beside `NAME.jpg` | its captions, one a line, unless metadata have some |
| `NAME.json` beside `NAME.jpg` | its fields, as img2dataset writes them |

A picture is known by its bytes, whatever its name. What is taken for none of these is named in a warning.
"""

import hashlib
import json
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from imagetext import limits
from imagetext.fields import CAPTION_COLUMNS, json_fields, readable, sort_fields, take_captions, well_formed
from imagetext.picture_files import (
    NotAFile,
    Outside,
    PictureFolders,
    PictureReader,
    PictureReference,
    check_inside,
    read_regular,
    real_path,
)
from imagetext.read_ahead import in_order
from imagetext.readers.row_records import Row, with_picture, with_unique_keys
from imagetext.readers.suffixes import PICTURE_SUFFIXES
from imagetext.readers.table_columns import with_lists
from imagetext.readers.tables import split_rows
from imagetext.sample import Record, is_picture
from imagetext.stores import StoreError, entries, files_below, is_remote, join, read_bytes, read_head

logger = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TEXTS = (".txt", ".caption")  # in order of preference
# of cameras: TIFF by their bytes, with a small preview
RAW = (".arw", ".cr2", ".dng", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".srw")
NAMED = 20  # suffixes of files that are not taken


@dataclass(frozen=True)
class FolderRow:
    """One picture file, or one row of metadata that names none."""

    key: str
    path: str
    source: str  # the path in the folder
    captions: tuple[str, ...]  # of metadata
    meta: dict[str, Any]
    error: str = ""
    text: str = ""  # the file of captions beside the picture, where there is one
    fields: str = ""  # the file of its fields
    stamps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # size and version of these files, by path


@dataclass(frozen=True)
class FolderRows:
    """Records of some of a folder's pictures, read when iterated."""

    folder: str
    rows: tuple[FolderRow, ...]
    images: tuple[str, ...] = ()  # other folders in which pictures may lie

    def __iter__(self) -> Iterator[Record]:
        return self.records(range(len(self.rows)))

    def records(self, pictures: Collection[int]) -> Iterator[Record]:
        """All of them, with the pictures of those of these numbers."""
        reader = PictureReader(PictureFolders(self.folder, self.images, is_input=True))
        return with_unique_keys(self._read(pictures, reader), self.folder)

    def _read(self, pictures: Collection[int], reader: PictureReader) -> Iterator[Record]:
        yield from in_order(
            (is_remote(row.path), partial(_record, row, reader, number in pictures))
            for number, row in enumerate(self.rows)
        )
        reader.check()

    def __len__(self) -> int:
        return len(self.rows)

    def stamp(self) -> dict[str, Any]:
        """Size in bytes, newest change, and a hash over name, size and version of the pictures and the files beside them."""
        stamps, listing = [], hashlib.sha256()
        for row in self.rows:
            for path, stamp in row.stamps.items():
                stamps.append(stamp)
                listing.update(
                    os.fsencode("".join(f"{part}\0" for part in (_name(path, self.folder), *stamp.values())))
                )
            listing.update(json.dumps([row.captions, row.meta, row.error], default=str).encode())
        times = [stamp["mtime_ns"] for stamp in stamps if "mtime_ns" in stamp]
        return {
            "size": sum(stamp["size"] for stamp in stamps),
            **({"mtime_ns": max(times)} if times else {}),
            "listing": listing.hexdigest()[:16],
        }


def _record(row: FolderRow, reader: PictureReader, picture: bool) -> Record:
    if row.error:
        return Record(row.key, None, meta={"uid": row.key, "source": row.source}, error=well_formed(row.error))
    try:
        fields = {**json_fields(read_inside(row.fields, reader.folders) or b"{}"), **row.meta}
        lines = readable(read_inside(row.text, reader.folders), row.text).splitlines()
    except Outside as problem:
        return Record(row.key, None, meta={"uid": row.key, "source": row.source}, error=well_formed(str(problem)))
    texts = row.captions or tuple(filter(None, map(str.strip, lines)))
    captions, columns, scores, failed, rest = sort_fields(fields, texts, picture=True)
    if rest.get("uid") in (None, ""):
        rest["uid"] = row.key
    record = Record(
        row.key, None, captions, columns, scores, meta={"uid": row.key, "source": row.source, **rest}, error=failed
    )
    return with_picture(record, _picture(row.path), row.source, reader) if picture else record


def _picture(path: str) -> PictureReference:
    return PictureReference(path if "://" in path else os.path.abspath(path))


def read_inside(path: str, folders: PictureFolders) -> bytes:
    """The file, if there is one inside, no more than its first limits.TEXT bytes; a link may lead nowhere."""
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


def list_folder(folder: str, images: tuple[str, ...] = ()) -> list[FolderRow]:
    """All pictures in a folder and its subfolders, and all that its metadata files name, sorted by path.

    Hidden files and folders are left out; the key is the path in the folder without suffix, or with it where two
    pictures differ in nothing else. Of what is neither a picture nor belongs to one, a warning says what it is.
    Raises ValueError where links, or names in metadata, lead out of the folder and of `images`.
    """
    folders = PictureFolders(folder, images, is_input=True)
    links: list[str] = []

    def enters(link: str) -> bool:
        links.append(link)
        return folders.hold(real_path(link))

    files = {file.path: file.stamp for file in files_below(folder, enters)}
    links += [path for path in files if os.path.islink(path) and os.path.isfile(path)]  # devices are not opened
    check_inside(folder, ((None, _picture(path)) for path in links), folders, what="links")
    metadata = {
        path: rows
        for path in files
        if os.path.basename(path) in METADATA and _is_file(path) and (rows := _metadata_rows(path)) is not None
    }
    pictures = {
        path: ((), {}) for path in _pictures(folder, {path: files[path] for path in files if path not in metadata})
    }
    same = {_composed(path): path for path in files}
    broken = [row for path, rows in metadata.items() for row in _add_metadata(path, rows, pictures, same, folder)]
    others = [path for path in pictures if path not in files]
    check_inside(folder, ((None, _picture(path)) for path in others), folders, what="pictures in metadata")
    files |= {path: there.stamp for path, there in entries(others).items() if there}
    names = {path: _name(path, folder) for path in pictures}
    stems = Counter(os.path.splitext(name)[0] for name in names.values())
    beside = _beside(
        path
        for path in files
        if path not in pictures and path not in metadata and files[path]["size"] <= limits.TEXT and _is_file(path)
    )
    rows, taken = [], {*pictures, *metadata}
    for path, name in names.items():
        stem, own = os.path.splitext(name)[0], beside.get(_composed(os.path.splitext(path)[0]), {})
        longer = {
            suffix: text for suffix, text in beside.get(_composed(path), {}).items() if suffix in TEXTS
        }  # a.jpg.txt
        own = {**longer, **own}
        text = next((own[suffix] for suffix in TEXTS if suffix in own), "")
        stamps = {file: files[file] for file in (path, text, own.get(".json")) if file in files}
        rows.append(
            FolderRow(
                stem if stems[stem] == 1 else name,
                path,
                name,
                *pictures[path],
                text=text,
                fields=own.get(".json", ""),
                stamps=stamps,
            )
        )
        taken.update(own.values())
    _tell_of(folder, [path for path in files if path not in taken])
    return sorted(rows + broken, key=lambda row: _name(row.path, folder))


def _is_file(path: str) -> bool:
    """Whether it is no link to nothing, and no device or pipe, which may have no end."""
    return is_remote(path) or os.path.isfile(path)


def _pictures(folder: str, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The paths that are pictures, by their suffixes, or by the bytes that those of other names begin with."""
    known = {*TEXTS, ".json", *RAW, *(f".{suffix}" for suffix in PICTURE_SUFFIXES)}
    unsure = [path for path, stamp in files.items() if stamp["size"] and _suffix(path) not in known]
    heads = dict(zip(unsure, in_order((is_remote(path), partial(read_head, path, 32)) for path in unsure)))
    pictures = [path for path in files if is_picture(heads.get(path, b"")) or _suffix(path)[1:] in PICTURE_SUFFIXES]
    if odd := [path for path in pictures if path in heads]:
        logger.warning(
            "%s: %d files are pictures by their bytes, though not by their names: %s",
            folder,
            len(odd),
            _by_suffix(odd),
        )
    return pictures


def _beside(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """The files of texts and fields, by the path without suffix and by suffix."""
    beside: dict[str, dict[str, str]] = {}
    for path in paths:
        if (suffix := _suffix(path)) in (*TEXTS, ".json"):
            beside.setdefault(_composed(path[: -len(suffix)]), {})[suffix] = path
    return beside


def _tell_of(folder: str, paths: list[str]) -> None:
    if paths:
        logger.warning(
            "%s: %d files are neither pictures nor belong to one: %s", folder, len(paths), _by_suffix(paths)
        )


def _by_suffix(paths: Iterable[str]) -> str:
    """How many there are of each suffix, the most first, and an example of it."""
    counts, example = Counter(), {}
    for path in paths:
        counts[suffix := _suffix(path) or "no suffix"] += 1
        example.setdefault(suffix, os.path.basename(path))
    told = [f"{count:,} {suffix} ({example[suffix]})" for suffix, count in counts.most_common(NAMED)]
    return ", ".join(told + [f"{len(counts) - NAMED:,} other suffixes"] * (len(counts) > NAMED))


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _composed(path: str) -> str:
    """The path in one spelling: macOS spells é as two characters in names of files."""
    return unicodedata.normalize("NFC", path)


def _name(path: str, folder: str) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")


# ---- metadata --------------------------------------------------------------------------------------------------------


def _metadata_rows(path: str) -> list[tuple[int, Row | ValueError]] | None:
    """The rows of a metadata file, numbered from 0; None, with a warning, where it is none of a folder of pictures."""
    try:
        rows = [row for piece in split_rows(path) for row in piece.numbered()]
        columns = dict.fromkeys(name for _, row in rows if not isinstance(row, ValueError) for name in row)
        if not any(map(_names_files, columns)):
            raise ValueError(f"{path}: no column file_name; it has {', '.join(map(repr, columns)) or 'none'}")
        return rows
    except StoreError:
        raise
    except ValueError as error:
        logger.warning("%s; it is not read", error)
        return None


def _names_files(column: str) -> bool:
    return column == "file_name" or column.endswith("_file_name")


def _add_metadata(
    path: str,
    rows: Iterable[tuple[int, Row | ValueError]],
    pictures: dict[str, tuple[tuple[str, ...], dict]],
    same: Mapping[str, str],
    folder: str,
) -> Iterator[FolderRow]:
    """Adds what one metadata file says to the pictures that it names; a row that names none is a row of its own."""
    said = {
        name: texts for name, (texts, _) in pictures.items()
    }  # by other files, which may be this one in another format
    for number, row in rows:
        fields = {} if isinstance(row, ValueError) else dict(row)
        named = next(filter(_names_files, sorted(fields, key=lambda name: name != "file_name")), "")
        value = fields.pop(named) if named else None
        if not isinstance(value, str) or not value:
            place = f"{path}:{number + 1}"
            reason = row if isinstance(row, ValueError) else "expected an object with a file_name"
            yield FolderRow(f"metadata-{number:09d}", place, name := _name(place, folder), (), {}, f"{name}: {reason}")
            continue
        name = join(os.path.dirname(path), value)
        name = name if "://" in name else os.path.normpath(name)
        name = same.get(_composed(name), name)
        with_lists(fields, CAPTION_COLUMNS)
        before, meta = pictures.get(name, ((), {}))
        texts = tuple(text for text in take_captions(fields) if text not in said.get(name, ()))
        pictures[name] = (before + texts, meta | fields)
