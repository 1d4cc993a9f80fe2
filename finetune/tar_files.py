"""The positions of samples' files in a tar, so that they can be read when needed instead of staying in memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imagetext.readers.tar_members import is_packed
from imagetext.readers.tars import Files, TarRows
from imagetext.sample import Record, Shard
from imagetext.stores import is_remote


@dataclass(frozen=True)
class TarFiles:
    """The files of one sample in a tar.

    path: the tar. files: the offset and size in bytes of each file, by its suffix; the picture's key is "picture".
    """

    path: str
    files: dict[str, tuple[int, int]]

    def read(self, *suffixes: str) -> dict[str, bytes]:
        """Return the contents of the files that exist among these; raises ValueError if the tar has become shorter."""
        contents = {}
        with open(self.path, "rb") as file:
            for suffix in suffixes:
                if suffix not in self.files:
                    continue
                offset, size = self.files[suffix]
                file.seek(offset)
                contents[suffix] = file.read(size)
                if len(contents[suffix]) < size:
                    raise ValueError(f"{self.path}: has become shorter since the run began")
        return contents


def is_local_tar(shard: Shard) -> bool:
    """Return whether the shard is an uncompressed tar on this machine, whose files can be read in place."""
    return isinstance(shard.samples, TarRows) and not is_remote(shard.path) and not is_packed(shard.path)


def with_tar_files(samples: Shard | Iterable[Record]) -> Iterator[tuple[Record, TarFiles | None]]:
    """Yield each record with its files in an uncompressed tar on this machine, or None if it is not in one."""
    if isinstance(samples, Shard) and isinstance(rows := samples.samples, TarRows) and is_local_tar(samples):
        path = samples.path
        return ((record, _tar_files(path, record, files)) for record, files in rows.with_files())
    return ((record, None) for record in samples)


def _tar_files(path: str, record: Record, files: Files) -> TarFiles:
    """Return the files' positions by suffix. The picture is the file that is neither text nor another known member."""
    positions = {}
    for suffix, member in files.items():
        is_picture = suffix not in ("txt", "json", "syn.json") and suffix not in record.members
        positions["picture" if is_picture else suffix] = (member.offset, member.size)
    return TarFiles(path, positions)
