"""One row of a table, JSON object or metadata file -> a Sample."""

import base64
import binascii
import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from imagetext.keys import SeenKeys
from imagetext.sample import Sample
from imagetext.stores import StoreError, in_order, is_remote, join, read_bytes

KEY_COLUMNS = ("key", "uid", "id")
IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path")
CAPTION_COLUMNS = ("captions", "caption", "text", "texts", "title")
DEEPEST = 100       # objects and lists in each other, in JSON that we read

Row = Mapping[str, Any]


def row_samples(rows: Iterable[tuple[Row | ValueError, str, str]], folder: str, keys: SeenKeys) -> Iterator[Sample]:
    """A Sample for each (row, key where it has none, source); what is wrong with a cell stands in `meta["error"]`.

    folder: where the paths of pictures start from. Raises StoreError where a store fails.
    """
    parsed = (_parse(*row, folder) for row in rows)
    for sample in in_order((is_remote(path), partial(with_picture, sample, path)) for sample, path in parsed):
        yield replace(sample, key=keys.unique(sample.key))


def with_picture(sample: Sample, path: str) -> Sample:
    """The sample with the picture at the path, if there is one; what is wrong stands in `meta["error"]`."""
    if not path:
        return sample
    try:
        return replace(sample, image=read_picture(path))
    except StoreError:
        raise
    except ValueError as problem:
        error = "; ".join(filter(None, (sample.meta.get("error"), str(problem))))
        return replace(sample, meta={**sample.meta, "error": error})


def _parse(row: Row | ValueError, row_key: str, source: str, folder: str) -> tuple[Sample, str]:
    """What the row says, and the path of its picture where that is still to be read."""
    if isinstance(row, ValueError):
        return Sample(row_key, None, (), {}, {"uid": row_key, "source": source, "error": str(row)}), ""
    row = dict(row)
    errors, image, path, captions, members = [], None, "", (), {}
    original = next((str(row[name]) for name in KEY_COLUMNS if not _is_null(row.get(name))), row_key)
    row.pop("key", None)
    try:
        captions = captions_of(row)
    except ValueError as error:
        errors.append(str(error))
    failed_before = row.pop("error", None)
    column = next((name for name in IMAGE_COLUMNS if name in row), None)
    try:
        # A row that says `error` is a record of ours: it has no picture where it failed, or is captions alone.
        if column and not (isinstance(failed_before, str) and (failed_before or _is_null(row[column]))):
            image, path = _image_of(column, row[column], folder)
    except ValueError as error:
        errors.append(str(error))
    row.pop(column, None)
    try:
        members = _members_of(row)
    except ValueError as error:
        errors.append(str(error))
    rest = {}
    try:
        if isinstance(row.get("json"), str):
            rest = json_object(row["json"])
            del row["json"]  # where our Parquet files keep it
    except ValueError:
        pass  # a column that only has the name
    meta = {"uid": original, "source": path or source, **known_scores({**row, **rest})}
    meta.pop("error", None)
    if _is_null(meta["uid"]):
        meta["uid"] = original
    if reason := "; ".join(errors) or failed_before:
        meta["error"] = well_formed(str(reason))
    return Sample(original, image, captions, members, meta), path


def json_object(data: bytes | str) -> dict[str, Any]:
    """The JSON object that the text is; ValueError for anything else, and for one that is nested more than DEEPEST."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    level, depth = [value], 0
    while level := [item for one in level if isinstance(one, dict | list)
                    for item in (one.values() if isinstance(one, dict) else one)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"objects and lists nested more than {DEEPEST} deep")
    return value


def captions_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Takes the first caption column that the row has out of it; raises ValueError for what is neither text nor texts."""
    name = next((name for name in CAPTION_COLUMNS if name in row), None)
    return () if name is None else tuple(text for text in _texts(name, row.pop(name)) if text.strip())


def caption_columns(data: bytes) -> dict[str, tuple[str, ...]]:
    """The columns of synthetic captions in a `syn.json` member; raises ValueError where it is no object of lists of text."""
    try:
        columns = json_object(data)
    except ValueError as error:
        raise ValueError(f"syn.json: {error}") from error
    return {name: tuple(_listed(f"syn.json: {name}", texts)) for name, texts in columns.items()}


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """One text or a list of them; an empty one of several stays where it is, because scores and embeddings go by its place."""
    if _is_null(value):
        return ()
    texts = _listed(name, [value] if isinstance(value, str) else value)
    return tuple(texts) if any(map(str.strip, texts)) else ()


def _listed(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name}: expected a text or a list of texts, got {_short(value)}")
    return [well_formed(text) for text in value]


def well_formed(text: str) -> str:
    """The text without half surrogate pairs, which JSON and file names can spell and nothing else can write."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _image_of(name: str, value: Any, folder: str) -> tuple[bytes | None, str]:
    """The picture's bytes as found, or its path; raises ValueError naming what is wrong with the cell."""
    if isinstance(value, dict):  # a picture of `datasets`
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value, ""
    if _is_null(value):
        raise ValueError(f"{name}: no picture given")
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a path or the bytes of a picture, got {_short(value)}")
    data = _base64_picture(value)
    return (None, join(folder, value)) if data is None else (data, "")


def read_picture(path: str) -> bytes:
    """The bytes of a picture file; ValueError where there is none; other trouble with the store stays an OSError."""
    try:
        if is_remote(path):
            if "\0" in path or well_formed(path) != path or len(path.encode()) > 1024:
                raise ValueError(f"neither a path nor a picture in base64: {_short(path)}")
            return read_bytes(path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"not a file: {_short(path)}")
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise ValueError(f"missing picture file: {_short(path)} ({error.strerror or error})") from error
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
            members = {item["name"]: bytes(memoryview(item["data"])) for item in value}
        elif isinstance(value, dict):  # ours in JSONL
            members = {name: base64.b64decode(data, validate=True) for name, data in value.items()}
    except (KeyError, TypeError, ValueError):
        pass  # a column that only has the name
    if all(isinstance(name, str) and is_member_name(name) for name in members):
        if members or value == []:
            del row["members"]
    else:
        members = {}
    columns = {name: row.pop(name) for name in list(row) if is_caption_column(name)}
    columns = {name: _texts(name, texts) for name, texts in columns.items()}
    if any(columns.values()):
        members["syn.json"] = json.dumps({name: texts for name, texts in columns.items() if texts}).encode()
    return members


def is_member_name(name: str) -> bool:
    """Whether a file of a sample, besides its picture and texts, may have this suffix."""
    return bool(re.fullmatch(r"[^/\0]+", name)) and name == name.lower() and name not in ("jpg", "txt", "syn.json", "json")


def is_caption_column(name: str) -> bool:
    """Whether a field holds synthetic captions: `syn_text...`, which is not the embeddings of such a column."""
    return name.startswith("syn_text") and not name.endswith(("emb", "embedding", "embeddings"))


def known_scores(meta: Row) -> dict[str, Any]:
    """The fields, their `caption_scores` objects in an object, without those that a Parquet struct adds as nulls."""
    if "caption_scores" not in meta:
        return dict(meta)
    scores = meta["caption_scores"]
    return {**meta, "caption_scores": {column: {name: values for name, values in fields.items() if values is not None}
                                       for column, fields in (scores if isinstance(scores, dict) else {}).items()
                                       if isinstance(fields, dict)}}


def _is_null(value: Any) -> bool:
    return value is None or value == "" or isinstance(value, float) and math.isnan(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
