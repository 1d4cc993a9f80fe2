"""The inputs of a run: which picture is in which shard, and whether an input has changed since its shard was done."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from typing import Any

from imagetext.hashes import file_hash, sample_hash
from imagetext.outputs import write_file
from imagetext.read_ahead import in_order
from imagetext.readers.folders import FolderRows
from imagetext.readers.row_records import with_unique_keys
from imagetext.readers.table_pieces import ROWS_PER_SHARD, TableRows
from imagetext.sample import Record, Shard
from imagetext.shards import MARKER
from imagetext.shown import Progress, say
from imagetext.stores import Entry, join, read_bytes

PICTURES = "pictures.json"
# Fields of an input's stamp that may change though its bytes stay the same.
VERSIONS = ("mtime_ns", "etag", "listing", "revision")


# ---- hashes of what is read ---------------------------------------------------------------------------------------


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
        return f"{shard.path}: has other bytes than when {marker['file']} was written, with the same size and time"
    difference = f"{shard.path}: {marker['input']} when {marker['file']} was written, {input_of(shard)} now"
    if _is_text_table(shard):
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
    return _is_text_table(shard) and now.pop("size", 0) > before.pop("size", 0) and before == now


def _is_text_table(shard: Shard) -> bool:
    is_text = isinstance(shard.samples, TableRows) and shard.samples.layout is not None
    return is_text or isinstance(shard.samples, Pieces)


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


# ---- which picture is in which shard ------------------------------------------------------------------------------


def read_pictures(folder: str | os.PathLike) -> dict[str, list[str]]:
    """Return the pictures of each shard of a run that is made of a folder of pictures; {} where there are none."""
    try:
        return json.loads(read_bytes(join(os.fspath(folder), PICTURES)))
    except FileNotFoundError:
        return {}


def write_pictures(folder: str | os.PathLike, pictures: Mapping[str, Sequence[str]]) -> None:
    """Write which pictures are in which shard, for `read_pictures`."""
    if pictures and pictures != read_pictures(folder):
        write_file(join(os.fspath(folder), PICTURES), json.dumps(pictures, indent=0))


def pictures_in(shards: Sequence[Shard]) -> dict[str, list[str]]:
    """Return the pictures of each shard that is made of a folder of pictures."""
    return {shard.name: _names(shard.samples) for shard in shards if isinstance(shard.samples, FolderRows)}


def keep_pictures_in_place(
    earlier: Mapping[str, Sequence[str]], shards: Sequence[Shard]
) -> tuple[list[Shard], dict[str, list[str]]]:
    """Return the shards, with pictures of folders where they were before, and the pictures that are gone.

    earlier: the pictures of each shard, as the run has them. New pictures go into new shards.
    The pictures that are gone are given by shard; a shard without any pictures left is left out.
    """
    result: list[Shard] = []
    gone: dict[str, list[str]] = {}
    folders: dict[str, list[tuple[Shard, FolderRows]]] = {}
    for shard in shards:
        if isinstance(shard.samples, FolderRows):
            folders.setdefault(shard.samples.folder, []).append((shard, shard.samples))
        else:
            result.append(shard)
    for folder, pieces in folders.items():
        first, first_rows = pieces[0]
        unplaced = {
            name: row for _, samples in pieces for name, row in zip(_names(samples), samples.rows, strict=True)
        }
        stem = first.name.rpartition("-")[0]
        earlier_shards = {name: pictures for name, pictures in earlier.items() if name.rpartition("-")[0] == stem}
        rows_of = {
            name: [unplaced.pop(picture) for picture in pictures if picture in unplaced]
            for name, pictures in earlier_shards.items()
        }
        for name, pictures in earlier_shards.items():
            if len(rows_of[name]) < len(pictures):
                present = set(_names(FolderRows(folder, tuple(rows_of[name]))))
                gone[name] = [picture for picture in pictures if picture not in present]
        number = max((int(name.rpartition("-")[2]) + 1 for name in earlier_shards), default=0)
        new_rows = list(unplaced.values())
        for start in range(0, len(new_rows), ROWS_PER_SHARD):
            rows_of[f"{stem}-{number:05d}"] = new_rows[start : start + ROWS_PER_SHARD]
            number += 1
        for name, rows in rows_of.items():
            samples = replace(first_rows, rows=tuple(rows))
            if rows:
                result.append(replace(first, name=name, samples=samples, stamp=samples.stamp()))
    return result, gone


@dataclass(frozen=True)
class Pieces:
    """The records of several pieces of a table, one after the other."""

    pieces: Sequence[TableRows]

    def __iter__(self) -> Iterator[Record]:
        return with_unique_keys(chain.from_iterable(self.pieces), self.pieces[0].path)

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


def keep_rows_in_place(shards: Sequence[Shard], markers: Mapping[str, Mapping[str, Any]]) -> list[Shard]:
    """Return the shards; finished shards of text tables keep their rows, and new rows go into new shards."""
    result: list[Shard] = []
    for table_path, group in groupby(shards, lambda shard: shard.path if _is_text_table(shard) else None):
        pieces = list(group)
        result += pieces if table_path is None else _with_earlier_sizes(pieces, markers)
    return result


def _with_earlier_sizes(pieces: Sequence[Shard], markers: Mapping[str, Mapping[str, Any]]) -> list[Shard]:
    """Return the shards of a table, cut so that finished shards have as many rows as their markers say."""
    tables = [piece.samples for piece in pieces if isinstance(piece.samples, TableRows)]
    stem, rows_left = pieces[0].name.rpartition("-")[0], sum(map(len, tables))
    sizes: dict[str, int] = {}
    while rows_left:
        name = f"{stem}-{len(sizes):05d}"
        sizes[name] = min(rows_left, _rows_read(markers.get(name, {})) or ROWS_PER_SHARD)
        rows_left -= sizes[name]
    if [*sizes.values()] == list(map(len, tables)):
        return [*pieces]
    uncut, shards = [replace(table, skipped=0) for table in tables], []
    for name, size in sizes.items():
        parts: list[TableRows] = []
        while size:
            table = uncut[0]
            part = replace(table, count=min(size, table.count))
            uncut[0] = replace(table, skipped=(part.skipped or 0) + part.count, count=table.count - part.count)
            size -= part.count
            parts.append(part)
            if not uncut[0].count:
                del uncut[0]
        shards.append(replace(pieces[0], name=name, samples=Pieces(parts)))
    return shards


def _rows_read(marker: Mapping[str, Any]) -> int:
    """Return how many rows of its input the shard was made of; a shard of a selection has fewer."""
    return marker.get("read", marker.get("rows", 0))


def _names(rows: FolderRows) -> list[str]:
    """Return the paths of the pictures within their folder."""
    return [os.path.relpath(row.path, rows.folder).replace(os.sep, "/") for row in rows.rows]


# ---- failures that may pass ---------------------------------------------------------------------------------------

PASSING = ("missing picture file", "the server ")  # parts of reasons that may be gone when the record is tried again


@dataclass
class Failures:
    """Counts the failed records of a shard.

    failed_before: those that had failed already in the input. passing: those whose reason may pass.
    """

    failed: int = 0
    failed_before: int = 0
    passing: int = 0

    def update(self, error: str, reasons: Iterable[str] = (), before: bool = False) -> None:
        """Count a record.

        error: why the record failed, "" where it did not. reasons: why single columns have nothing.
        before: whether it had failed already in the input; then another try would change nothing.
        """
        self.failed += bool(error)
        self.failed_before += before
        new_reasons = [*reasons] if before else [*reasons, error]
        self.passing += any(passing in reason for reason in new_reasons for passing in PASSING)

    def in_marker(self, earlier: Mapping[str, Any] | None) -> dict[str, int]:
        """Return what the shard's marker records of the failures.

        Raises: ValueError where more records failed than the shard's `earlier` marker says.
        """
        if earlier and self.failed > earlier["failed"]:
            raise ValueError(
                f"{self.failed:,} records failed, {earlier['failed']:,} in the earlier shard, which stays"
            )
        return {"passing": self.passing, "failed_before": self.failed_before}


def share_failed(markers: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of failed records by the shards' markers.

    Records that had failed already in the input are left out; their number is printed.
    """
    failed_before = sum(marker.get("failed_before", 0) for marker in markers)
    if failed_before:
        say(
            f"{failed_before:,} rows of the input had failed before, in the run that wrote it, and are carried over "
            "as they are"
        )
    rows, failed = (sum(marker[name] for marker in markers) - failed_before for name in ("rows", "failed"))
    return failed / max(rows, 1)
