"""A look before a long run: the first pictures of an input, and what all of it would take."""

import json
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from captioners.base import Request
from captioners.server.captioner import BLANK, ServerCaptioner
from generate.captions.column import Column
from generate.captions.config import GenerateConfig
from imagetext.readers.tars import TarRows
from imagetext.sample import Record, Shard
from imagetext.shards import read_markers

LOOKED_AT = 100  # samples of the first shard of unknown length, whose size stands for all
BLOCK = 512  # bytes, of a tar


@dataclass(frozen=True)
class First:
    """The first `count` records."""

    samples: Iterable[Record]
    count: int

    def __iter__(self) -> Iterator[Record]:
        return islice(iter(self.samples), self.count)


def first_pictures(shards: Sequence[Shard], limit: int) -> list[Shard]:
    """The first shards, the last of them cut, that hold `limit` samples together."""
    chosen = []
    for shard in shards:
        held = sum(1 for _ in islice(shard, limit))
        chosen.append(replace(shard, samples=First(shard.samples, held)))
        limit -= held
        if not limit:
            break
    return chosen


class Count(NamedTuple):
    """How many pictures an input has, exactly or about; None where neither is known."""

    pictures: int | None
    shards: int
    exact: bool

    def __str__(self) -> str:
        if self.pictures is None:
            return f"pictures of unknown number in {self.shards:,} shards"
        about = "" if self.exact else "about "
        return f"{about}{self.pictures:,} pictures in {self.shards:,} shards" + (
            "" if self.exact else ", estimated by bytes"
        )


def count_pictures(shards: Sequence[Shard]) -> Count:
    """The pictures of an input: of lists by their length, of tars by their bytes and those of the first samples."""
    known = sum(len(shard.samples) for shard in shards if isinstance(shard.samples, Sized))
    unknown = [shard for shard in shards if not isinstance(shard.samples, Sized)]
    if not unknown:
        return Count(known, len(shards), True)
    if not all(isinstance(shard.samples, TarRows) for shard in unknown):
        return Count(None, len(shards), False)
    sizes = [_size_in_tar(sample) for sample in islice(unknown[0], LOOKED_AT)]
    rows = sum(shard.stamp["size"] for shard in unknown) / max(1, sum(sizes)) * len(sizes)
    return Count(known + round(rows), len(shards), False)


def costs_of(columns: Sequence[tuple[Column, ServerCaptioner]], shards: Sequence[Shard]) -> list[str]:
    """What the shards cost each of these columns, which servers make; nothing where they cannot be counted.

    The first records stand for all.
    """
    count = count_pictures(shards).pictures if columns else None
    if count is None:
        return []
    first = list(islice(shards[0], LOOKED_AT)) if shards else []
    return [
        captioner.cost(count, column.sampling, redraws=column.gate.redraws, like=_requests(column, first))
        for column, captioner in columns
    ]


def _requests(column: Column, records: Sequence[Record]) -> list[Request]:
    """What the column asks of records, as far as that is known before the columns are made that it reads."""
    picture, requests = BLANK.picture if column.looks else None, []
    for record in records:
        with suppress(ValueError):
            asked = column.task.instruct(record, {}, column.name, column.sampling.seed)
            requests.append(Request(record.key, picture, asked.instruction))
    return requests or [Request("", picture, column.task.instruction)]


def _size_in_tar(record: Record) -> int:
    """Bytes of the record's files with their headers and padding."""
    texts = [*record.captions[:1], *([json.dumps(dict(record.columns))] if record.columns else [])]
    files = [record.image or b"", *record.members.values(), *(text.encode("utf-8", "replace") for text in texts)]
    return sum(BLOCK - (-len(data) // BLOCK) * BLOCK for data in files)


def outlook(shards: Sequence[Shard], config: GenerateConfig, pictures_per_second: float) -> str:
    """What captioning all of the input would take, judged by the pictures that are done."""
    markers = read_markers(config.output)
    done = [markers[shard.name] for shard in shards if shard.name in markers]
    rows, size = (sum(marker[name] for marker in done) for name in ("rows", "size"))
    whole = count_pictures(shards)
    if not rows or whole.pictures is None:
        return f"the whole input: {whole}"
    took = (
        f"{_duration(whole.pictures / pictures_per_second)} in one process like this one, "
        if pictures_per_second
        else ""
    )
    written = _bytes(size / rows * whole.pictures)
    return f"the whole input: {whole}; about {took}{written} of shards, estimated from {rows:,} pictures"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _bytes(size: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= length:
            return f"{size / length:,.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
