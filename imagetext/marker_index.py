"""The done-markers of a folder in a store, together in one file, so that a start need not ask for each of them."""

import gzip
import json
import os
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from imagetext.stores import Entry, StoreError, is_remote, join, plain_path, read_bytes

MARKER = ".done.json"
INDEX = "markers.json.gz"
FEW = 500  # so many markers are read in a few seconds without the index
ROOM = 1024  # bytes of the index for each marker, beside the marker itself
# The types of fields: a type, or those of an object's fields; ANY stands for all of its fields.
ANY = "*"
COUNTS = {ANY: int}
REPEATS = {"pictures": int, "absent": int, "counts": COUNTS}
FIELDS = {  # of every marker
    "file": str,
    "size": int,
    "sha256": str | None,
    "rows": int,
    "failed": int,
    "captions": COUNTS,
    "input": dict,
}
FIELDS_OF_SOME = {
    "passing": int,
    "failed_before": int,
    "first_reason": str,
    "read": int,
    "originals_alone": int,
    "repeats": {ANY: REPEATS},
    "licences": REPEATS,
    "refused": {ANY: {"answers": int, "refused": int, "reasons": COUNTS}},
    "overlap": list,
    "rejected": COUNTS,
    "captions_left_out": COUNTS,
    "joined": COUNTS,
}

Marker = dict[str, Any]


def usable_marker(marker: Any) -> bool:
    """Return whether a value of JSON is a marker: its fields have their types, and its file is beside it."""
    return (
        _fits(marker, FIELDS)
        and all(_fits(marker[name], kind) for name, kind in FIELDS_OF_SOME.items() if name in marker)
        and os.path.basename(marker["file"]) == marker["file"]
    )


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value has a type, or an object's fields have theirs."""
    if not isinstance(kind, dict):
        return isinstance(value, kind)
    if not isinstance(value, dict):
        return False
    kinds = dict.fromkeys(value, kind[ANY]) if ANY in kind else kind
    return all(_fits(value.get(name), field_kind) for name, field_kind in kinds.items())


def read_index(folder: str | os.PathLike, files: Mapping[str, Entry]) -> dict[str, Marker]:
    """Return the markers that the index of a folder has, by the names of their shards; {} if it has no usable index.

    A marker counts only if its file is the one from which it was read, by size and ETag. Folders on this machine have
    no index, because their markers are read fast.

    files: the entries of the folder by their names.
    """
    folder = plain_path(folder)
    if INDEX not in files or not is_remote(folder):
        return {}
    most = sum(file.stamp["size"] + ROOM for name, file in files.items() if name.endswith(MARKER))
    try:
        with gzip.open(BytesIO(read_bytes(join(folder, INDEX)))) as file:
            data = file.read(most + 1)
        indexed = json.loads(data) if len(data) <= most else {}
        return {
            name: marker
            for name, (stamp, marker) in indexed.items()
            if usable_marker(marker) and name + MARKER in files and files[name + MARKER].stamp == stamp
        }
    except StoreError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def new_index(
    folder: str | os.PathLike,
    files: Mapping[str, Entry],
    *,
    markers: Mapping[str, Marker],
    indexed: Mapping[str, Marker],
) -> dict[str, bytes]:
    """Return the file with these markers by its name; {} if at most FEW of them are not in the index already."""
    if not is_remote(plain_path(folder)) or len(markers.keys() - indexed.keys()) <= FEW:
        return {}
    stamped = {name: (files[name + MARKER].stamp, marker) for name, marker in markers.items()}
    return {INDEX: gzip.compress(json.dumps(stamped, separators=(",", ":")).encode(), compresslevel=1, mtime=0)}
