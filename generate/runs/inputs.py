"""What a run reads: which picture is in which of its shards, and whether an input is still what it was when its shard was done."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

from imagetext.hashes import file_hash, sample_hash
from imagetext.outputs import write_file
from imagetext.readers.folders import FolderRows
from imagetext.readers.row_records import with_unique_keys
from imagetext.readers.table_pieces import ROWS_PER_SHARD, TableRows
from imagetext.sample import Record, Shard
from imagetext.shards import MARKER
from imagetext.shown import Progress, say
from imagetext.stores import join, listing, read_bytes

PICTURES = "pictures.json"
# Of an input's stamp: another one, and the bytes may still be the same.
VERSIONS = ("mtime_ns", "etag", "listing", "revision")


# ---- hashes of what is read -----------------------------------------------------------------------------------------------


@dataclass
class Hashed:
    """Records as they are read, and a hash of them all once they have been read to the end, wherever they lie."""

    samples: Iterable[Record]
    sha256: str = ""

    def __iter__(self) -> Iterator[Record]:
        self.sha256, digest = "", hashlib.sha256()
        for record in self.samples:
            meta = {name: value for name, value in record.meta.items() if name != "source"}
            said = [
                record.key,
                record.captions,
                dict(record.columns),
                dict(record.scores),
                meta,
                bool(record.error),
                [*record.members],
            ]
            for part in (json.dumps(said, default=str).encode(), record.image or b"", *record.members.values()):
                digest.update(len(part).to_bytes(8))
                digest.update(part)
            yield record
        self.sha256 = digest.hexdigest()


def hashed(shard: Shard) -> Shard:
    """The shard, hashed while it is read."""
    return replace(shard, samples=Hashed(shard.samples))


def input_of(shard: Shard) -> dict[str, Any]:
    """What a shard's marker says of its input: path, and size and time of change where it is a file."""
    return {"path": shard.path, **shard.stamp}


def hash_of(shard: Shard) -> dict[str, str]:
    """What a marker says of what was read, of a shard that was hashed: its hash, and that of a sample of its file."""
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
    """The shards without a done-marker, and to `retry` also those in which records failed for a passing reason.

    gone: the shards that have lost pictures since; what is done of them stays. Of another one that is done the input is what it
    was where size and time are, and a sample of the bytes; where only its time is another, or it is a table that has grown, the
    hashes of what is read decide.
    trust: then size and time decide, or the size alone.

    Raises: ValueError, naming each shard whose input has changed since it was done.
    """
    changed, unsure = [], []
    for shard in shards:
        if shard.name not in markers or shard.name in gone:
            continue
        then, now = markers[shard.name]["input"], input_of(shard)
        if _identity(then) == _identity(now):
            sample = "" if trust else markers[shard.name].get("input_sample")
            if sample and sample_hash(shard.path) not in ("", sample):
                changed.append(shard)
        else:
            (unsure if shard.stamp and (lasting(then) == lasting(now) or _grown(shard, then)) else changed).append(
                shard
            )
    if not trust:
        compared = Progress(unsure, desc="comparing inputs of another time", unit="shard", disable=not unsure)
        changed += [shard for shard in compared if _read(shard) != markers[shard.name].get("input_sha256")]
    if changed:
        told = (_difference(shard, markers[shard.name]) for shard in changed)
        raise ValueError(
            "\n  ".join(
                [
                    f"output {folder}: these inputs have changed; give another folder, or --overwrite to start anew:",
                    *told,
                ]
            )
        )
    return [shard for shard in shards if shard.name not in markers or retry and markers[shard.name].get("passing")]


def _difference(shard: Shard, marker: Mapping[str, Any]) -> str:
    if _identity(marker["input"]) == _identity(input_of(shard)):
        return f"{shard.path}: other bytes of the same size and time than when {marker['file']} was written"
    told = f"{shard.path}: {marker['input']} when {marker['file']} was written, {input_of(shard)} now"
    return told + (
        "; new rows go to the end of a table, or into another file beside it" if _is_text_table(shard) else ""
    )


def _read(shard: Shard) -> str:
    """The hash of all that the shard holds; none where it cannot be read."""
    samples = Hashed(shard.samples)
    try:
        for _ in samples:
            pass
    except ValueError:
        pass
    return samples.sha256


def _identity(input: Mapping[str, Any]) -> dict[str, Any]:
    """An input that was moved, or is named by another path, is the same; drawn pictures are what their spec says."""
    stamp = {name: value for name, value in input.items() if name != "path"}
    return stamp or dict(input)


def lasting(input: Mapping[str, Any]) -> dict[str, Any]:
    """What of an input, or of its stamp, another place or time does not change."""
    return {name: value for name, value in input.items() if name not in ("path", *VERSIONS)}


def _grown(shard: Shard, then: Mapping[str, Any]) -> bool:
    """Whether the shard is of a table of text that is larger now and else read as it was: the rows it had may be the same."""
    before, now = lasting(then), lasting(input_of(shard))
    return _is_text_table(shard) and now.pop("size", 0) > before.pop("size", 0) and before == now


def _is_text_table(shard: Shard) -> bool:
    is_text = isinstance(shard.samples, TableRows) and shard.samples.layout is not None
    return is_text or isinstance(shard.samples, Pieces)


def disbelieved(
    folder: str | os.PathLike, markers: Mapping[str, Mapping[str, Any]], everything: bool = False
) -> list[str]:
    """The shards that are done by their size and not by their hash: of those whose file is newer than its marker, or of all."""
    entries = {os.path.basename(entry.path): entry for entry in listing(os.fspath(folder))}
    wrong = []
    for name, marker in markers.items():
        file = entries[marker["file"]]
        newer = file.stamp.get("mtime_ns", 0) > entries[name + MARKER].stamp.get("mtime_ns", 0)
        if (everything or newer) and marker.get("sha256") and file_hash(file.path)[0] != marker["sha256"]:
            wrong.append(name)
    return wrong


# ---- which picture is in which shard --------------------------------------------------------------------------------------


def read_pictures(folder: str | os.PathLike) -> dict[str, list[str]]:
    """The pictures that are in each shard of a run, of those shards that are made of folders."""
    try:
        return json.loads(read_bytes(join(os.fspath(folder), PICTURES)))
    except FileNotFoundError:
        return {}


def write_pictures(folder: str | os.PathLike, pictures: Mapping[str, Sequence[str]]) -> None:
    """Keep with the run which pictures are in which shard."""
    if pictures and pictures != read_pictures(folder):
        write_file(join(os.fspath(folder), PICTURES), json.dumps(pictures, indent=0))


def pictures_in(shards: Sequence[Shard]) -> dict[str, list[str]]:
    """The pictures that are in each of the shards that are made of folders."""
    return {shard.name: _names(shard.samples) for shard in shards if isinstance(shard.samples, FolderRows)}


def as_kept(kept: Mapping[str, Sequence[str]], shards: Sequence[Shard]) -> tuple[list[Shard], dict[str, list[str]]]:
    """The shards, those of folders with the pictures that they have in the run, new pictures in new shards; and what is gone.

    kept: which pictures are in which shard. What is gone is told by shard; one of which all is gone is left out.
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
        rows = {name: row for _, samples in pieces for name, row in zip(_names(samples), samples.rows, strict=True)}
        stem = first.name.rpartition("-")[0]
        earlier = {name: pictures for name, pictures in kept.items() if name.rpartition("-")[0] == stem}
        parts = {
            name: [rows.pop(picture) for picture in pictures if picture in rows] for name, pictures in earlier.items()
        }
        for name, pictures in earlier.items():
            if len(parts[name]) < len(pictures):
                present = set(_names(FolderRows(folder, tuple(parts[name]))))
                gone[name] = [picture for picture in pictures if picture not in present]
        number = max((int(name.rpartition("-")[2]) + 1 for name in earlier), default=0)
        new = list(rows.values())
        for start in range(0, len(new), ROWS_PER_SHARD):
            parts[f"{stem}-{number:05d}"] = new[start : start + ROWS_PER_SHARD]
            number += 1
        for name, of_part in parts.items():
            samples = replace(first_rows, rows=tuple(of_part))
            if of_part:
                result.append(replace(first, name=name, samples=samples, stamp=samples.stamp()))
    return result, gone


@dataclass(frozen=True)
class Pieces:
    """Records that stand in several pieces of a table, one after the other."""

    pieces: Sequence[TableRows]

    def __iter__(self) -> Iterator[Record]:
        return with_unique_keys(chain.from_iterable(self.pieces), self.pieces[0].path)

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


def with_new_rows(shards: Sequence[Shard], markers: Mapping[str, Mapping[str, Any]]) -> list[Shard]:
    """The shards, those of tables of text with the records that they had when they were done: new rows are in new shards."""
    tables = groupby(shards, lambda shard: shard.path if _is_text_table(shard) else None)
    return [
        shard for path, pieces in tables for shard in (pieces if path is None else _as_done(list(pieces), markers))
    ]


def _as_done(pieces: Sequence[Shard], markers: Mapping[str, Mapping[str, Any]]) -> list[Shard]:
    """The shards of a table in the sizes that they have by their markers."""
    tables = [piece.samples for piece in pieces if isinstance(piece.samples, TableRows)]
    stem, left = pieces[0].name.rpartition("-")[0], sum(map(len, tables))
    sizes: dict[str, int] = {}
    while left:
        name = f"{stem}-{len(sizes):05d}"
        sizes[name] = min(left, _rows_read(markers.get(name, {})) or ROWS_PER_SHARD)
        left -= sizes[name]
    if [*sizes.values()] == list(map(len, tables)):
        return [*pieces]
    rest, shards = [replace(table, skipped=0) for table in tables], []
    for name, size in sizes.items():
        parts: list[TableRows] = []
        while size:
            part = replace(rest[0], count=min(size, rest[0].count))
            rest[0] = replace(rest[0], skipped=(part.skipped or 0) + part.count, count=rest[0].count - part.count)
            size -= part.count
            parts.append(part)
            if not rest[0].count:
                del rest[0]
        shards.append(replace(pieces[0], name=name, samples=Pieces(parts)))
    return shards


def _rows_read(marker: Mapping[str, Any]) -> int:
    """How many rows the shard had of its input: of a selection more than it has."""
    return marker.get("read", marker.get("rows", 0))


def _names(rows: FolderRows) -> list[str]:
    """The pictures' paths in their folder."""
    return [os.path.relpath(row.path, rows.folder).replace(os.sep, "/") for row in rows.rows]


# ---- failures that may pass -----------------------------------------------------------------------------------------------

PASSING = ("missing picture file", "the server ")  # in the reasons of records that may be whole when tried again


@dataclass
class Failures:
    """How many records of a shard failed, how many of these had failed before, and how many may be whole when tried again."""

    failed: int = 0
    failed_before: int = 0
    passing: int = 0

    def update(self, error: str, reasons: Iterable[str] = (), before: bool = False) -> None:
        """Counts a record with its reason, if it has one.

        reasons: why columns of it have nothing; before: it came as a failure, and trying changes nothing.
        """
        self.failed += bool(error)
        self.failed_before += before
        told = [*reasons, *[error] * (not before)]
        self.passing += any(reason in one for one in told for reason in PASSING)

    def in_marker(self, before: Mapping[str, Any] | None) -> dict[str, int]:
        """What the shard's marker says of them. Raises: ValueError where more failed than by the marker `before`."""
        if before and self.failed > before["failed"]:
            raise ValueError(f"{self.failed:,} records failed, {before['failed']:,} in the earlier shard, which stays")
        return {"passing": self.passing, "failed_before": self.failed_before}


def share_failed(markers: Sequence[Mapping[str, Any]]) -> float:
    """The share of failed records by the shards' markers, without those that came as failures, whose number is printed."""
    before = sum(marker.get("failed_before", 0) for marker in markers)
    if before:
        say(f"{before:,} rows of the input had failed before, in the run that wrote it, and are carried as they are")
    rows, failed = (sum(marker[name] for marker in markers) - before for name in ("rows", "failed"))
    return failed / max(rows, 1)
