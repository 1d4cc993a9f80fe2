"""Fields that people write about a picture: captions in any form, and others, none of which is lost to one of ours."""

import codecs
import json
import logging
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from imagetext import limits
from imagetext.columns import is_column

logger = logging.getLogger(__name__)

# They begin flags of captions, in `caption_scores`, that are no reason to refuse these: what was cut off an answer, of which kind a
# hard negative is, and what stands in the place of an answer.
CUT, KIND, FALLBACK = "cut:", "kind:", "fallback:"

# Every record of ours has these, with these types: `datasets` takes its columns from the first five records only.
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
RESERVED = (*FIELDS, "caption_fields", "source_fields", "members", "json")  # names that mean something in our records
OF_PICTURE = ("sha256", "width", "height")
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "title")
# where an object in a list of captions has its own
TEXT_FIELDS = ("text", "caption", "captions", "raw", "sentence", "description")
LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Known(NamedTuple):
    """The fields of a sample, sorted: captions, other columns, scores, why an earlier run of ours failed, and the rest."""

    captions: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    scores: dict[str, dict[str, Any]]
    failed: str
    rest: dict[str, Any]


def known_fields(fields: Mapping[str, Any], texts: Sequence[str] = (), *, picture: bool) -> Known:
    """Sorts a sample's fields, given the texts of its own caption file; picture: whether it has one.

    A record of ours is taken at its word. Of all others, captions are the texts and then those of `captions`, or of another
    field where there is no text; what is no caption stays, and nothing is an error.
    """
    fields = dict(fields)
    if is_ours(fields):
        captions, scores, failed = fields.pop("captions"), fields.pop("caption_scores"), fields.pop("error")
        captions = tuple(filter(str.strip, loose_texts(captions)))
        return Known(captions, take_columns(fields), known_scores(scores), failed, fields)
    named = take_captions(fields, CAPTION_COLUMNS[:1] if texts else CAPTION_COLUMNS)
    captions = tuple(map(well_formed, texts))
    if captions:
        named = tuple(text for text in named if text not in captions)
    # of a record of ours, which lost other fields
    scores = fields.pop("caption_scores") if _are_scores(fields.get("caption_scores")) else {}
    return Known(captions + named, {}, known_scores(scores) if scores else {}, "", own_fields(fields, picture=picture))


def is_ours(fields: Mapping[str, Any]) -> bool:
    """Whether a record is one that we wrote: it has all of FIELDS, each of its type (Parquet has no empty `caption_scores`)."""
    return fields.keys() >= FIELDS.keys() and all(
        isinstance(fields[name], kind) or kind is dict and fields[name] is None for name, kind in FIELDS.items()
    )


def own_fields(fields: dict[str, Any], *, picture: bool) -> dict[str, Any]:
    """Fields that others wrote, those with names of ours moved to `source_fields`, all but `uid`, which stays the uid.

    Hash and size of a picture that is not there stay too: they are all that is known of it.
    """
    if fields.keys().isdisjoint(RESERVED):
        return fields
    stay = ("uid",) if picture else ("uid", *OF_PICTURE)
    clash = {
        name: fields[name]
        for name in RESERVED
        if name in fields and not (name in stay and (name == "uid" or type(fields[name]) is FIELDS[name]))
    }
    # Within `source_fields` they are nested deeper by one, and are to be read again.
    clash = {
        name: json.dumps(value, default=str) if _deep(value, limits.DEPTH - 2) else value
        for name, value in clash.items()
    }
    return {
        **{name: value for name, value in fields.items() if name not in clash},
        **({"source_fields": clash} if clash else {}),
    }


def json_fields(data: bytes) -> dict[str, Any]:
    """The fields in a sample's `json`; what is no object of JSON is the one field `json`, its text where it is no JSON."""
    try:
        return json_object(data)
    except ValueError:
        text = data.decode("utf-8-sig", "replace")
    try:
        value = json_value(text)
        return {"json": text if _deep(value) else value}
    except ValueError:
        return {"json": text}


def json_value(data: bytes | str, most: int | None = None) -> Any:
    """The value that a JSON text is; ValueError where it is none, or has more than `most` values, limits.VALUES unless given."""
    most = limits.VALUES if most is None else most
    marks: Any = (b",", b"[", b"{") if isinstance(data, bytes) else (",", "[", "{")
    if len(data) > most and sum(data.count(mark) for mark in marks) > most:  # each takes 30 times its text in memory
        raise ValueError(f"JSON of more than {most:,} values")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def json_object(data: bytes | str) -> dict[str, Any]:
    """The JSON object that the text is; ValueError for anything else, and for one that is nested more than limits.DEPTH."""
    value = json_value(data)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    opening = data.count(b"[") + data.count(b"{") if isinstance(data, bytes) else data.count("[") + data.count("{")
    if opening > limits.DEPTH and _deep(value):  # counted first, which is quick
        raise ValueError(f"objects and lists nested more than {limits.DEPTH} deep")
    return value


def _deep(value: Any, most: int = limits.DEPTH) -> bool:
    """Whether objects and lists are nested deeper than that."""
    level, depth = [value], 0
    while level := [
        item
        for one in level
        if isinstance(one, dict | list)
        for item in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
        if depth > most:
            return True
    return False


# ---- captions in any form ----------------------------------------------------------------------------------------------


def take_captions(row: dict[str, Any], names: Sequence[str] = CAPTION_COLUMNS) -> tuple[str, ...]:
    """The captions of the first of these fields that has any.

    Fields that are texts and nothing else are taken out of the row, down to this one; what else they hold stays where it is.
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
    """The captions of a list of texts, as most sets have them, sooner than `captions_in` finds them; None for anything else."""
    if type(value) is not list or not {*map(type, value)} <= {str}:
        return None
    return tuple([text if text.isascii() else well_formed(text) for text in value if text and not text.isspace()])


def captions_in(value: Any) -> tuple[str, ...]:
    """The captions in a value: a text, an object with one, objects by language, or a list of these; none in anything else."""
    if isinstance(value, str):
        return (well_formed(value),) if value.strip() else ()
    if isinstance(value, Mapping):
        named = next((value[name] for name in TEXT_FIELDS if name in value), None)
        if named is not None:
            return captions_in(named)
        return _all(value.values()) if all(LANGUAGE.fullmatch(str(name)) for name in value) else ()
    return (
        _all(item for item in value if not isinstance(item, list | tuple)) if isinstance(value, list | tuple) else ()
    )


def _all(values: Any) -> tuple[str, ...]:
    return tuple(chain.from_iterable(map(captions_in, values)))


def _only_texts(value: Any) -> bool:
    """Whether captions are all that the value says: texts, nulls, or nothing."""
    values = value if isinstance(value, list | tuple) else [value]
    # NaN, which differs from itself, is what tables write for null
    return all(item is None or isinstance(item, str) or item != item for item in values)


def loose_texts(value: Any) -> tuple[str, ...]:
    """The captions in a field of whatever kind: a text that is not blank, or a list of texts; none in anything else."""
    if isinstance(value, str):
        return (well_formed(value),) if value.strip() else ()
    if isinstance(value, list | tuple) and {*map(type, value)} <= {str, type(None)}:
        return tuple([text if text.isascii() else well_formed(text) for text in value if text is not None])
    return ()


def take_columns(fields: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Takes the columns in `caption_fields` out of a record of ours; none where that is a field which only has the name."""
    columns = fields.get("caption_fields")
    if not isinstance(columns, dict) or not all(
        texts is None or isinstance(texts, list) and {*map(type, texts)} <= {str} for texts in columns.values()
    ):
        return {}
    del fields["caption_fields"]
    return {well_formed(name): tuple(map(well_formed, texts)) for name, texts in columns.items() if texts}


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(is_column(name) and isinstance(of, dict) for name, of in value.items())


def known_scores(scores: Any) -> dict[str, dict[str, Any]]:
    """The objects in a `caption_scores` object, without fields that a Parquet struct adds as nulls."""
    return {
        column: {name: values for name, values in fields.items() if values is not None}
        for column, fields in (scores if isinstance(scores, dict) else {}).items()
        if isinstance(fields, dict)
    }


def well_formed(text: str) -> str:
    """The text without half surrogate pairs, which JSON and file names can spell and nothing else can write."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def readable(data: bytes, place: str) -> str:
    """A text file as its first bytes say, else as UTF-8, with a warning where it is none."""
    try:
        return data.decode(
            "utf-16" if data.startswith(UTF_16) else "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8"
        )
    except UnicodeDecodeError:
        logger.warning("%s: is no UTF-8; what cannot be read of it becomes \ufffd", place)
        return data.decode("utf-8", "replace")
