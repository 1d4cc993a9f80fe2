"""From a SPEC to shards of Records."""

import itertools
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from glob import has_magic
from typing import Any

from imagetext import limits
from imagetext.picture_files import all_told, named_folders
from imagetext.readers.compressed_tables import CompressedRows
from imagetext.readers.curated import KINDS, curated_pieces, kinds_like
from imagetext.readers.folders import FolderRows, list_folder
from imagetext.readers.hub import HubRows, hub_pieces
from imagetext.readers.labels import Labels
from imagetext.readers.published import KINDS as PUBLISHED
from imagetext.readers.published import PublishedRows, published_rows
from imagetext.readers.row_records import json_object
from imagetext.readers.suffixes import COMPRESSIONS, TABLE_SUFFIXES, TAR_SUFFIXES, split_suffix
from imagetext.readers.table_columns import Need
from imagetext.readers.table_flags import Columns
from imagetext.readers.table_pieces import ROWS_PER_SHARD, TableRows
from imagetext.readers.tables import split_table
from imagetext.readers.tars import TarRows
from imagetext.readers.text_layout import encoding_of
from imagetext.sample import Record, Shard
from imagetext.scenes.draw import scene_shards
from imagetext.shards import MARKER, RUN, read_marker, read_markers, read_shards
from imagetext.stores import (
    Entry,
    StoreError,
    entries,
    entry,
    is_remote,
    join,
    listing,
    matches,
    open_file,
    plain_path,
    read_bytes,
)


def read_samples(
    spec: str | Sequence[str],
    images: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    *,
    distinct: bool = True,
    labels: Labels | None = None,
    columns: Columns = Columns(),
    needs: Collection[Need] = ("either",),
    check: bool = True,
) -> list[Shard]:
    """The shards that one SPEC or several name; pictures are read only when a shard is iterated.

    A SPEC is tar shards (`shards/{00000..00009}.tar`, `*.tar`, `a.tar::b.tar`, packed ones too), a folder of pictures, a folder
    that a run of ours wrote, which is its shards, a `.jsonl`, `.csv`, `.tsv` or `.parquet` table or a `.json` list of rows, an
    `info.json` that lists such files, a published caption set (`docci:FILE`, see
    `imagetext.readers.curated`), captions that others have published (`recap:FILE`, see `imagetext.readers.published`), a data set of `datasets` (`datasets:ORG/NAME`, see `imagetext.readers.hub`), or `scenes:...`. Files may be
    in a store: `s3://`, `gs://`, `hf://`. A tar is one shard, and so is a compressed table (`.jsonl.gz`, `.csv.zst`);
    folders and other tables are split into shards of 1,000 rows.

    images: the folders in which the pictures of tables and caption sets lie, and from which paths start; unless given, that of
    the file. Where a path, or a link in a folder, leads elsewhere, that is a problem; see `imagetext.picture_files`.
    check: whether such a path in a table is a problem; else its record has no picture.
    distinct: two shards of one name are an error, for a run writes them under it.
    columns: where tables have pictures, captions and keys, and whether rows of one picture are one record.
    needs: what tables must have, "pictures", "captions" or "either".
    labels: where the records' classes stand; the first shard of each SPEC is looked into, and what it has instead is told.

    Raises ValueError with every problem of every SPEC, and StoreError where a store fails. Iterating a shard raises ValueError, naming the file, where a
    file is cut or damaged as a whole, after the rows before that, and StoreError where a store still fails after several
    attempts; a row that is bad is a Record with an `error`.
    """
    problems, shards = [], []
    split = partial(split_table, images=named_folders(images), columns=columns, needs=needs, check=check)
    for one_spec in [spec] if isinstance(spec, str) else spec:
        with _noted(problems):
            shards_of_spec = _shards_of(one_spec, split, problems)
            shards += _labelled(shards_of_spec, labels) if labels else shards_of_spec
    first_of = {}
    for shard in shards:
        other = first_of.setdefault(shard.name, shard)
        if distinct and other is not shard:
            problems.append(f"two inputs would both be written as {shard.name!r}: {other.path} and {shard.path}")
    if not shards and not problems:
        problems.append(
            f"{', '.join([spec] if isinstance(spec, str) else spec)}: no rows" if spec else "no input given"
        )
    if problems:
        raise all_told(problems)
    return shards


def read_records(spec: str | Sequence[str], images: Sequence[str] = (), *, check: bool = True) -> Iterator[Record]:
    """The records that a SPEC names, whichever format they were written in, in order; images, check: as `read_samples` has them.

    Raises ValueError as `read_samples` and its shards do.
    """
    return itertools.chain.from_iterable(read_samples(spec, images, distinct=False, check=check))


SplitTable = partial[list[TableRows | CompressedRows]]  # `split_table` with all but the path


# ---- specs -------------------------------------------------------------------------------------------------------


def _shards_of(spec: str, split: SplitTable, problems: list[str | Exception]) -> list[Shard]:
    kind, _, rest = spec.partition(":")
    if kind == "scenes":
        return scene_shards(spec)
    if kind == "datasets":
        return [
            Shard(f"{rows.stem}-{rows.part:05d}", spec, rows.stamp, rows)
            for rows in hub_pieces(spec, split.keywords["columns"], split.keywords["images"])
        ]
    if kind in PUBLISHED:
        place, _, fields = rest.partition("#")
        pieces = published_rows(kind, named_files(plain_path(place)), fields)
        return [
            Shard(split_suffix(os.path.normpath(piece.path))[0], piece.path, _stamp_of(piece), piece)
            for piece in pieces
        ]
    if kind in KINDS:
        return [
            Shard(f"{split_suffix(os.path.normpath(rows.path))[0]}-{number:05d}", rows.path, _stamp(rows.path), rows)
            for number, rows in enumerate(curated_pieces(f"{kind}:{plain_path(rest)}", split.keywords["images"]))
        ]
    shards = []
    for path, there in named_files(plain_path(spec)).items():
        with _noted(problems):
            shards += _shards_at(path, there, split)
    return shards


@contextmanager
def _noted(problems: list[str | Exception]) -> Iterator[None]:
    """Notes what is wrong with an input; a store that fails ends the search, for it may do later."""
    try:
        yield
    except ValueError as error:
        problems.append(error)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        problems.append(error)


def named_files(spec: str) -> dict[str, Entry | None]:
    """The files that patterns with `::` between them name, in order; a path that exists stands for itself.

    A folder that a run of ours wrote names its shards. Raises ValueError where a pattern names nothing, or a shard is not whole.
    """
    if there := entry(spec):
        return _of_run({spec: there})
    if "::" in spec:
        parts = [named_files(plain_path(part)) for part in spec.split("::") if part]
        return {path: there for part in parts for path, there in part.items()}
    patterns = _expand_braces(spec)
    named = entries(patterns)
    files = {}
    for pattern in patterns:
        if named[pattern] or not has_magic(pattern):
            files[pattern] = named[pattern]
            continue
        matching = matches(pattern)
        if not matching:
            raise ValueError(f"{spec}: nothing matches {pattern}")
        files |= matching
    return _of_run(files)


def _of_run(named: dict[str, Entry | None]) -> dict[str, Entry | None]:
    """The same files, each folder that a run of ours wrote replaced by its shards; ValueError where it lacks some of them."""
    files = {}
    for path, there in named.items():
        wanted = _shards_of_run(path) if there and there.is_folder else []
        whole = read_markers(path) if wanted else {}
        if missing := [name for name in wanted if name not in whole]:
            raise ValueError(
                f"{path}: {len(missing):,} of its shards are not there ({', '.join(missing[:10])}); finish it with the "
                "command that began it, or name the files that are there"
            )
        files |= entries(join(path, whole[name]["file"]) for name in wanted) if wanted else {path: there}
    return files


def _shards_of_run(folder: str) -> list[str]:
    """The names of the shards that have markers in a folder, and of those that it is to have by its `run.json`; none without markers."""
    names = [os.path.basename(file.path) for file in listing(folder)] if is_remote(folder) else os.listdir(folder)
    done = {name.removesuffix(MARKER) for name in names if name.endswith(MARKER)}
    told = [name for name in read_shards(folder) or () if isinstance(name, str)] if done and RUN in names else []
    return sorted(done.union(told))


def _labelled(shards: Sequence[Shard], labels: Labels) -> list[Shard]:
    """The shards of one SPEC whose records have labels; ValueError where these cannot be told."""
    if labels.names is None and shards and isinstance(shards[0].samples, HubRows | TableRows):
        labels = replace(labels, names=shards[0].samples.class_names(labels.place))
    shards = [replace(shard, labels=labels) for shard in shards]
    for shard in shards[:1]:
        labels.check(shard)
    return shards


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
    return list(
        itertools.chain.from_iterable(
            _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :]) for choice in choices
        )
    )


def _shards_at(path: str, there: Entry | None, split: SplitTable) -> list[Shard]:
    if there and there.is_folder:
        return _folder_shards(
            os.path.normpath(path) if "://" not in path else path.rstrip("/"), split.keywords["images"]
        )
    stem, suffix = split_suffix(path)
    if suffix not in (*TAR_SUFFIXES, ".json", *TABLE_SUFFIXES):
        known = f"not a {', '.join((*TAR_SUFFIXES, *TABLE_SUFFIXES))} file, an info.json or a folder of pictures"
        raise ValueError(f"{path}: {known if there else 'no such folder, and ' + known}")
    if not there:
        raise ValueError(f"{path}: no such file")
    if suffix in TAR_SUFFIXES:
        return [Shard(stem, path, there.stamp, TarRows(path))]
    if suffix == ".json" and not is_list(path):
        return _listed_shards(path, split)
    parts = split(path)
    if not parts:
        if read_marker(os.path.dirname(path), os.path.basename(stem)):  # nothing of this shard was chosen
            return []
        raise ValueError(f"{path}: no rows")
    columns = split.keywords["columns"]
    stamp = (
        there.stamp
        if columns == Columns()
        else {**there.stamp, "columns": [columns.image, [*columns.captions], [*columns.keys], columns.group]}
    )
    if suffix in COMPRESSIONS:
        return [Shard(stem, path, stamp, parts[0])]
    return [Shard(f"{stem}-{number:05d}", path, stamp, rows) for number, rows in enumerate(parts)]


def is_list(path: str) -> bool:
    """Whether a JSON file is a list of rows; an info.json is not."""
    if os.path.basename(path) == "info.json":
        return False
    with open_file(path) as file:
        head = file.read(4096)
    mark, encoding = encoding_of(head)
    return head[len(mark) :].decode(encoding, "replace").lstrip().startswith("[")


def _listed_shards(path: str, split: SplitTable) -> list[Shard]:
    """The shards that an `info.json` lists, `{"lengths": {name: rows}}`; names start from its own folder.

    The numbers are not relied on: the tool that writes such files leaves them 0, or counts good rows only.
    """
    try:
        lengths = json_object(read_bytes(path, limits.DOCUMENT)).get("lengths")
        if not isinstance(lengths, dict) or not lengths:
            raise ValueError('"lengths" is no object of shards')
    except ValueError as error:
        raise ValueError(f"{path}: lists no shards: {error}{kinds_like(path)}") from error
    shards, problems = [], []
    for name, there in entries(join(os.path.dirname(path), name) for name in lengths).items():
        try:
            if split_suffix(name)[1] not in (*TAR_SUFFIXES, *TABLE_SUFFIXES):
                raise ValueError(f"{name}: no shard")
            shards += _shards_at(name, there, split)
        except (ValueError, OSError) as error:
            problems.append(f"{path}: lists {error}")
    if problems:
        raise all_told(problems)
    return shards


def _stamp(path: str) -> Mapping[str, Any]:
    """A stamp that changes with a file; for a folder, the sum of its files' sizes and the latest change."""
    there = entry(path)
    if there is None or not there.is_folder:
        return there.stamp if there else {}
    stamps = [file.stamp for file in listing(path) if not file.is_folder]
    return {
        name: sum(stamp[name] for stamp in stamps) if name == "size" else max(stamp[name] for stamp in stamps)
        for name in (stamps[0] if stamps else ())
    }


def _stamp_of(rows: PublishedRows) -> Mapping[str, Any]:
    """A stamp that changes with a published file, with a file that is read beside it, or with the columns that are read."""
    return {
        **_stamp(rows.path),
        "columns": [list(pair) for pair in rows.columns],
        "files": [_stamp(path) for path in rows.files],
    }


def _folder_shards(folder: str, images: tuple[str, ...]) -> list[Shard]:
    rows = list_folder(folder, images)
    if not rows:
        others = sorted(
            {
                suffix
                for file in listing(folder)
                if (suffix := split_suffix(file.path)[1]) in (*TAR_SUFFIXES, *TABLE_SUFFIXES)
            }
        )
        hint = "".join(f"; for its {suffix} files give {os.path.join(folder, '*' + suffix)}" for suffix in others)
        raise ValueError(f"{folder}: no pictures in this folder{hint}")
    stem = os.path.basename(os.path.abspath(folder))
    parts = [
        FolderRows(folder, tuple(rows[first : first + ROWS_PER_SHARD]), images)
        for first in range(0, len(rows), ROWS_PER_SHARD)
    ]
    return [Shard(f"{stem}-{number:05d}", folder, part.stamp(), part) for number, part in enumerate(parts)]
