"""One row of a table, JSON object or metadata file -> a Sample."""

import base64
import binascii
import errno
import json
import math
import os
import re
import stat
from typing import Any

from imagetext.keys import SeenKeys
from imagetext.sample import Sample

KEY_COLUMNS = ("key", "uid", "id")
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path")
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "title")


def row_sample(row: dict[str, Any] | ValueError, row_key: str, folder: str, source: str, keys: SeenKeys) -> Sample:
    """A Sample of one row of a table; what is wrong with a cell stands in `meta["error"]`."""
    if isinstance(row, ValueError):
        return Sample(keys.unique(row_key), None, (), {}, {"uid": row_key, "source": source, "error": str(row)})
    row = dict(row)
    errors, image, captions = [], None, ()
    original = next((str(row[name]) for name in KEY_COLUMNS if not _is_null(row.get(name))), row_key)
    row.pop("key", None)
    try:
        captions = captions_of(row)
    except ValueError as error:
        errors.append(str(error))
    failed_before = row.pop("error", None)
    try:
        if not (isinstance(failed_before, str) and failed_before):
            image, source = _image_of(row, folder, source)
    except ValueError as error:
        errors.append(str(error))
    row.pop(next((name for name in IMAGE_COLUMNS if name in row), None), None)
    members = {}
    try:
        members = _members_of(row)
    except ValueError as error:
        errors.append(str(error))
    if "caption_scores" in row:
        row["caption_scores"] = _without_nulls(row["caption_scores"])
    if (rest := _json_object(row.get("json"))) is not None:  # where our Parquet files keep it
        del row["json"]
    meta = {"uid": original, "source": source, **row, **(rest or {})}
    if reason := "; ".join(errors) or failed_before:
        meta["error"] = str(reason)
    return Sample(keys.unique(original), image, captions, members, meta)


def captions_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Takes the first caption column that the row has out of it; raises ValueError for what is neither text nor texts."""
    name = next((name for name in CAPTION_COLUMNS if name in row), None)
    return () if name is None else _texts(name, row.pop(name))


def caption_columns(data: bytes) -> dict[str, tuple[str, ...]]:
    """The columns of synthetic captions in a `syn.json` member; raises ValueError where it is no object of lists of text."""
    try:
        columns = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"syn.json: {error}") from error
    if not isinstance(columns, dict):
        raise ValueError(f"syn.json: expected an object, got {_short(columns)}")
    return {name: tuple(_listed(f"syn.json: {name}", texts)) for name, texts in columns.items()}


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if _is_null(value):
        return ()
    return tuple(text for text in _listed(name, [value] if isinstance(value, str) else value) if text.strip())


def _listed(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name}: expected a text or a list of texts, got {_short(value)}")
    return [well_formed(text) for text in value]


def well_formed(text: str) -> str:
    """The text without half surrogate pairs, which JSON and file names can spell and nothing else can write."""
    return text.encode("utf-8", "replace").decode()


def _image_of(row: dict[str, Any], folder: str, source: str) -> tuple[bytes | None, str]:
    """The picture's bytes as found and where they were found; raises ValueError naming what is wrong with the cell."""
    name = next((name for name in IMAGE_COLUMNS if name in row), None)
    if name is None:
        return None, source
    value = row[name]
    if isinstance(value, dict):  # a picture of `datasets`
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value, source
    if _is_null(value):
        raise ValueError(f"{name}: no picture given")
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a path or the bytes of a picture, got {_short(value)}")
    data = _base64_picture(value)
    if data is not None:
        return data, source
    path = os.path.join(folder, value)
    return read_picture(path), path


def read_picture(path: str) -> bytes:
    """The bytes of a picture file; ValueError where there is none; other trouble with the store stays an OSError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"not a file: {_short(path)}")
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ValueError(f"missing picture file: {_short(path)} ({error.strerror})") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(f"neither a path nor a picture in base64: {_short(path)}") from error


def _base64_picture(text: str) -> bytes | None:
    """The bytes, if this is base64 (or a data URL) of something that starts like a picture."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"data URL is no base64: {error}") from error
    starts = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkq", "TU0A", "AAAA", "UD")  # JPEG, PNG, WebP, GIF, ...
    if len(text) < 64 or not text.startswith(starts):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error:
        return None


def _members_of(row: dict[str, Any]) -> dict[str, bytes]:
    """Takes the other files of a sample, and the synthetic captions as `syn.json`, out of the row."""
    members, value = {}, row.get("members")
    try:
        if isinstance(value, list):  # ours in Parquet
            members = {str(item["name"]): bytes(item["data"]) for item in value}
        elif isinstance(value, dict):  # ours in JSONL
            members = {name: base64.b64decode(data, validate=True) for name, data in value.items()}
    except (KeyError, TypeError, ValueError):
        pass  # a column that only has the name
    if all(is_member_name(name) for name in members):
        if members or value == []:
            del row["members"]
    else:
        members = {}
    columns = {name: row.pop(name) for name in list(row) if name.startswith("syn_text")}
    columns = {name: _texts(name, texts) for name, texts in columns.items()}
    if any(columns.values()):
        members["syn.json"] = json.dumps({name: texts for name, texts in columns.items() if texts}).encode()
    return members


def is_member_name(name: str) -> bool:
    """Whether a file of a sample, besides its picture and texts, may have this suffix."""
    return bool(re.fullmatch(r"[^/\0]+", name)) and name == name.lower() and name not in ("jpg", "txt", "syn.json", "json")


def _without_nulls(scores: Any) -> dict[str, dict]:
    """Scores by column, without the fields that a Parquet struct has only because another row has them."""
    return {column: {name: values for name, values in fields.items() if values is not None}
            for column, fields in (scores if isinstance(scores, dict) else {}).items() if isinstance(fields, dict)}


def _json_object(text: Any) -> dict | None:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_null(value: Any) -> bool:
    return value is None or value == "" or isinstance(value, float) and math.isnan(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
