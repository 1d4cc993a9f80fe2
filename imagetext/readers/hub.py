"""Data sets that `datasets` reads, streamed: `datasets:ORG/NAME[:CONFIG][#SPLIT]`, or a folder in `ORG/NAME`'s place.

The split is `train` unless given; a file of the set is a shard. Of a set on the Hub the version is settled when its shards
are listed. A set of tars is named by them instead (`hf://datasets/ORG/NAME/*.tar`): `datasets` would decode their members.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from imagetext import limits
from imagetext.picture_files import PictureFolders
from imagetext.readers.row_records import Row, row_records, with_unique_keys
from imagetext.readers.table_columns import Reading, reading_of, usual_row
from imagetext.readers.table_flags import Columns
from imagetext.sample import Record
from imagetext.stores import StoreError

if TYPE_CHECKING:
    from datasets import IterableDataset

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 64  # of Parquet, whose groups of rows `datasets` would hold as a whole


@dataclass(frozen=True)
class HubRows:
    """Records of one file of a data set, read when iterated; StoreError where it cannot be read."""

    name: str
    config: str | None
    split: str
    revision: str | None  # of a set on the Hub
    parts: int
    part: int
    stamp: Mapping[str, Any]
    reading: Reading
    images: tuple[str, ...] = ()  # folders in which pictures may lie beside the set's own

    @property
    def stem(self) -> str:
        return os.path.basename(os.path.abspath(self.name))

    def __iter__(self) -> Iterator[Record]:
        place, stem = f"{self.name}#{self.split}:{self.part}", f"{self.stem}-{self.part:05d}"
        rows = ((row, f"{stem}-{number:09d}", f"{place}:{number + 1}") for number, row in enumerate(self._rows(place)))
        folder = self.name if os.path.isdir(self.name) else f"hf://datasets/{self.name}"
        own = f"{folder}@{self.revision}" if self.revision else folder
        return with_unique_keys(row_records(rows, PictureFolders(own, self.images, is_input=True)), place)

    def class_names(self, column: str) -> dict[str, str] | None:
        """The names of the classes in a column, by their numbers; None where that is no column of classes."""
        from datasets import ClassLabel

        kind = (_streamed(self.name, self.config, self.split, self.revision).features or {}).get(column)
        return {str(number): name for number, name in enumerate(kind.names)} if isinstance(kind, ClassLabel) else None

    def _rows(self, place: str) -> Iterator[Row | ValueError]:
        try:
            rows = _streamed(self.name, self.config, self.split, self.revision)
            for row in rows.shard(num_shards=self.parts, index=self.part):
                problem = _too_large(row)
                yield usual_row(row, self.reading) if problem is None else problem
        except Exception as error:  # whatever a file's format or the way to it brings
            raise StoreError(f"{place}: {type(error).__name__}: {error}") from error


def hub_pieces(spec: str, columns: Columns = Columns(), images: tuple[str, ...] = ()) -> list[HubRows]:
    """The files of the data set that a SPEC names; ValueError where it cannot be loaded, is one of tars, or lacks a named column."""
    match = re.fullmatch(r"datasets:([^:#]+)(?::([^#]+))?(?:#(.+))?", spec)
    if not match:
        raise ValueError(f"{spec}: expected datasets:ORG/NAME, then :CONFIG and #SPLIT where they are needed")
    name, config, split = match[1], match[2], match[3] or "train"
    from datasets import Image, load_dataset_builder
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    try:
        builder = load_dataset_builder(name, config)
        if isinstance(builder, WebDataset):
            raise ValueError(
                f"a set of tars, whose files are carried untouched when they are named: hf://datasets/{name}/*.tar"
            )
        revision = builder.hash if builder.repo_id else None
        rows = _streamed(name, config, split, revision)
        features = rows.features or {}
        pictures = [column for column, kind in features.items() if isinstance(kind, Image)]
    except Exception as error:  # of many kinds, from the Hub to a file's format
        raise ValueError(f"{spec}: {error or type(error).__name__}") from error
    if len(pictures) > 1 and not columns.image:
        logger.warning(
            "%s: pictures may stand in %s: --image-column names the column; %r is taken",
            spec,
            " or ".join(map(repr, pictures)),
            pictures[0],
        )
    asked = columns._replace(image=columns.image or next(iter(pictures), None), group=False)
    reading = reading_of(spec, [], asked, header=list(features) or None)
    return [
        HubRows(name, config, split, revision, rows.num_shards, part, {"revision": builder.hash}, reading, images)
        for part in range(rows.num_shards)
    ]


@lru_cache
def _streamed(name: str, config: str | None, split: str, revision: str | None) -> "IterableDataset":
    """The data set, its pictures as bytes or paths, undecoded."""
    from datasets import load_dataset_builder
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder = load_dataset_builder(name, config, revision=revision)
    options: Any = builder.config
    if isinstance(builder, Parquet):
        options.batch_size = ROWS_AT_ONCE
    streamed: Any = builder.as_streaming_dataset(split)
    return streamed.decode(False)


def _too_large(row: Row) -> ValueError | None:
    """The problem of a row that has more bytes or values than a table's rows may have; None where it has not."""
    size, values, waiting = 0, 0, [row]
    while waiting and values <= limits.VALUES:
        value = waiting.pop()
        size, values = size + (len(value) if isinstance(value, str | bytes) else 0), values + 1
        waiting += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    if values > limits.VALUES:
        return ValueError(f"a row of more than {limits.VALUES:,} values")
    return ValueError(f"a row of {size:,} bytes, more than {limits.FILE:,}") if size > limits.FILE else None
