"""Data sets that `datasets` reads, streamed: `datasets:ORG/NAME[:CONFIG][#SPLIT]`, or a folder in `ORG/NAME`'s place.

The split is `train` unless given; a file of the set is a shard. Of a set on the Hub the version is settled when its shards
are listed. A set of tars is named by them instead (`hf://datasets/ORG/NAME/*.tar`): `datasets` would decode their members.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from imagetext.rows import Row, row_records, with_unique_keys
from imagetext.sample import Record
from imagetext.stores import StoreError

if TYPE_CHECKING:
    from datasets import IterableDataset


@dataclass(frozen=True)
class HubRows:
    """Records of one file of a data set, read when iterated; StoreError where it cannot be read."""

    name: str
    config: str | None
    split: str
    revision: str | None    # of a set on the Hub
    parts: int
    part: int
    stamp: Mapping[str, Any]

    @property
    def stem(self) -> str:
        return os.path.basename(os.path.abspath(self.name))

    def __iter__(self) -> Iterator[Record]:
        place, stem = f"{self.name}#{self.split}:{self.part}", f"{self.stem}-{self.part:05d}"
        rows = ((row, f"{stem}-{number:09d}", f"{place}:{number + 1}") for number, row in enumerate(self._rows(place)))
        return with_unique_keys(row_records(rows, ""), place)

    def class_names(self, column: str) -> dict[str, str] | None:
        """The names of the classes in a column, by their numbers; None where that is no column of classes."""
        from datasets import ClassLabel
        kind = (_streamed(self.name, self.config, self.split, self.revision).features or {}).get(column)
        return {str(number): name for number, name in enumerate(kind.names)} if isinstance(kind, ClassLabel) else None

    def _rows(self, place: str) -> Iterator[Row]:
        from datasets import Image
        try:
            rows = _streamed(self.name, self.config, self.split, self.revision)
            picture = next((name for name, kind in (rows.features or {}).items() if isinstance(kind, Image)), None)
            for row in rows.shard(num_shards=self.parts, index=self.part):
                yield {"image": row.pop(picture), **row} if picture else row
        except Exception as error:  # whatever a file's format or the way to it brings
            raise StoreError(f"{place}: {type(error).__name__}: {error}") from error


def hub_pieces(spec: str) -> list[HubRows]:
    """The files of the data set that a SPEC names; ValueError where it cannot be loaded, or is one of tars."""
    match = re.fullmatch(r"datasets:([^:#]+)(?::([^#]+))?(?:#(.+))?", spec)
    if not match:
        raise ValueError(f"{spec}: expected datasets:ORG/NAME, then :CONFIG and #SPLIT where they are needed")
    name, config, split = match[1], match[2], match[3] or "train"
    from datasets import load_dataset_builder
    from datasets.packaged_modules.webdataset.webdataset import WebDataset
    try:
        builder = load_dataset_builder(name, config)
        if isinstance(builder, WebDataset):
            raise ValueError(f"a set of tars, whose files are carried untouched when they are named: hf://datasets/{name}/*.tar")
        revision = builder.hash if builder.repo_id else None
        parts = _streamed(name, config, split, revision).num_shards
    except Exception as error:  # of many kinds, from the Hub to a file's format
        raise ValueError(f"{spec}: {error or type(error).__name__}") from error
    return [HubRows(name, config, split, revision, parts, part, {"revision": builder.hash}) for part in range(parts)]


@lru_cache
def _streamed(name: str, config: str | None, split: str, revision: str | None) -> "IterableDataset":
    """The data set, its pictures as bytes or paths, undecoded."""
    from datasets import load_dataset
    return load_dataset(name, config, split=split, revision=revision, streaming=True).decode(False)
