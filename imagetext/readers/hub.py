"""Stream data sets with the library `datasets`: `datasets:ORG/NAME[:CONFIG][#SPLIT]`.

A folder may stand instead of `ORG/NAME`. The default split is `train`. Each file of the set is a shard. The version of
a set on the Hub is fixed when its shards are listed. For a set of tars, give the tars instead
(`hf://datasets/ORG/NAME/*.tar`): `datasets` would decode their members.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from imagetext import limits
from imagetext.picture_files import PictureFolders
from imagetext.readers.row_records import Row, row_records, with_unique_keys
from imagetext.readers.table_columns import TableReading, reading_of, usual_row, warn_of_several
from imagetext.readers.table_flags import Columns
from imagetext.sample import Record
from imagetext.stores import StoreError

if TYPE_CHECKING:
    from datasets import IterableDataset

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 64  # Parquet rows in memory; by default `datasets` would hold whole row groups


@dataclass(frozen=True)
class HubRows:
    """Records of one file of a data set, read when iterated. Raises StoreError if it cannot be read."""

    name: str
    config: str | None
    split: str
    revision: str | None  # the version of a set on the Hub; None for a folder
    parts: int
    part: int
    stamp: Mapping[str, Any]
    reading: TableReading
    images: tuple[str, ...] = ()  # further folders in which pictures may lie

    @property
    def stem(self) -> str:
        return os.path.basename(os.path.abspath(self.name))

    def __iter__(self) -> Iterator[Record]:
        place, stem = f"{self.name}#{self.split}:{self.part}", f"{self.stem}-{self.part:05d}"
        rows = ((row, f"{stem}-{number:09d}", f"{place}:{number + 1}") for number, row in enumerate(self._rows(place)))
        folder = self.name if os.path.isdir(self.name) else f"hf://datasets/{self.name}"
        folder = f"{folder}@{self.revision}" if self.revision else folder
        return with_unique_keys(row_records(rows, PictureFolders(folder, self.images, is_input=True)), place)

    def class_names(self, column: str) -> dict[str, str] | None:
        """The names of the classes in a column, by their numbers; None if it is not a column of classes."""
        from datasets import ClassLabel

        feature = (self._streamed().features or {}).get(column)
        if not isinstance(feature, ClassLabel):
            return None
        return {str(number): name for number, name in enumerate(feature.names)}

    def _streamed(self) -> "IterableDataset":
        return _streamed(self.name, self.config, split=self.split, revision=self.revision)

    def _rows(self, place: str) -> Iterator[Row | ValueError]:
        try:
            for row in self._streamed().shard(num_shards=self.parts, index=self.part):
                problem = _too_large(row)
                yield usual_row(row, self.reading) if problem is None else problem
        except Exception as error:  # errors of file formats and connections are of many types
            raise StoreError(f"{place}: {type(error).__name__}: {error}") from error


def hub_pieces(spec: str, columns: Columns = Columns(), images: tuple[str, ...] = ()) -> list[HubRows]:
    """Return the files of the data set that a SPEC names.

    Raises ValueError if the set cannot be loaded, consists of tars, or lacks a column that the user named.
    """
    match = re.fullmatch(r"datasets:([^:#]+)(?::([^#]+))?(?:#(.+))?", spec)
    if not match:
        raise ValueError(f"{spec}: expected datasets:ORG/NAME, then :CONFIG and #SPLIT if they are needed")
    name, config, split = match[1], match[2], match[3] or "train"
    from datasets import Image, load_dataset_builder
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    try:
        builder = load_dataset_builder(name, config)
        if isinstance(builder, WebDataset):
            raise ValueError(
                f"a set of tars; give the tars instead, so that all their files are kept: hf://datasets/{name}/*.tar"
            )
        revision = builder.hash if builder.repo_id else None
        rows = _streamed(name, config, split=split, revision=revision)
        features = rows.features or {}
        pictures = [column for column, feature in features.items() if isinstance(feature, Image)]
    except Exception as error:  # errors of the Hub and of file formats are of many types
        raise ValueError(f"{spec}: {error or type(error).__name__}") from error
    if len(pictures) > 1 and not columns.image:
        warn_of_several(spec, "pictures", "--image-column", candidates=pictures)
    columns = columns._replace(image=columns.image or next(iter(pictures), None), group=False)
    reading = reading_of(spec, [], columns, header=list(features) or None)
    piece = partial(HubRows, name=name, config=config, split=split, revision=revision, parts=rows.num_shards)
    stamp = {"revision": builder.hash}
    return [piece(part=part, stamp=stamp, reading=reading, images=images) for part in range(rows.num_shards)]


@lru_cache
def _streamed(name: str, config: str | None, *, split: str, revision: str | None) -> "IterableDataset":
    """The data set, with its pictures as undecoded bytes or paths."""
    from datasets import load_dataset_builder
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder = load_dataset_builder(name, config, revision=revision)
    options: Any = builder.config
    if isinstance(builder, Parquet):
        options.batch_size = ROWS_AT_ONCE
    streamed: Any = builder.as_streaming_dataset(split)
    return streamed.decode(False)


def _too_large(row: Row) -> ValueError | None:
    """The error of a row that has more bytes or values than a table's rows may have; None for other rows."""
    size, values, waiting = 0, 0, [row]
    while waiting and values <= limits.VALUES:
        value = waiting.pop()
        values += 1
        if isinstance(value, str | bytes):
            size += len(value)
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    if values > limits.VALUES:
        return ValueError(f"a row of more than {limits.VALUES:,} values")
    return ValueError(f"a row of {size:,} bytes, more than {limits.FILE:,}") if size > limits.FILE else None
