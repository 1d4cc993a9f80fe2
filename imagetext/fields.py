"""Fields that people write about a picture: captions in any form, and others, which never replace one of ours."""

import codecs
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from imagetext import limits
from imagetext.columns import is_column

logger = logging.getLogger(__name__)

# Beginnings of flags in `caption_scores` that are no reason to refuse a caption.
CUT = "cut:"  # then what was cut off the model's answer
KIND = "kind:"  # then the kind of a hard negative
FALLBACK = "fallback:"  # then what stands in place of an answer

# Every record that we write has these fields and types: `datasets` takes its columns from the first five records.
FIELDS: Mapping[str, type] = {
    "uid": str,
    "sha256": str,
    "width": int,
    "height": int,
    "captions": list,
    "error": str,
    "source": str,
    "caption_scores": dict,
}
RESERVED = (*FIELDS, "caption_fields", "source_fields", "members", "json")  # names with a meaning in our records
OF_PICTURE = ("sha256", "width", "height")
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "title")
# fields in which an object in a list of captions may have its text
TEXT_FIELDS = ("text", "caption", "captions", "raw", "sentence", "description")
LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class SortedFields(NamedTuple):
    """The fields of a sample, sorted by meaning."""

    captions: tuple[str, ...]  # original captions
    columns: dict[str, tuple[str, ...]]  # of `caption_fields`
    scores: dict[str, dict[str, Any]]  # of `caption_scores`
    error: str  # why the run that wrote the record failed on it; "" if it did not
    others: dict[str, Any]


def sort_fields(fields: Mapping[str, Any], texts: Sequence[str] = (), *, picture: bool) -> SortedFields:
    """Sort a sample's fields by meaning.

    A record that we wrote is believed as it is. In all others, captions are `texts` and then those of the field
    `captions` (without `texts`: of the first field of CAPTION_COLUMNS that has any). Fields that are not captions
    stay, and no field is an error.

    texts: the texts of the sample's caption file.
    picture: whether the sample has a picture.
    """
    fields = dict(fields)
    if is_ours(fields):
        captions, scores, error = fields.pop("captions"), fields.pop("caption_scores"), fields.pop("error")
        captions = tuple(filter(str.strip, loose_texts(captions)))
        return SortedFields(
            captions, columns=take_columns(fields), scores=scores_by_column(scores), error=error, others=fields
        )
    named = take_captions(fields, CAPTION_COLUMNS[:1] if texts else CAPTION_COLUMNS)
    captions = tuple(map(well_formed, texts))
    if captions:
        named = tuple(text for text in named if text not in captions)
    # A record that we wrote may have lost other fields since, but not its scores.
    scores = fields.pop("caption_scores") if _are_scores(fields.get("caption_scores")) else {}
    others = foreign_fields(fields, picture=picture)
    return SortedFields(
        captions + named, columns={}, scores=scores_by_column(scores) if scores else {}, error="", others=others
    )


def is_ours(fields: Mapping[str, Any]) -> bool:
    """Whether we wrote a record: it has all of FIELDS, with their types.

    `caption_scores` may be None, because Parquet cannot store an empty object.
    """
    return fields.keys() >= FIELDS.keys() and all(
        isinstance(fields[name], kind) or kind is dict and fields[name] is None for name, kind in FIELDS.items()
    )


def foreign_fields(fields: dict[str, Any], *, picture: bool) -> dict[str, Any]:
    """The fields of a record that others wrote, with those that have a RESERVED name moved into `source_fields`.

    `uid` stays. So do the hash and size of a picture if the picture is missing: nothing else is known about it.
    """
    if fields.keys().isdisjoint(RESERVED):
        return fields
    clash = {}
    for name in RESERVED:
        if name not in fields or name == "uid":
            continue
        value = fields[name]
        if not picture and name in OF_PICTURE and type(value) is FIELDS[name]:
            continue
        # In `source_fields` the values are nested one level deeper, and must still be readable.
        clash[name] = json.dumps(value, default=str) if _is_deep(value, limits.DEPTH - 2) else value
    others = {name: value for name, value in fields.items() if name not in clash}
    return {**others, "source_fields": clash} if clash else others


def moved_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that were moved into `source_fields`; {} if there are none, or other tools have put null there."""
    moved = fields.get("source_fields")
    return moved if isinstance(moved, Mapping) else {}


def json_fields(data: bytes) -> dict[str, Any]:
    """The fields in a sample's `json` file.

    A JSON value that is not an object becomes the only field, `json`. So does the text of a file that is not JSON.
    """
    try:
        return json_object(data)
    except ValueError:
        text = data.decode("utf-8-sig", "replace")
    try:
        value = json_value(text)
        return {"json": text if _is_deep(value) else value}
    except ValueError:
        return {"json": text}


def json_value(data: bytes | str, most: int | None = None) -> Any:
    """Parse a JSON text.

    Raises ValueError if the text is not JSON or has more than `most` values (default: limits.VALUES).
    """
    most = limits.VALUES if most is None else most
    marks: Any = (b",", b"[", b"{") if isinstance(data, bytes) else (",", "[", "{")
    # A value may take 30 times the memory of its text.
    if len(data) > most and sum(data.count(mark) for mark in marks) > most:
        raise ValueError(f"JSON of more than {most:,} values")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def json_object(data: bytes | str) -> dict[str, Any]:
    """Parse a JSON text that is an object.

    Raises ValueError for anything else, and for objects and lists that are nested deeper than limits.DEPTH.
    """
    value = json_value(data)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    opening = data.count(b"[") + data.count(b"{") if isinstance(data, bytes) else data.count("[") + data.count("{")
    if opening > limits.DEPTH and _is_deep(value):  # counting brackets is quick, so it comes first
        raise ValueError(f"objects and lists nested more than {limits.DEPTH} deep")
    return value


def _is_deep(value: Any, most: int = limits.DEPTH) -> bool:
    """Whether objects and lists are nested deeper than `most` levels."""
    level, depth = [value], 0
    while level:
        below = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below
        depth += bool(level)
        if depth > most:
            return True
    return False


# ---- captions in any form ------------------------------------------------------------------------------------------


def take_captions(row: dict[str, Any], names: Sequence[str] = CAPTION_COLUMNS) -> tuple[str, ...]:
    """Return the captions of the first of these fields that has any.

    Fields up to that one that hold only texts are removed from the row; a field that holds anything else stays.
    """
    for name in names:
        if name in row:
            plain = _plain_texts(row[name])
            captions = captions_in(row[name]) if plain is None else plain
            if plain is not None or _only_texts(row[name]):
                del row[name]
            if captions:
                return captions
    return ()


def _plain_texts(value: Any) -> tuple[str, ...] | None:
    """The captions in a list of texts, the usual form; None for any other value. Faster than `captions_in`."""
    if type(value) is not list or not {*map(type, value)} <= {str}:
        return None
    return tuple([text if text.isascii() else well_formed(text) for text in value if text and not text.isspace()])


def captions_in(value: Any) -> tuple[str, ...]:
    """The captions in a value; () for a value that has none.

    It may be a text, an object with a text field, an object of texts by language, or a list of these.
    """
    if isinstance(value, str):
        return (well_formed(value),) if value.strip() else ()
    if isinstance(value, Mapping):
        named = next((value[name] for name in TEXT_FIELDS if name in value), None)
        if named is not None:
            return captions_in(named)
        by_language = all(LANGUAGE.fullmatch(str(name)) for name in value)
        return _captions_in_each(value.values()) if by_language else ()
    if isinstance(value, list) and {*map(type, value)} == {tuple}:  # a map of Parquet, which Arrow gives as pairs
        return captions_in({str(name): texts for name, texts in value})
    if isinstance(value, list | tuple):
        return _captions_in_each(item for item in value if not isinstance(item, list | tuple))
    return ()


def _captions_in_each(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(chain.from_iterable(map(captions_in, values)))


def _only_texts(value: Any) -> bool:
    """Whether the value holds only texts and nulls, or nothing."""
    values = value if isinstance(value, list | tuple) else [value]
    # Tables write NaN for null; NaN is the only value that differs from itself.
    return all(item is None or isinstance(item, str) or item != item for item in values)


def loose_texts(value: Any) -> tuple[str, ...]:
    """The captions in a field of any kind: a text that is not blank, or a list of texts. Any other value has none."""
    if isinstance(value, str):
        return (well_formed(value),) if value.strip() else ()
    if isinstance(value, list | tuple) and {*map(type, value)} <= {str, type(None)}:
        return tuple([text if text.isascii() else well_formed(text) for text in value if text is not None])
    return ()


def take_columns(fields: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Remove the columns in `caption_fields` from a record that we wrote, and return them.

    If the field has another structure, it stays and there are no columns.
    """
    columns = fields.get("caption_fields")
    if not isinstance(columns, dict) or not all(
        texts is None or isinstance(texts, list) and {*map(type, texts)} <= {str} for texts in columns.values()
    ):
        return {}
    del fields["caption_fields"]
    return {well_formed(name): tuple(map(well_formed, texts)) for name, texts in columns.items() if texts}


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_column(name) and isinstance(scores, dict) for name, scores in value.items()
    )


def scores_by_column(scores: Any) -> dict[str, dict[str, Any]]:
    """The scores of each column in a `caption_scores` object, without the nulls that a Parquet struct adds."""
    return {
        column: {name: values for name, values in fields.items() if values is not None}
        for column, fields in (scores if isinstance(scores, dict) else {}).items()
        if isinstance(fields, dict)
    }


def well_formed(text: str) -> str:
    """The text with `?` for lone surrogates, which JSON and file names may contain but UTF-8 cannot encode."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def readable(data: bytes, place: str) -> str:
    """Decode a text file: UTF-16 or UTF-8 by its byte order mark, else UTF-8.

    Bytes that are not UTF-8 become U+FFFD, with a warning that names `place`.
    """
    try:
        if data.startswith(UTF_16):
            return data.decode("utf-16")
        return data.decode("utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8")
    except UnicodeDecodeError:
        logger.warning("%s: is not UTF-8; bytes that cannot be read become \ufffd", place)
        return data.decode("utf-8", "replace")


def lines_of(text: str) -> list[str]:
    """The lines of a text, without their ends.

    `str.splitlines` also divides at other characters, such as U+2028, which occur within captions from the web.
    """
    return re.split(r"\r\n|\r|\n", text)
