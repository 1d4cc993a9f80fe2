"""Make a Record of a row of a table, a JSON object or a metadata file."""

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
from imagetext.keys import SeenKeys, text_of
from imagetext.picture_files import Outside, PictureFolders, PictureReader, PictureReference, short
from imagetext.read_ahead import in_order
from imagetext.sample import Record
from imagetext.stores import StoreError, is_remote

KEY_COLUMNS = ("key", "uid", "id")
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path")

TEXT_OR_NULL = {str, type(None)}  # what a list of texts may hold

Row = dict[str, Any]


def size_of(value: Any) -> int:
    """An upper bound, in bytes, of the memory that all texts and bytes in a row, or in one of its cells, take."""
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    if isinstance(value, list):
        return sum(map(size_of, value))
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)  # Python stores all characters as wide as the widest
    return len(value) if isinstance(value, bytes) else 0


class RowSelection(NamedTuple):
    """The part of rows that is read if only captions, and the pictures of some rows, are needed.

    Then a picture that cannot be read is not an error, and bytes of texts in Parquet that are not UTF-8 become U+FFFD.
    """

    columns: Collection[str] | None = ()  # further columns of captions; None: all columns that hold text
    pictures: Collection[int] = ()  # the rows whose pictures are read, by their numbers among the rows that are read
    keys: Sequence[str] = KEY_COLUMNS  # columns of keys; the first one that a row has is used


def row_records(
    rows: Iterable[tuple[Row | ValueError, str, str]], folders: PictureFolders, selection: RowSelection | None = None
) -> Iterator[Record]:
    """Yield a Record for each row. Keys are those of the rows, so a key may come twice.

    rows: (row, key if the row has none, source). folders: where pictures may lie. selection: what is read of the rows
    (default: everything, with pictures).

    Raises StoreError if a store fails. What is wrong with a cell is written into `error`.
    """
    reader = PictureReader(folders)
    if selection is None:
        return with_pictures((_parse(*row) for row in rows), reader)
    parsed = (
        _parse(*row, selection=selection, with_image=number in selection.pictures) for number, row in enumerate(rows)
    )
    # Only the picture is taken, not its error: the captions are usable without a picture.
    return (
        replace(record, image=with_picture(record, picture, place, reader=reader).image) if picture else record
        for record, picture, place in parsed
    )


def with_pictures(
    records: Iterable[tuple[Record, PictureReference | None, str]], reader: PictureReader
) -> Iterator[Record]:
    """Yield the records with their pictures. Several pictures in stores are read at once.

    records: (record, reference to its picture, name of the picture in errors).

    Raises StoreError if a store fails, also at the end, if the store refused some pictures and gave no others.
    """
    yield from in_order(
        (
            picture is not None and any(map(is_remote, reader.folders.paths(picture))),
            partial(with_picture, record, picture, place, reader=reader),
        )
        for record, picture, place in records
    )
    reader.check()


def with_unique_keys(records: Iterable[Record], place: str) -> Iterator[Record]:
    """Yield the records; a key that comes again becomes `KEY~2`."""
    keys = SeenKeys(place)
    return (replace(record, key=keys.unique(record.key)) for record in records)


def with_picture(
    record: Record, picture: PictureReference | None, shown_path: str, *, reader: PictureReader
) -> Record:
    """The record with its picture, if it names one. A picture that cannot be read is an error of the record.

    shown_path: the path of the picture in that error.
    """
    if picture is None:
        return record
    try:
        image, path = reader.read(picture, shown_path)
        return replace(record, image=image, path=path)
    except StoreError:
        raise
    except ValueError as problem:
        if isinstance(problem, Outside) and not reader.folders.strict:
            return record
        error = "; ".join(filter(None, (record.error, str(problem))))
        return replace(record, error=error, lacks_picture=not record.error)


def picture_of(row: Row | ValueError | None) -> PictureReference | None:
    """The reference to the picture file of a row; None if it names no file."""
    if row is None or isinstance(row, ValueError):
        return None
    ours = is_ours(row)
    column, _ = _picture_column(row, ours)
    if column is None:
        return None
    try:
        _, picture = _image_or_reference(column, row[column], row["sha256"] if ours else None)
    except ValueError:  # the record of this row has this error
        return None
    return picture


def _picture_column(row: Row, ours: bool) -> tuple[str | None, str]:
    """The column of the row's picture (None if it has no picture), and the error of an earlier run."""
    # A failed record that we wrote has no picture. We also wrote the row if only some of the columns are left.
    has_error = isinstance(row.get("error"), str)
    error = ""
    if ours or has_error and (any(map(is_column, row)) or row.keys().isdisjoint(IMAGE_COLUMNS)):
        error = row["error"]
    column = next((name for name in IMAGE_COLUMNS if name in row), None)
    has_no_picture = column is None or error or has_error and is_null(row[column])  # the last: only captions
    return None if has_no_picture else column, error


def _parse(
    row: Row | ValueError,
    row_key: str,
    source: str,
    *,
    selection: RowSelection | None = None,
    with_image: bool = True,
) -> tuple[Record, PictureReference | None, str]:
    """The record of a row, the reference to its picture if that must still be read, and the picture's name in errors.

    row_key: the key if the row has none.
    """
    if isinstance(row, ValueError):
        error = f"{source}: {row}" if selection else str(row)
        return Record(row_key, None, meta={"uid": row_key, "source": os.path.basename(source)}, error=error), None, ""
    row, ours = dict(row), is_ours(row)
    picture_error, errors, image, picture = "", [], None, None
    key_columns = selection.keys if selection else KEY_COLUMNS
    key = next((text_of(row[name]) for name in key_columns if not is_null(row.get(name))), row_key)
    row.pop("key", None)
    columns = _selected_columns(row, selection) if selection else {}
    column, earlier_error = _picture_column(row, ours)
    cell = next((row.pop(name) for name in IMAGE_COLUMNS if name in row), None)
    try:
        if with_image and column:
            image, picture = _image_or_reference(column, cell, row["sha256"] if ours else None)
    except ValueError as error:
        picture_error = "" if selection else str(error)
    members = _take_members(row) if "members" in row else {}
    try:
        if ours and isinstance(row.get("json"), str):  # our Parquet files have all other fields there
            row |= json_object(row.pop("json"))
    except ValueError as error:
        errors.append(str(error))
    columns |= _take_columns(row, errors)
    captions, other_columns, scores, _, fields = sort_fields(row, picture=image is not None or picture is not None)
    # The part of the place that does not depend on where the input lies.
    place = cell if picture and isinstance(cell, str) else source.rpartition("/")[2]
    meta = {"uid": key, "source": place, **fields}
    if is_null(meta["uid"]):
        meta["uid"] = key
    record = Record(
        well_formed(key) if selection else key,
        image,
        captions=captions,
        columns=other_columns | columns,
        scores=scores,
        members=members,
        meta=meta,
        error=well_formed("; ".join(filter(None, (picture_error, *errors))) or earlier_error),
        failed_before=bool(earlier_error) and not errors,
        lacks_picture=bool(picture_error) and not errors,
    )
    return record, picture, picture.name if picture else place


def _selected_columns(row: Row, selection: RowSelection) -> dict[str, tuple[str, ...]]:
    """The columns of captions that are selected, as far as the row has captions there."""
    names = CAPTION_COLUMNS if selection.columns is None else selection.columns
    return {name: texts for name in names if name in row and (texts := loose_texts(row[name]))}


def caption_columns(data: bytes, errors: list[str]) -> dict[str, tuple[str, ...]]:
    """The columns of captions in a `syn.json` member. What is no object or no list of texts is added to `errors`."""
    try:
        values = json_object(data)
    except ValueError as error:
        errors.append(f"syn.json: {error}")
        return {}
    columns = {}
    for name, value in values.items():
        try:
            columns[well_formed(name)] = tuple(_check_texts(f"syn.json: {name}", value))
        except ValueError as error:
            errors.append(str(error))
    return columns


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """A text or a list of texts."""
    if is_null(value) or isinstance(value, str) and not value.strip():
        return ()
    return tuple(_check_texts(name, [value] if isinstance(value, str) else value))


def _check_texts(name: str, value: Any) -> list[str]:
    """The texts of a list, which may have nulls.

    An empty text stays, and a null becomes one, because scores and embeddings are matched by position.
    """
    if not isinstance(value, list) or not {*map(type, value)} <= TEXT_OR_NULL:
        raise ValueError(f"{name}: expected a text or a list of texts, got {short(value)}")
    texts = (text or "" for text in value)
    return [text if text.isascii() else well_formed(text) for text in texts]


def _image_or_reference(name: str, value: Any, sha256: str | None) -> tuple[bytes | None, PictureReference | None]:
    """The bytes of a picture, or the reference to its file.

    name: the column, for the message. sha256: the hash in a record that we wrote.

    Raises ValueError that says what is wrong with the cell.
    """
    if isinstance(value, dict):  # a picture of `datasets`
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value, None
    if is_null(value):
        raise ValueError(f"{name}: there is no picture")
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a path or the bytes of a picture, got {short(value)}")
    data = _base64_picture(value)
    return (None, PictureReference(value, sha256)) if data is None else (data, None)


def _base64_picture(text: str) -> bytes | None:
    """The bytes of a text that is a data URL, or base64 that begins like a picture; None for any other text."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"data URL is not base64: {error}") from error
    # JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, PPM
    starts = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkq", "TU0A", "AAAA", "UD")
    if len(text) < 64 or not text.startswith(starts):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        if text.startswith("/9j/"):  # the other beginnings may be paths of files
            raise ValueError(f"a picture in base64 that is cut or damaged: {error}") from error
        return None


def _take_members(row: dict[str, Any]) -> dict[str, bytes]:
    """Remove the other files of a record from the row, and return them."""
    members, value = {}, row.get("members")
    try:
        if isinstance(value, list):  # as we write Parquet
            members = {item["name"]: bytes(memoryview(item["data"])) for item in value}
        elif isinstance(value, dict):  # as we write JSONL
            members = {name: base64.b64decode(data, validate=True) for name, data in value.items()}
    except (KeyError, TypeError, ValueError):
        pass  # a foreign column of this name
    if not all(isinstance(name, str) and is_member_name(name) for name in members):
        return {}
    if members or value == []:
        del row["members"]
    return members


def _take_columns(row: dict[str, Any], errors: list[str]) -> dict[str, tuple[str, ...]]:
    """Remove the columns of texts from the row, and return those that have any.

    A column of synthetic captions that does not hold texts is added to `errors`. Columns with names of negatives and
    tags that hold anything else stay, because others may use these names.
    """
    columns = {}
    for name in list(row):
        if is_caption_column(name) or is_other_column(name) and _are_texts(row[name]):
            try:
                if texts := _texts(name, row.pop(name)):
                    columns[name] = texts
            except ValueError as error:
                errors.append(str(error))
    return columns


def _are_texts(value: Any) -> bool:
    return is_null(value) or isinstance(value, str) or isinstance(value, list) and {*map(type, value)} <= TEXT_OR_NULL


def is_member_name(name: str) -> bool:
    """Whether a file of a sample that is not its picture or its texts may have this suffix."""
    return (
        bool(re.fullmatch(r"[^/\0]+", name))
        and name == name.lower()
        and name not in ("jpg", "txt", "syn.json", "json")
    )


def is_null(value: Any) -> bool:
    return value is None or value == "" or isinstance(value, float) and math.isnan(value)
