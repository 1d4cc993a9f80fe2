"""The parts of a record that all formats write: its columns, its fields as JSON values, its other files."""

import base64
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from imagetext.columns import is_caption_column, is_column, is_other_column
from imagetext.fields import moved_fields, well_formed
from imagetext.keys import text_of
from imagetext.readers.row_records import is_member_name
from imagetext.sample import Record, image_size
from imagetext.waiting import Waiting


def record_columns(
    record: Record, of_run: Collection[str] = (), *, originals: bool = False
) -> dict[str, tuple[str, ...]]:
    """Return the columns of a record that are written: those with a caption, because readers draw one of each column.

    of_run: the columns that the run makes.
    originals: whether original captions are enough for a good record.

    Raises ValueError for a record that has neither an error nor the captions that `has_captions` asks for.
    """
    columns = {
        name: tuple(map(well_formed, texts)) for name, texts in record.columns.items() if any(map(str.strip, texts))
    }
    has_originals = originals and any(map(str.strip, record.captions))
    if not record.error and not has_originals and not has_captions(columns, record.captions, of_run):
        raise ValueError(f"{record.key}: neither captions nor an error")
    return columns


def has_captions(columns: Collection[str], originals: Collection[str], of_run: Collection[str]) -> bool:
    """Whether a record with these columns is a good record of a run.

    If the run makes synthetic captions, a good record has some, because trainers that draw them stop with an error at
    a record without. A run of only negatives or tags adds to existing captions, so a picture with original captions is
    good.

    of_run: the names of the columns that the run makes; () for any.
    """
    if any(map(is_caption_column, columns)):
        return True
    if any(map(is_caption_column, of_run)):
        return False
    return any(map(is_other_column, columns)) or bool(of_run) and any(map(str.strip, originals))


def record_fields(record: Record) -> dict[str, Any]:
    """The record's `json`: FIELDS, its label if it has one, then all other fields of its meta."""
    meta, label = record.meta, {}
    if record.label is not None:
        label = {"label": record.label}
        meta = with_source_fields(
            meta, {"label": meta["label"]} if meta.get("label", record.label) != record.label else {}
        )
    fields = {
        "uid": text_of(meta.get("uid", record.key)),
        **_picture_fields(record),
        "captions": record.captions,
        "error": record.error,
        "source": str(meta.get("source", "")),
        "caption_scores": record.scores,
        **label,
    }
    return json_types({**fields, **{name: value for name, value in meta.items() if name not in fields}})


def with_source_fields(fields: Mapping[str, Any], clash: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the fields whose names clash with ours to `source_fields`, where they replace none that is there already."""
    return {**fields, "source_fields": {**clash, **moved_fields(fields)}} if clash else fields


def _picture_fields(record: Record) -> dict[str, Any]:
    """`sha256`, `width` and `height` of the picture; without a picture, the values of an earlier record."""
    image, meta = record.image, record.meta
    if image is None:
        unknown = {"sha256": "", "width": 0, "height": 0}
        return {
            name: meta[name] if type(meta.get(name)) is type(value) and _fits(meta[name]) else value
            for name, value in unknown.items()
        }
    try:
        width, height = image_size(image)
    except ValueError as error:
        if not record.error:
            raise ValueError(f"{record.key}: a record without an error must have a picture: {error}") from error
        width, height = 0, 0
    return {"sha256": hashlib.sha256(image).hexdigest(), "width": width, "height": height}


def set_aside(waiting: Waiting, key: str, record: Record) -> None:
    """Put a record aside on disk, with all parts that the writers use."""
    fields = {
        "captions": record.captions,
        "columns": record.columns,
        "scores": record.scores,
        "label": record.label,
        "meta": record.meta,
        "error": record.error,
    }
    waiting.append(
        [json_types([key, record.key, fields]), record.image is not None, [*record.members]],
        [record.image or b"", *record.members.values()],
    )


def records_set_aside(waiting: Waiting) -> Iterator[tuple[str, Record]]:
    """Yield the unique keys, and the records, that were put aside."""
    for ([unique_key, key, fields], has_image, names), (image, *contents) in waiting:
        fields["captions"] = tuple(fields["captions"])
        fields["columns"] = {name: tuple(texts) for name, texts in fields["columns"].items()}
        members = dict(zip(names, contents, strict=True))
        yield unique_key, Record(key, image if has_image else None, members=members, **fields)


def record_members(record: Record) -> dict[str, bytes]:
    """The record's other files, sorted by name."""
    members = dict(sorted(record.members.items()))
    for name in members:
        if not is_member_name(name):
            raise ValueError(f"{record.key}: a file cannot be written under the name {name!r}")
    return members


def json_types(value: Any) -> Any:
    """The value in JSON's types.

    Bytes become base64, NaN and infinities null, and values without a type in JSON or Arrow text.
    """
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list | tuple):
        return [json_types(item) for item in value]
    if isinstance(value, Mapping):
        return {well_formed(str(name)): json_types(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int) and _fits(value):
        return value
    return well_formed(str(value))


def _fits(value: Any) -> bool:
    """Whether the value is not an integer, or is one that fits into 64 bits."""
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def with_caption_fields(fields: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Add the columns as the field `caption_fields`, if there are any; a foreign field of that name is moved."""
    if not columns:
        return dict(fields)
    fields = with_source_fields(fields, {name: fields[name] for name in ("caption_fields",) if name in fields})
    return {**fields, "caption_fields": {name: list(texts) for name, texts in columns.items()}}


def unnamed_columns(record: Record) -> dict[str, tuple[str, ...]]:
    """The columns whose names do not follow our conventions, so readers could take them for other fields."""
    return {name: texts for name, texts in record.columns.items() if not is_column(name)}
