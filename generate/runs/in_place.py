"""Inputs that have grown since shards were done: pictures and rows stay in the shards that have them."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

from imagetext.outputs import write_file
from imagetext.readers.folder_rows import FolderRows
from imagetext.readers.row_records import with_unique_keys
from imagetext.readers.table_pieces import ROWS_PER_SHARD, TableRows
from imagetext.sample import Record, Shard
from imagetext.stores import join, read_bytes

PICTURES = "pictures.json"


def read_pictures(folder: str | os.PathLike) -> dict[str, list[str]]:
    """Return the pictures of each shard of a run that is made of a folder of pictures; {} where there are none."""
    try:
        pictures = json.loads(read_bytes(path := join(os.fspath(folder), PICTURES)))
        if not isinstance(pictures, dict):
            raise ValueError("is no JSON object")
        for name, sources in pictures.items():
            if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
                raise ValueError(f"{name} is not a list of pictures")
        return pictures
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_pictures(folder: str | os.PathLike, pictures: Mapping[str, Sequence[str]]) -> None:
    """Write which pictures are in which shard, for `read_pictures`."""
    if pictures and pictures != read_pictures(folder):
        write_file(join(os.fspath(folder), PICTURES), json.dumps(pictures, indent=0))


def pictures_in(shards: Sequence[Shard]) -> dict[str, list[str]]:
    """Return the pictures of each shard that is made of a folder of pictures."""
    return {
        shard.name: [row.source for row in shard.samples.rows]
        for shard in shards
        if isinstance(shard.samples, FolderRows)
    }


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
    for pieces in folders.values():
        first, first_rows = pieces[0]
        unplaced = {row.source: row for _, samples in pieces for row in samples.rows}
        stem = first.name.rpartition("-")[0]
        earlier_shards = {name: pictures for name, pictures in earlier.items() if name.rpartition("-")[0] == stem}
        rows_of = {
            name: [unplaced.pop(picture) for picture in pictures if picture in unplaced]
            for name, pictures in earlier_shards.items()
        }
        for name, pictures in earlier_shards.items():
            if len(rows_of[name]) < len(pictures):
                present = {row.source for row in rows_of[name]}
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


def is_text_table(shard: Shard) -> bool:
    """Return whether the shard's records are lines of a table of text, which can grow at its end."""
    is_text = isinstance(shard.samples, TableRows) and shard.samples.layout is not None
    return is_text or isinstance(shard.samples, Pieces)


def keep_rows_in_place(shards: Sequence[Shard], markers: Mapping[str, Mapping[str, Any]]) -> list[Shard]:
    """Return the shards; finished shards of text tables keep their rows, and new rows go into new shards."""
    result: list[Shard] = []
    for table_path, group in groupby(shards, lambda shard: shard.path if is_text_table(shard) else None):
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
