"""The inputs of a run: whether an input has changed since its shard was done."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from generate.runs.in_place import is_text_table
from imagetext.hashes import file_hash, sample_hash
from imagetext.read_ahead import in_order
from imagetext.sample import Record, Shard
from imagetext.shards import MARKER
from imagetext.shown import Progress
from imagetext.stores import Entry

# Fields of an input's stamp that may change though its bytes stay the same.
VERSIONS = ("mtime_ns", "etag", "listing", "revision")


@dataclass
class Hashed:
    """Records that are hashed while they are read; `sha256` is set once they have been read to the end.

    The hash does not depend on where the records are stored.
    """

    samples: Iterable[Record]
    sha256: str = ""

    def __iter__(self) -> Iterator[Record]:
        self.sha256, digest = "", hashlib.sha256()
        for record in self.samples:
            meta = {name: value for name, value in record.meta.items() if name != "source"}
            fields = [
                record.key,
                record.captions,
                dict(record.columns),
                dict(record.scores),
                meta,
                bool(record.error),
                [*record.members],
            ]
            for part in (json.dumps(fields, default=str).encode(), record.image or b"", *record.members.values()):
                digest.update(len(part).to_bytes(8))
                digest.update(part)
            yield record
        self.sha256 = digest.hexdigest()


def hashed(shard: Shard) -> Shard:
    """Return the shard with its records as `Hashed`."""
    return replace(shard, samples=Hashed(shard.samples))


def input_of(shard: Shard) -> dict[str, Any]:
    """Return what the shard's marker records of its input: the path, and the stamp (size, time) where it is a file."""
    return {"path": shard.path, **shard.stamp}


def hash_of(shard: Shard) -> dict[str, str]:
    """Return what the marker of a `hashed` shard records of its input: hashes of records and of a sample of bytes."""
    if not isinstance(shard.samples, Hashed):
        return {}
    return {"input_sha256": shard.samples.sha256, "input_sample": sample_hash(shard.path)}


def shards_to_do(
    folder: str,
    shards: Sequence[Shard],
    markers: Mapping[str, Mapping[str, Any]],
    *,
    gone: Collection[str] = (),
    trust: bool = False,
    retry: bool = False,
) -> list[Shard]:
    """Return the shards without a done-marker; with `retry`, also those with failures whose reason may pass.

    gone: the shards that have lost pictures since; what is done of them stays, unchecked.
    The inputs of all other finished shards are checked. An input is unchanged if its stamp and a sample of its bytes
    are the same. If only its time differs, or it is a text table that has grown, it is read again and its hash
    decides.
    trust: do not read anything; then size and time decide, or the size alone.

    Raises: ValueError that names each shard whose input has changed since it was done.
    """
    changed, uncertain, sampled = [], [], []
    for shard in shards:
        if shard.name not in markers or shard.name in gone:
            continue
        earlier_input, input = markers[shard.name]["input"], input_of(shard)
        if _identity(earlier_input) == _identity(input):
            if not trust and markers[shard.name].get("input_sample"):
                sampled.append(shard)
        elif shard.stamp and (lasting(earlier_input) == lasting(input) or _has_grown(shard, earlier_input)):
            uncertain.append(shard)
        else:
            changed.append(shard)
    samples = in_order((True, partial(sample_hash, shard.path)) for shard in sampled)
    changed += [
        shard for shard, sample in zip(sampled, samples) if sample not in ("", markers[shard.name]["input_sample"])
    ]
    if not trust:
        progress = Progress(
            uncertain, desc="reading inputs whose time has changed", unit="shard", disable=not uncertain
        )
        changed += [shard for shard in progress if _hash_records(shard) != markers[shard.name].get("input_sha256")]
    if changed:
        lines = [f"output {folder}: these inputs have changed; give another folder, or --overwrite to start anew:"]
        lines += [_difference(shard, markers[shard.name]) for shard in changed]
        raise ValueError("\n  ".join(lines))
    return [shard for shard in shards if shard.name not in markers or retry and markers[shard.name].get("passing")]


def _difference(shard: Shard, marker: Mapping[str, Any]) -> str:
    if _identity(marker["input"]) == _identity(input_of(shard)):
        return f"{shard.path}: its bytes have changed since {marker['file']} was written, with the same size and time"
    difference = f"{shard.path}: {marker['input']} when {marker['file']} was written, {input_of(shard)} now"
    if is_text_table(shard):
        difference += "; add new rows at the end of a table, or in another file beside it"
    return difference


def _hash_records(shard: Shard) -> str:
    """Read the whole shard and return the hash of its records; "" where it cannot be read."""
    samples = Hashed(shard.samples)
    try:
        for _ in samples:
            pass
    except ValueError:
        pass
    return samples.sha256


def _identity(input: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stamp of an input without its path, which may change; drawn pictures have only a path."""
    stamp = {name: value for name, value in input.items() if name != "path"}
    return stamp or dict(input)


def lasting(input: Mapping[str, Any]) -> dict[str, Any]:
    """Return those fields of an input, or of its stamp, that do not change when it is copied elsewhere."""
    return {name: value for name, value in input.items() if name not in ("path", *VERSIONS)}


def _has_grown(shard: Shard, earlier_input: Mapping[str, Any]) -> bool:
    """Return whether the shard is of a text table that has only grown, so that its earlier rows may be the same."""
    before, now = lasting(earlier_input), lasting(input_of(shard))
    return is_text_table(shard) and now.pop("size", 0) > before.pop("size", 0) and before == now


def shards_with_other_bytes(
    files: Mapping[str, Entry], markers: Mapping[str, Mapping[str, Any]], check_all: bool = False
) -> list[str]:
    """Return the names of the shards whose bytes are not those that their markers give the hash of.

    Only shards whose file is newer than its marker are hashed, or all of them with `check_all`.
    files: the entries of the run's folder by their names.
    """
    names = []
    for name, marker in markers.items():
        file = files[marker["file"]]
        is_newer = file.stamp.get("mtime_ns", 0) > files[name + MARKER].stamp.get("mtime_ns", 0)
        if (check_all or is_newer) and marker.get("sha256") and file_hash(file.path)[0] != marker["sha256"]:
            names.append(name)
    return names
