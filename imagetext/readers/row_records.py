"""One row of a table, JSON object or metadata file -> a Record."""

import base64
import binascii
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from imagetext.columns import is_caption_column, is_column, is_other_column
from imagetext.fields import CAPTION_COLUMNS, is_ours, json_object, loose_texts, sort_fields, well_formed
from imagetext.keys import SeenKeys
from imagetext.picture_files import Outside, PictureFolders, PictureReader, PictureReference, short
from imagetext.read_ahead import in_order
from imagetext.sample import Record
from imagetext.stores import StoreError, is_remote

KEY_COLUMNS = ("key", "uid", "id")
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path")

Row = dict[str, Any]


def size_of(value: Any) -> int:
    """The bytes of memory that all texts and bytes in a row, or in one of its cells, take at most."""
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    if isinstance(value, list):
        return sum(map(size_of, value))
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)  # one wide character makes all of them wide
    return len(value) if isinstance(value, bytes) else 0


class Wanted(NamedTuple):
    """The part of rows that is read where only captions, and pictures of some rows, are needed.

    A picture that cannot be read is no error then, and a text of Parquet that is no UTF-8 is read as well as it can be.
    """

    columns: Collection[str] | None = ()  # of captions, beside the usual ones; None: all columns that hold text
    pictures: Collection[int] = ()  # the rows whose pictures are read, by their numbers among those that are read
    keys: Sequence[str] = KEY_COLUMNS  # the columns of keys, the first that a row has


def row_records(
    rows: Iterable[tuple[Row | ValueError, str, str]], folders: PictureFolders, wanted: Wanted | None = None
) -> Iterator[Record]:
    """A Record for each (row, key where it has none, source), by the keys that rows have, so that one may come twice.

    folders: where pictures may lie. wanted: None for all that a row has, its picture included.
    Raises StoreError where a store fails; what is wrong with a cell stands in `error`.
    """
    reader = PictureReader(folders)
    if wanted is None:
        return with_pictures((_parse(*row) for row in rows), reader)
    parsed = (_parse(*row, wanted, number in wanted.pictures) for number, row in enumerate(rows))
    # Its captions are as good without a picture.
    return (
        replace(record, image=with_picture(record, picture, told, reader).image) for record, picture, told in parsed
    )


def with_pictures(
    records: Iterable[tuple[Record, PictureReference | None, str]], reader: PictureReader
) -> Iterator[Record]:
    """The records, each with its picture, those in stores several at once; StoreError where a store fails, at the end, too."""
    yield from in_order(
        (
            picture is not None and any(map(is_remote, reader.folders.paths(picture))),
            partial(with_picture, record, picture, told, reader),
        )
        for record, picture, told in records
    )
    reader.check()


def with_unique_keys(records: Iterable[Record], place: str) -> Iterator[Record]:
    """The records, in which a key that comes again becomes `KEY~2`."""
    keys = SeenKeys(place)
    return (replace(record, key=keys.unique(record.key)) for record in records)


def with_picture(record: Record, picture: PictureReference | None, told: str, reader: PictureReader) -> Record:
    """The record with its picture, if it names one; what is wrong stands in `error`, the path as it was told."""
    if picture is None:
        return record
    try:
        image, path = reader.read(picture, told)
        return replace(record, image=image, path=path)
    except StoreError:
        raise
    except ValueError as problem:
        if isinstance(problem, Outside) and not reader.folders.strict:
            return record
        error = "; ".join(filter(None, (record.error, str(problem))))
        return replace(record, error=error, lacks_picture=not record.error)


def picture_of(row: Row | ValueError | None) -> PictureReference | None:
    """Where a row says that its picture is; None where it names no file."""
    if row is None or isinstance(row, ValueError):
        return None
    column, _ = _picture_column(row, ours := is_ours(row))
    try:
        return _image_of(column, row[column], row["sha256"] if ours else None)[1] if column else None
    except ValueError:  # its record says so
        return None


def _picture_column(row: Row, ours: bool) -> tuple[str | None, str]:
    """The column of the row's picture, None where it is to have none, and why it failed before."""
    # A record of ours has no picture where it failed; so has one of which only some columns are left, or that names no picture.
    has_error = isinstance(row.get("error"), str)
    failed = (
        row["error"]
        if ours or has_error and (any(map(is_column, row)) or row.keys().isdisjoint(IMAGE_COLUMNS))
        else ""
    )
    column = next((name for name in IMAGE_COLUMNS if name in row), None)
    if column is None or failed or has_error and _is_null(row[column]):  # the last: a row of captions alone
        column = None
    return column, failed


def _parse(
    row: Row | ValueError, row_key: str, source: str, wanted: Wanted | None = None, with_image: bool = True
) -> tuple[Record, PictureReference | None, str]:
    """The record of a row, the place of its picture if that is still to be read, and the name by which an error tells of it."""
    if isinstance(row, ValueError):
        error = f"{source}: {row}" if wanted else str(row)
        return Record(row_key, None, meta={"uid": row_key, "source": os.path.basename(source)}, error=error), None, ""
    row, ours = dict(row), is_ours(row)
    no_picture, errors, image, picture = "", [], None, None
    key = row_key
    for name in wanted.keys if wanted else KEY_COLUMNS:
        if not _is_null(row.get(name)):
            key = str(row[name])
            break
    row.pop("key", None)
    columns = (
        {name: texts for name in _asked(wanted) if name in row and (texts := loose_texts(row[name]))} if wanted else {}
    )
    column, failed = _picture_column(row, ours)
    cell = next((row.pop(name) for name in IMAGE_COLUMNS if name in row), None)
    try:
        if with_image and column:
            image, picture = _image_of(column, cell, row["sha256"] if ours else None)
    except ValueError as error:
        no_picture = "" if wanted else str(error)
    members = _members_of(row) if "members" in row else {}
    try:
        if ours and isinstance(row.get("json"), str):  # where our Parquet files keep the rest
            row |= json_object(row.pop("json"))
        columns |= _columns_of(row)
    except ValueError as error:
        errors.append(str(error))
    captions, others, scores, _, rest = sort_fields(row, picture=image is not None or picture is not None)
    # Of where a picture or row was found, what no other place of the input changes.
    place = cell if picture and isinstance(cell, str) else source.rpartition("/")[2]
    meta = {"uid": key, "source": place, **rest}
    if _is_null(meta["uid"]):
        meta["uid"] = key
    error = well_formed("; ".join(filter(None, (no_picture, *errors))) or failed)
    record = Record(
        well_formed(key) if wanted else key,
        image,
        captions,
        others | columns,
        scores,
        members,
        meta=meta,
        error=error,
        failed_before=bool(failed) and not errors,
        lacks_picture=bool(no_picture) and not errors,
    )
    return record, picture, place


def _asked(wanted: Wanted) -> Collection[str]:
    """The columns that are read as captions because they are asked for."""
    return CAPTION_COLUMNS if wanted.columns is None else wanted.columns


def caption_columns(data: bytes) -> dict[str, tuple[str, ...]]:
    """The columns of captions in a `syn.json` member; raises ValueError where it is no object of lists of text."""
    try:
        columns = json_object(data)
    except ValueError as error:
        raise ValueError(f"syn.json: {error}") from error
    return {well_formed(name): tuple(_listed(f"syn.json: {name}", texts)) for name, texts in columns.items()}


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """One text or a list of them; an empty one in a list stays where it is, because scores and embeddings go by its place."""
    if _is_null(value) or isinstance(value, str) and not value.strip():
        return ()
    return tuple(_listed(name, [value] if isinstance(value, str) else value))


def _listed(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not {*map(type, value)} <= {str}:
        raise ValueError(f"{name}: expected a text or a list of texts, got {short(value)}")
    return [text if text.isascii() else well_formed(text) for text in value]


def _image_of(name: str, value: Any, sha256: str | None) -> tuple[bytes | None, PictureReference | None]:
    """The picture's bytes as found, or where it is, with its hash in a record of ours; ValueError naming what is wrong with the cell."""
    if isinstance(value, dict):  # a picture of `datasets`
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value, None
    if _is_null(value):
        raise ValueError(f"{name}: no picture given")
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a path or the bytes of a picture, got {short(value)}")
    data = _base64_picture(value)
    return (None, PictureReference(value, sha256)) if data is None else (data, None)


def _base64_picture(text: str) -> bytes | None:
    """The bytes, if this is base64 (or a data URL) of something that starts like a picture."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"data URL is no base64: {error}") from error
    # JPEG, PNG, WebP, GIF, ...
    starts = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkq", "TU0A", "AAAA", "UD")
    if len(text) < 64 or not text.startswith(starts):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        if text.startswith("/9j/"):  # else it would be the path of a file
            raise ValueError(f"a picture in base64 that is cut or damaged: {error}") from error
        return None


def _members_of(row: dict[str, Any]) -> dict[str, bytes]:
    """Takes the other files of a record out of the row."""
    members, value = {}, row.get("members")
    try:
        if isinstance(value, list):  # ours in Parquet
            members = {item["name"]: bytes(memoryview(item["data"])) for item in value}
        elif isinstance(value, dict):  # ours in JSONL
            members = {name: base64.b64decode(data, validate=True) for name, data in value.items()}
    except (KeyError, TypeError, ValueError):
        pass  # a column that only has the name
    if not all(isinstance(name, str) and is_member_name(name) for name in members):
        return {}
    if members or value == []:
        del row["members"]
    return members


def _columns_of(row: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Takes the columns of texts out of the row, and gives those that have any; ValueError for synthetic captions that are no texts.

    Of other columns, which people may have under these names, what are no texts stays where it is.
    """
    names = [name for name in row if is_caption_column(name) or is_other_column(name) and _are_texts(row[name])]
    columns = {name: row.pop(name) for name in names}
    return {name: texts for name, value in columns.items() if (texts := _texts(name, value))}


def _are_texts(value: Any) -> bool:
    return _is_null(value) or isinstance(value, str) or isinstance(value, list) and {*map(type, value)} <= {str}


def is_member_name(name: str) -> bool:
    """Whether a file of a sample, besides its picture and texts, may have this suffix."""
    return (
        bool(re.fullmatch(r"[^/\0]+", name))
        and name == name.lower()
        and name not in ("jpg", "txt", "syn.json", "json")
    )


def _is_null(value: Any) -> bool:
    return value is None or value == "" or isinstance(value, float) and math.isnan(value)
