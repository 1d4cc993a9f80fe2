"""Where the files of a tar's samples lie, so that they can be read when they come and need not be held."""

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imagetext.sample import Record, Shard
from imagetext.stores import is_remote
from imagetext.tars import TarRows, split_name


@dataclass(frozen=True)
class Places:
    """The files of one sample: the path of their tar, and offset and size of each in bytes, by its suffix, or as "picture"."""

    path: str
    files: dict[str, tuple[int, int]]

    def read(self, *suffixes: str) -> dict[str, bytes]:
        """The files of these suffixes, those that there are; ValueError where the tar is no more what it was."""
        found = {}
        with open(self.path, "rb") as file:
            for suffix in filter(self.files.__contains__, suffixes):
                offset, size = self.files[suffix]
                file.seek(offset)
                found[suffix] = file.read(size)
                if len(found[suffix]) < size:
                    raise ValueError(f"{self.path}: has become shorter since the run began")
        return found


def in_tar_here(shard: Shard) -> bool:
    """Whether the shard is a tar on this machine."""
    return isinstance(shard.samples, TarRows) and not is_remote(shard.path)


def with_places(samples: Shard | Iterable[Record]) -> Iterator[tuple[Record, Places | None]]:
    """The records, and where their files lie; None where they are of no tar on this machine."""
    if not isinstance(samples, Shard) or not in_tar_here(samples):
        return ((record, None) for record in samples)
    return ((record, _named(places, record)) for record, places in zip(samples, tar_places(samples.path), strict=True))


def _named(places: Places, record: Record) -> Places:
    """The places with the picture's under its name: it is what is neither text nor carried."""
    files = {suffix if suffix in ("txt", "json", "syn.json") or suffix in record.members else "picture": place
             for suffix, place in places.files.items()}
    return Places(places.path, files)


def tar_places(path: str) -> Iterator[Places]:
    """The places of each sample's files, sample by sample as `TarRows` has them."""
    name, files = None, {}
    with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # tarfile remembers every header it has seen
            key, suffix = split_name(member.name)
            if member.isdir() or not suffix or not key or key.endswith("/"):
                continue
            if files and (key != name or suffix in files):
                yield Places(path, files)
                files = {}
            name, files[suffix] = key, (member.offset_data, member.size)
    if files:
        yield Places(path, files)
