"""Where the files of a tar's samples lie, so that they can be read when they come and need not be held."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imagetext.readers.tar_members import is_packed
from imagetext.readers.tars import Files, TarRows
from imagetext.sample import Record, Shard
from imagetext.stores import is_remote


@dataclass(frozen=True)
class TarFiles:
    """The files of one sample: the path of their tar, and offset and size of each in bytes, by its suffix, or as "picture"."""

    path: str
    files: dict[str, tuple[int, int]]

    def read(self, *suffixes: str) -> dict[str, bytes]:
        """The files of these suffixes, those that there are; ValueError where the tar is no more what it was."""
        contents = {}
        with open(self.path, "rb") as file:
            for suffix in filter(self.files.__contains__, suffixes):
                offset, size = self.files[suffix]
                file.seek(offset)
                contents[suffix] = file.read(size)
                if len(contents[suffix]) < size:
                    raise ValueError(f"{self.path}: has become shorter since the run began")
        return contents


def is_local_tar(shard: Shard) -> bool:
    """Whether the shard is a tar on this machine whose files can be read at their places: not a packed one."""
    return isinstance(shard.samples, TarRows) and not is_remote(shard.path) and not is_packed(shard.path)


def with_tar_files(samples: Shard | Iterable[Record]) -> Iterator[tuple[Record, TarFiles | None]]:
    """The records, and where their files lie; None where they are of no tar on this machine."""
    if isinstance(samples, Shard) and isinstance(rows := samples.samples, TarRows) and is_local_tar(samples):
        path = samples.path
        return ((record, _places(path, record, files)) for record, files in rows.with_files())
    return ((record, None) for record in samples)


def _places(path: str, record: Record, files: Files) -> TarFiles:
    """The places of the files by their suffixes, the picture's under its name: it is what is neither text nor carried."""
    return TarFiles(
        path,
        {
            suffix if suffix in ("txt", "json", "syn.json") or suffix in record.members else "picture": (
                member.offset,
                member.size,
            )
            for suffix, member in files.items()
        },
    )
