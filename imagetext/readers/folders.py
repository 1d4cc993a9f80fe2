"""List the pictures of a folder, with captions and fields from metadata files or from files beside each picture.

| file | content |
|---|---|
| `metadata.jsonl`, `metadata.csv`, `metadata.parquet` | rows with a `file_name` relative to it, as in `datasets` |
| `NAME.txt`, otherwise `NAME.caption`, beside `NAME.jpg` | its captions, one on each line, if metadata have none |
| `NAME.json` beside `NAME.jpg` | its fields, as img2dataset writes them |

Files with other suffixes are pictures if their first bytes are those of a picture. A warning names files that are none
of these.
"""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

from imagetext import limits
from imagetext.fields import CAPTION_COLUMNS, take_captions
from imagetext.picture_files import PictureFolders, check_inside, real_path, with_other_case, with_slashes
from imagetext.read_ahead import in_order
from imagetext.readers.folder_rows import FolderRow, reference, relative
from imagetext.readers.row_records import Row
from imagetext.readers.suffixes import PICTURE_SUFFIXES
from imagetext.readers.table_columns import with_lists
from imagetext.readers.tables import split_rows
from imagetext.sample import is_picture
from imagetext.stores import StoreError, entries, files_below, is_remote, join, read_head

logger = logging.getLogger(__name__)

MetadataTexts = tuple[tuple[str, ...], dict[str, Any]]  # captions and fields of a picture, from metadata

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TEXTS = (".txt", ".caption")  # in order of preference
# raw files of cameras, which look like TIFF, but hold only a small preview; they are not read
RAW = (".arw", ".cr2", ".dng", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".srw")
NAMED = 20  # suffixes that a warning names


def list_folder(folder: str, images: tuple[str, ...] = (), captions: Collection[str] = ()) -> list[FolderRow]:
    """Return all pictures in a folder and its subfolders, and all that its metadata files name, sorted by path.

    Hidden files and folders are ignored. The key of a picture is its path in the folder without the suffix, or with it
    if two pictures differ only in their suffix. A warning names files that are no pictures and have the name of none.

    captions: columns of metadata that hold captions (default, also for rows without these: the usual columns).

    Raises ValueError if links, or names in metadata, lead out of the folder and of `images`, or if no metadata have
    one of the columns.
    """
    folders = PictureFolders(folder, images, is_input=True)
    links: list[str] = []

    def enters(link: str) -> bool:
        links.append(link)
        return folders.hold(real_path(link))

    files = {file.path: file.stamp for file in files_below(folder, enters)}
    links += [path for path in files if os.path.islink(path) and os.path.isfile(path)]  # not links to devices
    check_inside(folder, ((None, reference(path)) for path in links), folders, what="links")
    metadata = {
        path: rows
        for path in files
        if os.path.basename(path) in METADATA and _is_file(path) and (rows := _metadata_rows(path)) is not None
    }
    columns = {name for rows in metadata.values() for _, row in rows if isinstance(row, dict) for name in row}
    if metadata and (missing := [name for name in captions if name not in columns]):
        names = ", ".join(map(repr, sorted(columns)))
        raise ValueError(
            f"{folder}: --caption-column {', '.join(missing)}: its metadata have no such column; they have {names}"
        )
    paths = _picture_paths(folder, {path: files[path] for path in files if path not in metadata})
    pictures: dict[str, MetadataTexts] = {path: ((), {}) for path in paths}
    spelling = {_composed(path): path for path in files}
    rows = []
    for path, metadata_rows in metadata.items():
        rows += _add_metadata(path, metadata_rows, pictures, captions, spelling=spelling, folder=folder)
    elsewhere = [path for path in pictures if path not in files]
    check_inside(folder, ((None, reference(path)) for path in elsewhere), folders, what="pictures in metadata")
    files |= {path: file.stamp for path, file in entries(elsewhere).items() if file}
    beside = _files_beside(
        path
        for path in files
        if path not in pictures and path not in metadata and files[path]["size"] <= limits.TEXT and _is_file(path)
    )
    pictures_in_folder, used = _picture_rows(folder, pictures, files, beside=beside)
    if unused := [path for path in files if path not in used and path not in metadata]:
        by_suffix = _count_by_suffix(unused)
        logger.warning(
            "%s: %d files are ignored, because they are no pictures and have the name of none: %s",
            folder,
            len(unused),
            by_suffix,
        )
    return sorted(pictures_in_folder + rows, key=lambda row: row.source)


def _picture_rows(
    folder: str,
    pictures: Mapping[str, MetadataTexts],
    files: Mapping[str, Mapping[str, Any]],
    *,
    beside: Mapping[str, Mapping[str, str]],
) -> tuple[list[FolderRow], set[str]]:
    """The rows of pictures with the files beside them, and the paths of all files that these rows use."""
    names = {path: relative(path, folder) for path in pictures}
    stems = Counter(os.path.splitext(name)[0] for name in names.values())
    rows, used = [], {*pictures}
    for path, name in names.items():
        stem = os.path.splitext(name)[0]
        with_suffix = beside.get(_composed(path), {})  # a.jpg.txt beside a.jpg
        texts = {suffix: file for suffix, file in with_suffix.items() if suffix in TEXTS}
        texts |= beside.get(_composed(os.path.splitext(path)[0]), {})
        text = next((texts[suffix] for suffix in TEXTS if suffix in texts), "")
        fields = texts.get(".json", "")
        captions, meta = pictures[path]
        rows.append(
            FolderRow(
                key=stem if stems[stem] == 1 else name,
                path=path,
                source=name,
                captions=captions,
                meta=meta,
                text=text,
                fields=fields,
                stamps={file: files[file] for file in (path, text, fields) if file in files},
            )
        )
        used.update(texts.values())
    return rows, used


def _is_file(path: str) -> bool:
    """Whether a path is a file that has an end: not a broken link, a device or a pipe."""
    return is_remote(path) or os.path.isfile(path)


def _picture_paths(folder: str, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The paths of pictures, recognised by their suffixes, or by their first bytes if the suffix is unknown."""
    known_suffixes = {*TEXTS, ".json", *RAW, *(f".{suffix}" for suffix in PICTURE_SUFFIXES)}
    unknown = [path for path, stamp in files.items() if stamp["size"] and _suffix(path) not in known_suffixes]
    heads = dict(zip(unknown, in_order((is_remote(path), partial(read_head, path, 32)) for path in unknown)))
    pictures = [path for path in files if is_picture(heads.get(path, b"")) or _suffix(path)[1:] in PICTURE_SUFFIXES]
    if unusual := [path for path in pictures if path in heads]:
        message = "%s: %d files are pictures by their bytes, though not by their names: %s"
        logger.warning(message, folder, len(unusual), _count_by_suffix(unusual))
    return pictures


def _files_beside(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """The caption files and JSON files, by path without suffix and by suffix."""
    beside: dict[str, dict[str, str]] = {}
    for path in paths:
        if (suffix := _suffix(path)) in (*TEXTS, ".json"):
            beside.setdefault(_composed(path[: -len(suffix)]), {})[suffix] = path
    return beside


def _count_by_suffix(paths: Iterable[str]) -> str:
    """The number of files of each suffix, the most frequent first, with an example of each."""
    counts, example = Counter(), {}
    for path in paths:
        counts[suffix := _suffix(path) or "no suffix"] += 1
        example.setdefault(suffix, os.path.basename(path))
    parts = [f"{count:,} {suffix} ({example[suffix]})" for suffix, count in counts.most_common(NAMED)]
    if len(counts) > NAMED:
        parts.append(f"{len(counts) - NAMED:,} other suffixes")
    return ", ".join(parts)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _composed(path: str) -> str:
    """The path in Unicode's composed form; macOS writes é in file names as two characters."""
    return unicodedata.normalize("NFC", path)


# ---- metadata ------------------------------------------------------------------------------------------------------


def _metadata_rows(path: str) -> list[tuple[int, Row | ValueError]] | None:
    """The rows of a metadata file, numbered from 0; None, with a warning, if it has no column of file names."""
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
    pictures: dict[str, MetadataTexts],
    captions: Collection[str],
    *,
    spelling: Mapping[str, str],
    folder: str,
) -> Iterator[FolderRow]:
    """Add the captions and fields of a metadata file to the pictures that it names.

    Yields a failed row for each of its rows that names no picture.

    spelling: the paths of all files, by their composed form.
    """
    # Captions of other metadata files are not repeated: one may be a copy of this file in another format.
    earlier = {name: texts for name, (texts, _) in pictures.items()}
    for number, row in rows:
        fields = {} if isinstance(row, ValueError) else dict(row)
        column = next(filter(_names_files, sorted(fields, key=lambda name: name != "file_name")), "")
        value = fields.pop(column) if column else None
        if not isinstance(value, str) or not value:
            place = f"{path}:{number + 1}"
            source = relative(place, folder)
            reason = row if isinstance(row, ValueError) else "expected an object with a file_name"
            error = f"{source}: {reason}"
            yield FolderRow(f"metadata-{number:09d}", place, source=source, captions=(), meta={}, error=error)
            continue
        name = _in_folder(join(os.path.dirname(path), value), folder)
        spelled = (name, with_slashes(name))
        names = (_composed(form) for form in (*spelled, *map(with_other_case, spelled)))
        name = next((spelling[composed] for composed in names if composed in spelling), name)
        named = [(column,) for column in captions if column in fields]
        columns = named or [CAPTION_COLUMNS]
        with_lists(fields, chain.from_iterable(columns))
        found = [text for names in columns for text in take_captions(fields, names)]
        if named and "captions" in fields:
            fields["other_captions"] = fields.pop("captions")
        before, meta = pictures.get(name, ((), {}))
        texts = tuple(text for text in found if text not in earlier.get(name, ()))
        pictures[name] = (before + texts, meta | fields)


def _in_folder(path: str, folder: str) -> str:
    """The path of a file as the listing of the folder has it, if the file is in the folder."""
    if "://" in path:
        return path
    name = os.path.relpath(path, folder)
    return os.path.normpath(path) if name.split(os.sep)[0] == os.pardir else os.path.join(folder, name)
