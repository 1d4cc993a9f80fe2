"""The parts of a record that every format writes: its columns, its fields in JSON's own types, its other files."""

import base64
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from imagetext.columns import is_caption_column, is_column, is_other_column
from imagetext.fields import well_formed
from imagetext.readers.row_records import is_member_name
from imagetext.sample import Record, image_size
from imagetext.waiting import Waiting


def record_columns(
    record: Record, of_run: Collection[str] = (), *, originals: bool = False
) -> dict[str, tuple[str, ...]]:
    """The record's columns that are written: those with a caption, for readers draw one of each column.

    of_run: the columns that the run makes. originals: whether original captions are enough in any case. Raises ValueError where
    there is nothing of what they say and no error that says why: no synthetic captions, or, where the run makes none, neither
    columns that are none nor originals.
    """
    columns = {
        name: tuple(map(well_formed, texts)) for name, texts in record.columns.items() if any(map(str.strip, texts))
    }
    enough = originals and any(map(str.strip, record.captions))
    if not record.error and not enough and not has_captions(columns, record.captions, of_run):
        raise ValueError(f"{record.key}: neither captions nor an error")
    return columns


def has_captions(columns: Collection[str], originals: Collection[str], of_run: Collection[str]) -> bool:
    """Whether a record with these columns is a good one of a run that makes columns of these names, () for any.

    Where the run makes synthetic captions, a good record has some: trainers that draw them end at a record without. A run
    of negatives or tags alone adds to what there is, and a picture with its original captions is good without any.
    """
    if any(map(is_caption_column, columns)):
        return True
    if any(map(is_caption_column, of_run)):
        return False
    return any(map(is_other_column, columns)) or bool(of_run) and any(map(str.strip, originals))


def record_fields(record: Record) -> dict[str, Any]:
    """The record's `json`: FIELDS, its label if it has one, then whatever else its meta holds."""
    meta, label = record.meta, {}
    if record.label is not None:
        label = {"label": record.label}
        meta = with_source_fields(
            meta, {"label": meta["label"]} if meta.get("label", record.label) != record.label else {}
        )
    fields = {
        "uid": str(meta.get("uid", record.key)),
        **_picture_fields(record),
        "captions": record.captions,
        "error": record.error,
        "source": str(meta.get("source", "")),
        "caption_scores": record.scores,
        **label,
    }
    return json_types({**fields, **{name: value for name, value in meta.items() if name not in fields}})


def with_source_fields(fields: Mapping[str, Any], clash: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields with those that clash with ours in `source_fields`, where none that stand there already are replaced."""
    return {**fields, "source_fields": {**clash, **fields.get("source_fields", {})}} if clash else fields


def _picture_fields(record: Record) -> dict[str, Any]:
    """`sha256`, `width` and `height` of the picture; of one that is not there, what an earlier record knew of it."""
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
            raise ValueError(f"{record.key}: no picture, and no error that says so: {error}") from error
        width, height = 0, 0
    return {"sha256": hashlib.sha256(image).hexdigest(), "width": width, "height": height}


def keep(waiting: Waiting, key: str, record: Record) -> None:
    """Puts a record aside, with all that the writers make anything of."""
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


def kept(waiting: Waiting) -> Iterator[tuple[str, Record]]:
    """The keys and records that were put aside."""
    for ([key, own, fields], has_image, names), (image, *contents) in waiting:
        fields["captions"] = tuple(fields["captions"])
        fields["columns"] = {name: tuple(texts) for name, texts in fields["columns"].items()}
        yield key, Record(own, image if has_image else None, members=dict(zip(names, contents, strict=True)), **fields)


def record_members(record: Record) -> dict[str, bytes]:
    """The record's other files, sorted by name."""
    members = dict(sorted(record.members.items()))
    for name in members:
        if not is_member_name(name):
            raise ValueError(f"{record.key}: a file {name!r} cannot be carried under this name")
    return members


def json_types(value: Any) -> Any:
    """The value in JSON's own types: bytes in base64, NaN and infinities null, what has no type in JSON or Arrow as text."""
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
    """Whether the value, if it is an integer, is one of 64 bits."""
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def with_caption_fields(fields: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The fields with these columns together in one of their own, if there are any; a field of this name goes aside."""
    if not columns:
        return dict(fields)
    fields = with_source_fields(fields, {name: fields[name] for name in ("caption_fields",) if name in fields})
    return {**fields, "caption_fields": {name: list(texts) for name, texts in columns.items()}}


def unnamed_columns(record: Record) -> dict[str, tuple[str, ...]]:
    """The columns whose names could be taken for others of a table."""
    return {name: texts for name, texts in record.columns.items() if not is_column(name)}
