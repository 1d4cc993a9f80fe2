"""A preview before a long run: captions only the first pictures, and estimates what the whole input would take."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from tarfile import BLOCKSIZE
from typing import TYPE_CHECKING, NamedTuple

from captioners.base import Request
from generate.captions.config import GenerateConfig
from generate.captions.settled_column import SettledColumn
from imagetext.readers.tars import TarRows
from imagetext.sample import Record, Shard
from imagetext.shards import read_markers
from imagetext.shown import counted

if TYPE_CHECKING:  # this module imports aiohttp
    from captioners.server.captioner import ServerCaptioner

LOOKED_AT = 100  # samples of the first shard of unknown length; their size is taken as that of all


@dataclass(frozen=True)
class First:
    """The first `count` records of the samples."""

    samples: Iterable[Record]
    count: int

    def __iter__(self) -> Iterator[Record]:
        return islice(iter(self.samples), self.count)


def first_pictures(shards: Sequence[Shard], limit: int) -> list[Shard]:
    """Return the first shards that hold `limit` samples together; the last of them is cut."""
    chosen = []
    for shard in shards:
        count = sum(1 for _ in islice(shard, limit))
        chosen.append(replace(shard, samples=First(shard.samples, count)))
        limit -= count
        if not limit:
            break
    return chosen


class Count(NamedTuple):
    """How many pictures an input has, exactly or estimated; `pictures` is None where no estimate is possible."""

    pictures: int | None
    shards: int
    exact: bool

    def __str__(self) -> str:
        if self.pictures is None:
            return f"pictures of unknown number in {counted(self.shards, 'shard')}"
        count = f"{counted(self.pictures, 'picture')} in {counted(self.shards, 'shard')}"
        return count if self.exact else f"about {count}, estimated by bytes"


def count_pictures(shards: Sequence[Shard]) -> Count:
    """Count the pictures of an input: lists by their length, tars by their bytes and the size of the first samples."""
    counted = sum(len(shard.samples) for shard in shards if isinstance(shard.samples, Sized))
    uncounted = [shard for shard in shards if not isinstance(shard.samples, Sized)]
    if not uncounted:
        return Count(counted, len(shards), True)
    if not all(isinstance(shard.samples, TarRows) for shard in uncounted):
        return Count(None, len(shards), False)
    sizes = [_size_in_tar(sample) for sample in islice(uncounted[0], LOOKED_AT)]
    rows = sum(shard.stamp["size"] for shard in uncounted) / max(1, sum(sizes)) * len(sizes)
    return Count(counted + round(rows), len(shards), False)


def costs_of(columns: "Sequence[tuple[SettledColumn, ServerCaptioner]]", shards: Sequence[Shard]) -> list[str]:
    """Return a line on what the shards cost for each column of a server; [] where the pictures cannot be counted.

    The requests of the first records are taken as those of all.
    """
    count = count_pictures(shards).pictures if columns else None
    if count is None:
        return []
    records = list(islice(shards[0], LOOKED_AT)) if shards else []
    return [
        captioner.cost(count, column.sampling, redraws=column.gate.redraws, like=_requests(column, records))
        for column, captioner in columns
    ]


def _requests(column: SettledColumn, records: Sequence[Record]) -> list[Request]:
    """Return the column's requests for records, as far as they are known before any column is written."""
    from captioners.server.requests import BLANK  # here and not above, because this imports aiohttp

    picture, requests = BLANK.picture if column.looks else None, []
    for record in records:
        with suppress(ValueError):
            instructed = column.task.instruct(record, {}, column=column.name, seed=column.sampling.seed)
            requests.append(Request(record.key, picture, instructed.instruction))
    return requests or [Request("", picture, column.task.instruction)]


def _size_in_tar(record: Record) -> int:
    """Return the bytes of the record's files in a tar, with headers and padding."""
    texts = list(record.captions[:1])
    if record.columns:
        texts.append(json.dumps(dict(record.columns)))
    files = [record.image or b"", *record.members.values(), *(text.encode("utf-8", "replace") for text in texts)]
    return sum(BLOCKSIZE * (1 + math.ceil(len(data) / BLOCKSIZE)) for data in files)  # one block is the header


def outlook(shards: Sequence[Shard], config: GenerateConfig, pictures_per_second: float) -> str:
    """Return a line with the estimated time and bytes of captioning the whole input, by the pictures that are done."""
    markers = read_markers(config.output)
    done = [markers[shard.name] for shard in shards if shard.name in markers]
    rows, size = (sum(marker[name] for marker in done) for name in ("rows", "size"))
    total = count_pictures(shards)
    if not rows or total.pictures is None:
        return f"the whole input: {total}"
    duration = ""
    if pictures_per_second:
        duration = f"{_duration(total.pictures / pictures_per_second)} in one process like this one, "
    written = _bytes(size / rows * total.pictures)
    return f"the whole input: {total}; about {duration}{written} of shards, estimated from {rows:,} pictures"


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
