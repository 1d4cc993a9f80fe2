"""What a run is: `run.json` with the fingerprint of all that decides its bytes, and which shards are still to do."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imagetext.shards import read_marker
from imagetext.sources import Shard

RUN = "run.json"


def fingerprint(*, captioner: str, weights_sha256: str, sampling: Mapping[str, Any], columns: Sequence[str],
                text_from_synthetic: bool, similarity: bool, dtype: str, batch_size: int, format: str) -> dict[str, Any]:
    """All that, with a shard's samples, decides the shard's bytes; not devices, ranks or workers."""
    versions = {name: ".".join(version(name).split(".")[:2]) for name in ("torch", "open_clip_torch", "capsmith")}
    return {"captioner": captioner, "weights_sha256": weights_sha256, "sampling": dict(sampling), "gate": None,
            "columns": list(columns), "text_from_synthetic": text_from_synthetic, "similarity": similarity, "dtype": dtype,
            "batch_size": batch_size, "format": format, "versions": versions}


def read_run(folder: Path) -> dict[str, Any] | None:
    """The fingerprint of the run in the folder, or None where there is none yet.

    Raises: ValueError where the folder holds something that is not a run of ours.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {folder}: is no folder")
    try:
        return dict(json.loads((folder / RUN).read_text(encoding="utf-8"))["fingerprint"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"output {folder}: its {RUN} is not one of ours: {error}") from error
    others = sorted(set(os.listdir(folder)) - {RUN + ".tmp"}) if folder.exists() else []
    if others:
        raise ValueError(f"output {folder}: is not empty ({others[0]!r}) and holds no {RUN}, so it is no run of ours")
    return None


def check_same(folder: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError, naming each field that differs, where this is not the run that the folder holds."""
    there, here = _flat(earlier), _flat(now)
    differing = [f"{name}: {there.get(name)!r} there, {here.get(name)!r} now" for name in sorted(there | here)
                 if there.get(name) != here.get(name)]
    if differing:
        raise ValueError("\n  ".join([f"output {folder}: holds a run of other settings; give another folder, or --overwrite "
                                      "to start anew:", *differing]))


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Write the run's fingerprint, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / (RUN + ".tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump({"fingerprint": run}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / RUN)


def clear_run(folder: Path) -> None:
    """Remove all that a run has written: its shards, their markers and pictures, `run.json` last; other files stay."""
    for path in folder.iterdir():
        if path.name.endswith((".done.json", ".tar", ".jsonl", ".parquet", ".tmp")):
            path.unlink()
        elif path.name.endswith(".images") and path.is_dir():
            shutil.rmtree(path)
    (folder / RUN).unlink()


def shards_to_do(folder: Path, shards: Sequence[Shard]) -> list[Shard]:
    """The shards without a valid done-marker; ValueError names each shard whose input is not what it was when done."""
    to_do, changed = [], []
    for shard in shards:
        marker = read_marker(folder, shard.name)
        if marker is None:
            to_do.append(shard)
        elif _identity(marker["input"]) != _identity(input_of(shard)):
            changed.append(f"{shard.path}: {marker['input']} when {marker['file']} was written, {input_of(shard)} now")
    if changed:
        raise ValueError("\n  ".join([f"output {folder}: these inputs have changed; give another folder, or --overwrite to "
                                      "start anew:", *changed]))
    return to_do


def input_of(shard: Shard) -> dict[str, Any]:
    """What a shard's marker says of its input: path, and size and time of change where it is a file."""
    return {"path": shard.path, **shard.stamp}


def _identity(input: Mapping[str, Any]) -> dict[str, Any]:
    """An input that was moved, or is named by another path, is the same; drawn pictures are what their spec says."""
    stamp = {name: value for name, value in input.items() if name != "path"}
    return stamp or dict(input)


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{inner}" if inner else name: value for name, group in fields.items()
            for inner, value in (group.items() if isinstance(group, Mapping) else [("", group)])}
