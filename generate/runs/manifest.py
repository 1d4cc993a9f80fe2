"""The manifest of a run, `run.json`: the fingerprint of all settings that decide its bytes, and its shards."""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from generate.runs.in_place import PICTURES
from imagetext import limits
from imagetext.cards import CARD
from imagetext.fields import json_object
from imagetext.lock import LOCK
from imagetext.marker_index import INDEX, Marker, new_index, read_index
from imagetext.outputs import UNFINISHED, remove, write_file
from imagetext.shards import MARKER, RUN, SUFFIXES, read_markers, read_shards
from imagetext.shown import masked_values
from imagetext.stores import entry, files_below, files_of, is_remote, join, plain_path, read_bytes

GALLERY = "gallery.html"
CONFIG = "config.json"  # describes the teachers of a reinforced set, for trainers
REJECTED = ".rejected"  # suffix of the list of records that a selection left out of a shard
ALL_REJECTED = "rejected.jsonl"  # the records that a selection left out, of all shards
LIMITS, SELECTION, DRY_RUN = "limits.npz", "select.html", "dry_run.html"  # limits and pages of a selection
COMMAND_OF_FIELD = {"join": "join", "select": "select", "embedded_columns": "reinforce"}  # else generate
# Values of the settings that a resumed run takes from `run.json`; the batch size is another one.
TAKEN_OVER = {"dtype": ("fp32", "bf16", "fp16"), "products": ("torch", "onednn")}
RULES = 5  # version of gate, draws and grouping; raised when a change in them changes what is written


def read_run(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return the fingerprint of the run in the folder, or None where there is none yet.

    Raises: ValueError where the folder holds something that is not a run of ours.
    """
    folder = plain_path(folder)
    folder_entry = entry(folder)
    if folder_entry and not folder_entry.is_folder:
        raise ValueError(f"output {folder}: is no folder")
    try:
        content = json_object(read_bytes(join(folder, RUN), limits.DOCUMENT))
        run = content["fingerprint"]
        run = {**run, "columns": {name: dict(column) for name, column in run["columns"].items()}}
        _check_values(run, content.get("shards", []))
        return run
    except FileNotFoundError:
        pass
    except (NotADirectoryError, PermissionError) as error:
        raise ValueError(f"output {folder}: cannot be read: {error.strerror}; give another folder") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"output {folder}: its {RUN} is not one of ours: {error}") from error
    others = files_of(folder).keys() - {RUN + UNFINISHED, LOCK, DRY_RUN}
    if others:
        raise ValueError(
            f"output {folder}: is not empty ({min(others)!r}) and holds no {RUN}, so it is no run of ours; give "
            "another folder"
        )
    return None


def _check_values(run: Mapping[str, Any], shards: Any) -> None:
    """Raise ValueError if the names of the shards, or settings that are read again, are none that a run writes."""
    if not isinstance(shards, list) or not all(isinstance(name, str) for name in shards):
        raise ValueError("shards is not a list of names")
    for name in ("versions", "teachers"):
        if not isinstance(run.get(name, {}), Mapping):
            raise ValueError(f"{name} is {run[name]!r}")
    for fields in (run, *run["columns"].values()):
        for name, values in TAKEN_OVER.items():
            if fields.get(name, values[0]) not in values:
                raise ValueError(f"{name} is {fields[name]!r}")
        if type(size := fields.get("batch_size", 1)) is not int or size < 1:
            raise ValueError(f"batch_size is {size!r}")


def read_own_markers(folder: str | os.PathLike) -> dict[str, Marker]:
    """Return the markers of a run that has ended, and keep them in its folder's index.

    So neither the next start nor whoever reads the set has to ask a store for each of them.
    """
    files = files_of(folder)
    indexed = read_index(folder, files)
    markers = read_markers(folder, files, indexed)
    for name, data in new_index(folder, files, markers=markers, indexed=indexed).items():
        write_file(join(plain_path(folder), name), data)
    return markers


def check_own(folder: str | os.PathLike, command: str) -> None:
    """Check that the folder holds no run of another command, which `--overwrite` would remove.

    Raises: ValueError where it does, or where it holds something that is not a run of ours.
    """
    run = read_run(folder)
    if run is None:
        return
    began = next((name for field, name in COMMAND_OF_FIELD.items() if field in run), "generate")
    if began != command:
        raise ValueError(
            f"output {folder}: holds a run of capsmith {began}, and this is capsmith {command}; give another folder"
        )


def expect_run(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the fingerprint of the run in the folder. Raises: ValueError where there is none."""
    run = read_run(folder) if entry(join(plain_path(folder), RUN)) else None
    if run is None:
        exists = entry(plain_path(folder)) is not None
        raise ValueError(f"{folder}: {f'holds no {RUN}, so it is no run of ours' if exists else 'no such folder'}")
    return run


def expect_shards(folder: str | os.PathLike) -> list[str]:
    """Return the names of all shards of the run in the folder, finished or not.

    Raises: ValueError where the run does not name them.
    """
    names = read_shards(folder)
    if names is None:
        raise ValueError(f"{folder}: holds no {RUN} that names its shards")
    return names


def wait_for_run(folder: str | os.PathLike, seconds: float = 900) -> None:
    """Wait until the first process has written `run.json`. Raises: ValueError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not entry(join(plain_path(folder), RUN)):
        if time.monotonic() > deadline:
            raise ValueError(f"output {folder}: no {RUN} after {seconds:.0f} seconds; did the first process fail?")
        time.sleep(0.2)


def check_rules(folder: str | os.PathLike, earlier: Mapping[str, Any]) -> None:
    """Check that the run in the folder was begun with the same version of the rules, because no set may mix two.

    Raises: ValueError where it was not.
    """
    if earlier.get("rules") != RULES:
        began = f"capsmith {earlier.get('versions', {}).get('capsmith', '0.1')}"
        raise ValueError(
            f"output {folder}: {began} began this run, with other rules; finish it with {began}, or use --overwrite "
            "to start anew"
        )


def check_same(folder: str | os.PathLike, earlier: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Check that the run in the folder has the same fingerprint.

    Raises: ValueError that names each field that differs.
    """
    if differing := differences(earlier, fingerprint):
        first_line = (
            f"output {folder}: holds a run of other settings; give another folder, or --overwrite to start anew:"
        )
        raise ValueError("\n  ".join([first_line, *differing]))


def differences(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """Return a line for each field in which two fingerprints differ; secrets do not count, `run.json` has none."""
    earlier, later = masked_values(earlier), masked_values(later)
    if list(earlier["columns"]) != list(later["columns"]):  # then their names are all that can be compared
        earlier, later = ({**run, "columns": list(run["columns"])} for run in (earlier, later))
    earlier_fields, fields = _flat(earlier), _flat(later)
    return [
        f"{name}: {earlier_fields.get(name)!r} there, {fields.get(name)!r} now"
        for name in sorted(earlier_fields | fields)
        if earlier_fields.get(name) != fields.get(name)
    ]


def minor_versions(*packages: str) -> dict[str, str]:
    """Return `major.minor` of the installed packages, for a fingerprint: patches do not change what is written."""
    return {name: ".".join(version(name).split(".")[:2]) for name in packages}


def write_run(folder: str | os.PathLike, run: Mapping[str, Any], shards: Sequence[str] = ()) -> None:
    """Write `run.json`, with the run's fingerprint and the names of all its shards, whole or not at all."""
    content = {"fingerprint": masked_values(run), "shards": list(shards)}
    write_file(join(plain_path(folder), RUN), json.dumps(content, indent=1).encode())


def clear_run(folder: str | os.PathLike) -> None:
    """Remove everything that a run has written, by its `run.json` and its markers; `run.json` is removed last."""
    folder = plain_path(folder)
    entries = files_of(folder)
    suffix = SUFFIXES.get((read_run(folder) or {}).get("format", ""), "")
    shards = {*(read_shards(folder) or ()), *(name.removesuffix(MARKER) for name in entries if name.endswith(MARKER))}
    files = {CARD, GALLERY, PICTURES, INDEX, ALL_REJECTED, LIMITS, SELECTION, DRY_RUN}
    files |= {shard + end for shard in shards for end in (suffix, MARKER, REJECTED)}
    for name in files | {name + UNFINISHED for name in files}:
        if name in entries and not entries[name].is_folder:
            remove(entries[name].path)
    for shard in shards:
        for name in (shard + ".images", shard + ".images" + UNFINISHED):
            if name in entries and entries[name].is_folder:
                _remove_pictures(entries[name].path)
    remove(join(folder, RUN))


def _remove_pictures(folder: str) -> None:
    """Remove the folder of a shard's pictures; what a link leads to stays, because it may belong to somebody else."""
    if is_remote(folder):
        for picture in files_below(folder):
            remove(picture.path)
    elif os.path.islink(folder):
        os.unlink(folder)
    else:
        shutil.rmtree(folder)  # follows no links


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields as one mapping, with names like columns.x.sampling."""
    flat = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
