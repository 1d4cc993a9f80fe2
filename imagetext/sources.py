"""What a SPEC names -> shards of Samples."""

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imagetext.curated import KINDS, curated_pieces
from imagetext.folders import FolderRows, list_folder
from imagetext.rows import caption_columns
from imagetext.sample import Record, Sample
from imagetext.tables import ROWS_PER_SHARD, TABLE_SUFFIXES, split_table
from imagetext.tars import TarRows


@dataclass(frozen=True)
class Shard:
    """Samples that are read, captioned and written together; iterating reads them, each time anew."""

    name: str                   # the output's name derives from it; unique in a run
    path: str                   # where the samples come from
    stamp: Mapping[str, Any]    # size and mtime_ns of the input; {} for drawn pictures
    samples: Iterable[Sample] = field(repr=False, compare=False)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)


def read_samples(spec: str | Sequence[str], images: str | os.PathLike | None = None) -> list[Shard]:
    """The shards that one SPEC or several name; pictures are read only when a shard is iterated.

    A SPEC is tar shards (`shards/{00000..00009}.tar`, `*.tar`), a folder of pictures, a `.jsonl`, `.csv`, `.tsv` or
    `.parquet` table, a published caption set (`docci:FILE`, see `imagetext.curated`), or `scenes:...`. A tar is one shard;
    folders and tables are split into shards of 1,000 rows.

    images: the folder that the paths in tables and caption sets start from; unless given, that of the file.

    Raises ValueError with every problem of every SPEC. Iterating a shard raises ValueError, naming the file, where a
    file is cut or damaged as a whole, after the rows before that; a row that is bad is a Sample with `meta["error"]`.
    """
    problems, shards = [], []
    for one in [spec] if isinstance(spec, str) else spec:
        try:
            shards += _shards_of(one, None if images is None else os.fspath(images), problems)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    first_of = {}
    for shard in shards:
        other = first_of.setdefault(shard.name, shard)
        if other is not shard:
            problems.append(f"two inputs would both be written as {shard.name!r}: {other.path} and {shard.path}")
    if not shards and not problems:
        problems.append("no input given")
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    return shards


def read_records(spec: str | Sequence[str]) -> Iterator[Record]:
    """The records that a SPEC names, whichever format they were written in, in order.

    Raises ValueError as `read_samples` and its shards do.
    """
    return (_to_record(sample) for shard in read_samples(spec) for sample in shard)


def _to_record(sample: Sample) -> Record:
    members, meta = dict(sample.members), dict(sample.meta)
    error, syn_text = meta.pop("error", ""), {}
    try:
        syn_text = caption_columns(members.pop("syn.json", b"{}"))
    except ValueError as problem:
        error = error or str(problem)
    return Record(Sample(sample.key, sample.image, sample.captions, members, meta), syn_text, error)


# ---- specs -------------------------------------------------------------------------------------------------------


def _shards_of(spec: str, images: str | None, problems: list[str]) -> list[Shard]:
    if spec.startswith("scenes:"):
        from imagetext.scenes import scene_shards
        return scene_shards(spec)
    if spec.partition(":")[0] in KINDS:
        return [Shard(f"{os.path.splitext(os.path.basename(os.path.normpath(rows.path)))[0]}-{number:05d}", rows.path,
                      _stamp(rows.path), rows) for number, rows in enumerate(curated_pieces(spec, images))]
    shards = []
    for path in _paths(spec):
        try:
            shards += _shards_at(path, images)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return shards


def _paths(spec: str) -> list[str]:
    """The paths that a pattern names; a path that exists stands for itself, whatever its name."""
    if os.path.exists(spec):
        return [spec]
    paths = []
    for pattern in _expand_braces(spec):
        if os.path.exists(pattern) or not glob.has_magic(pattern):
            paths.append(pattern)
            continue
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise ValueError(f"{spec}: nothing matches {pattern}")
        paths += found
    return paths


def _expand_braces(pattern: str) -> list[str]:
    """`{00000..00009}` and `{a,b}` as a shell expands them, numbers padded as they are written."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if first > last:
            raise ValueError(f"{pattern}: {match[0]} counts downwards")
        choices = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        raise ValueError(f"{pattern}: {match[0]} is neither {{00000..00009}} nor {{a,b}}")
    return list(itertools.chain.from_iterable(
        _expand_braces(pattern[:match.start()] + choice + pattern[match.end():]) for choice in choices))


def _shards_at(path: str, images: str | None) -> list[Shard]:
    if os.path.isdir(path):
        return _folder_shards(os.path.normpath(path))
    suffix = os.path.splitext(path)[1].lower()
    if suffix != ".tar" and suffix not in TABLE_SUFFIXES:
        known = f"not a .tar, {', '.join(TABLE_SUFFIXES)} file or a folder of pictures"
        raise ValueError(f"{path}: {known if os.path.exists(path) else 'no such folder, and ' + known}")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file")
    stamp = _stamp(path)
    stem = os.path.splitext(os.path.basename(path))[0]
    if suffix == ".tar":
        return [Shard(stem, path, stamp, TarRows(path))]
    parts = split_table(path, images)
    if not parts:
        raise ValueError(f"{path}: no rows")
    return [Shard(f"{stem}-{number:05d}", path, stamp, rows) for number, rows in enumerate(parts)]


def _stamp(path: str) -> dict[str, int]:
    """Size in bytes and time of change of a file; of a folder's files, their sum and the latest."""
    files = [entry.stat() for entry in os.scandir(path) if entry.is_file()] if os.path.isdir(path) else [os.stat(path)]
    return {"size": sum(status.st_size for status in files), "mtime_ns": max(status.st_mtime_ns for status in files)}


def _folder_shards(folder: str) -> list[Shard]:
    rows = list_folder(folder)
    if not rows:
        others = sorted({suffix for name in os.listdir(folder)
                         if (suffix := os.path.splitext(name)[1].lower()) in (".tar", *TABLE_SUFFIXES)})
        hint = "".join(f"; for its {suffix} files give {os.path.join(folder, '*' + suffix)}" for suffix in others)
        raise ValueError(f"{folder}: no pictures in this folder{hint}")
    stem = os.path.basename(os.path.abspath(folder))
    parts = [FolderRows(folder, tuple(rows[first:first + ROWS_PER_SHARD])) for first in range(0, len(rows), ROWS_PER_SHARD)]
    return [Shard(f"{stem}-{number:05d}", folder, part.stamp(), part) for number, part in enumerate(parts)]
