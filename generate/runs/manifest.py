"""What a run is: `run.json` with the fingerprint of all that decides its bytes, and with the shards that there are to be."""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from generate.runs.inputs import PICTURES
from imagetext.cards import CARD
from imagetext.lock import LOCK
from imagetext.outputs import UNFINISHED, remove, write_file
from imagetext.shards import MARKER, RUN, SUFFIXES, read_shards
from imagetext.shown import masked_values
from imagetext.stores import entry, files_below, is_remote, join, listing, plain_path, read_bytes

GALLERY = "gallery.html"
REJECTED, ALL_REJECTED = (
    ".rejected",
    "rejected.jsonl",
)  # what a selection leaves out: of a shard, behind its name, and of all
LIMITS, SELECTION, DRY_RUN = "limits.npz", "select.html", "dry_run.html"  # what it has settled, and its pages
BEGAN = {"join": "join", "select": "select", "embedded_columns": "reinforce"}  # by a field of a run's, the command
RULES = 2  # the version of gate, draws and grouping: raised where one of them changes what is written


def read_run(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The fingerprint of the run in the folder, or None where there is none yet.

    Raises: ValueError where the folder holds something that is not a run of ours.
    """
    folder = plain_path(folder)
    folder_entry = entry(folder)
    if folder_entry and not folder_entry.is_folder:
        raise ValueError(f"output {folder}: is no folder")
    try:
        run = json.loads(read_bytes(join(folder, RUN)))["fingerprint"]
        return {**run, "columns": {name: dict(column) for name, column in run["columns"].items()}}
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"output {folder}: its {RUN} is not one of ours: {error}") from error
    others = sorted({os.path.basename(one.path) for one in listing(folder)} - {RUN + UNFINISHED, LOCK, DRY_RUN})
    if others:
        raise ValueError(
            f"output {folder}: is not empty ({others[0]!r}) and holds no {RUN}, so it is no run of ours; give another "
            "folder"
        )
    return None


def check_own(folder: str | os.PathLike, command: str) -> None:
    """Raises ValueError where the folder holds something that is not a run of this command: `--overwrite` would remove it."""
    if (run := read_run(folder)) is None:
        return
    began = next((command for field, command in BEGAN.items() if field in run), "generate")
    if began != command:
        raise ValueError(
            f"output {folder}: holds a run that capsmith {command} did not begin, but capsmith {began}; give another folder"
        )


def expect_run(folder: str | os.PathLike) -> dict[str, Any]:
    """The fingerprint of the run in the folder; raises ValueError where it holds none."""
    run = read_run(folder) if entry(join(plain_path(folder), RUN)) else None
    if run is None:
        raise ValueError(f"{folder}: holds no {RUN}, so it is no run of ours")
    return run


def expect_shards(folder: str | os.PathLike) -> list[str]:
    """The names of the shards that the run in the folder is to have; raises ValueError where it does not say."""
    names = read_shards(folder)
    if names is None:
        raise ValueError(f"{folder}: holds no {RUN} that names its shards")
    return names


def wait_for_run(folder: str | os.PathLike, seconds: float = 900) -> None:
    """Returns once the run stands there that the first process begins."""
    deadline = time.monotonic() + seconds
    while not entry(join(plain_path(folder), RUN)):
        if time.monotonic() > deadline:
            raise ValueError(f"output {folder}: no {RUN} after {seconds:.0f} seconds; did the first process fail?")
        time.sleep(0.2)


def check_rules(folder: str | os.PathLike, earlier: Mapping[str, Any]) -> None:
    """Raises ValueError where the run that the folder holds was begun by other rules: no set mixes two."""
    if earlier.get("rules") != RULES:
        began = f"capsmith {earlier.get('versions', {}).get('capsmith', '0.1')}"
        raise ValueError(
            f"output {folder}: {began} began this run, by other rules; finish it with {began}, or --overwrite to "
            "start anew"
        )


def check_same(folder: str | os.PathLike, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError, naming each field that differs, where this is not the run that the folder holds."""
    if differing := differences(earlier, now):
        raise ValueError(
            "\n  ".join(
                [
                    f"output {folder}: holds a run of other settings; give another folder, or --overwrite "
                    "to start anew:",
                    *differing,
                ]
            )
        )


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each field in which two fingerprints differ, but in secrets: `run.json` has none."""
    earlier, now = masked_values(earlier), masked_values(now)
    if list(earlier["columns"]) != list(now["columns"]):  # then there is nothing to compare within them
        earlier, now = ({**run, "columns": list(run["columns"])} for run in (earlier, now))
    there, here = _flat(earlier), _flat(now)
    return [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} now"
        for name in sorted(there | here)
        if there.get(name) != here.get(name)
    ]


def write_run(folder: str | os.PathLike, run: Mapping[str, Any], shards: Sequence[str] = ()) -> None:
    """Write the run's fingerprint and the names of all shards that there are to be, whole or not at all."""
    write_file(
        join(plain_path(folder), RUN),
        json.dumps({"fingerprint": masked_values(run), "shards": list(shards)}, indent=1).encode(),
    )


def any_done(folder: str | os.PathLike) -> bool:
    """Whether the folder has a done-marker."""
    return any(one.path.endswith(MARKER) for one in listing(plain_path(folder)))


def clear_run(folder: str | os.PathLike) -> None:
    """Remove all that a run has written, by its `run.json` and its markers: shards, pictures, pages, `run.json` last."""
    folder, there = plain_path(folder), {os.path.basename(one.path): one for one in listing(plain_path(folder))}
    suffix = SUFFIXES.get((read_run(folder) or {}).get("format", ""), "")
    names = {*(read_shards(folder) or ()), *(name.removesuffix(MARKER) for name in there if name.endswith(MARKER))}
    own = {CARD, GALLERY, PICTURES, ALL_REJECTED, LIMITS, SELECTION, DRY_RUN}
    own |= {name + end for name in names for end in (suffix, MARKER, REJECTED)}
    for name in own | {name + UNFINISHED for name in own}:
        if name in there and not there[name].is_folder:
            remove(there[name].path)
    for name in (name + end for name in names for end in (".images", ".images" + UNFINISHED)):
        if name in there and there[name].is_folder:
            if is_remote(folder):
                for picture in files_below(there[name].path):
                    remove(picture.path)
            elif os.path.islink(there[name].path):  # what it leads to may be anybody's
                os.unlink(there[name].path)
            else:
                shutil.rmtree(there[name].path)  # which follows no links
    remove(join(folder, RUN))


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
