"""The files of a tar, one after another: nothing is ever unpacked to disk, and a tar that is cut or damaged is told.

A tar may be packed by gzip, bzip2 or zstd, which its first bytes tell, whatever its name.
"""

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from imagetext import limits
from imagetext.fields import well_formed
from imagetext.readers.unpacked import Unpacked
from imagetext.stores import LITTER, open_file

PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}  # by their first bytes
LITTER_IN = re.compile(rf"(^|/)({'|'.join(map(re.escape, LITTER))})(/|$)")
READ_AHEAD = 8 << 20  # bytes asked of a store at once


class Member(NamedTuple):
    """One file of a tar: its sample's key and its suffix, its bytes, or None and the reason, and where they begin in the tar."""

    key: str
    suffix: str
    data: bytes | None
    offset: int
    size: int
    problem: str = ""


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: webdataset's rule, the key ends at the first dot of the last part of the path."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, well_formed(suffix.lower().replace("\0", "?"))


def read_members(path: str, skip: Callable[[str], bool] | None = None) -> Iterator[Member | None]:
    """Every file of a tar whose name has a key and a suffix that is not skipped; nothing is ever unpacked to disk.

    The bytes of a link, device or sparse file are None. Raises ValueError, naming file and offset, where the tar is cut or
    damaged: `tarfile` itself takes a damaged header for the end. Where the tar ends behind a whole file, without the mark of its
    end, None comes last: its writer did not close it, or it is cut there.
    """
    with _opened(path) as (file, size):
        offset = 0
        try:
            headers: Any = _Headers(file)  # as much of a file as tarfile needs
            archive: Any
            with tarfile.open(fileobj=headers, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    headers.left = limits.TAR_HEADERS
                    archive.members.clear()  # tarfile remembers every header it has seen,
                    archive.pax_headers.clear()  # and copies what is said of all files into each
                    if archive.offset <= offset or member.size < 0:  # it would go round in circles
                        raise tarfile.ReadError(f"a file of {member.size} bytes")
                    if len(member.name) > limits.NAME:
                        raise tarfile.ReadError(
                            f"a name of {len(member.name):,} characters, more than {limits.NAME:,}"
                        )
                    offset = archive.offset
                    key, suffix = split_name(member.name)
                    if (
                        not suffix
                        or not key
                        or key[-1] == "/"
                        or member.isdir()
                        or LITTER_IN.search(member.name)
                        or (skip and skip(suffix))
                    ):
                        continue
                    yield _member(file, size, member, key, suffix)
                offset = archive.offset
            file.seek(offset)
            if not _is_closed(file, offset):
                if size is not None and offset < size:
                    raise tarfile.ReadError(f"reading stopped there, and the file has {size:,} bytes")
                yield None
        except (tarfile.TarError, EOFError, OverflowError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: cut or damaged near byte {min(offset, file.tell())}: {error}") from error


class _Headers:
    """A tar as `tarfile` sees it, which reads headers alone, and believes them about their own sizes."""

    def __init__(self, file: BinaryIO):
        self.file, self.seek, self.tell = file, file.seek, file.tell
        self.left = limits.TAR_HEADERS  # bytes that it may read yet, to the next file's data

    def read(self, count: int) -> bytes:
        self.left -= count
        if self.left < 0:
            raise tarfile.ReadError(f"the headers of a file are more than {limits.TAR_HEADERS:,} bytes")
        return self.file.read(count)


def _is_closed(file: BinaryIO, offset: int) -> bool:
    """Whether the mark of an end is behind the last file of a tar, or nothing; tarfile.ReadError where something else is."""
    mark = file.read(tarfile.BLOCKSIZE)
    if mark and mark != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end-of-archive mark at byte {offset}")
    for _ in range(limits.PADDING >> 20):
        if file.read(1 << 20).strip(b"\0"):
            raise tarfile.ReadError(f"there is data behind the end-of-archive mark at byte {offset}")
    return bool(mark)


def _member(file: BinaryIO, size: int | None, member: tarfile.TarInfo, key: str, suffix: str) -> Member:
    """The file, read; size: of the whole tar, None where it is packed."""
    start, length = member.offset_data, member.size
    if not member.isreg() or member.issparse():
        return Member(key, suffix, None, start, length, "no regular file of a tar")
    if size is not None and start + length > size:
        raise tarfile.ReadError("unexpected end of data")
    if length > limits.FILE:
        if size is None and length > limits.UNPACKED:
            raise tarfile.ReadError(
                f"a file of {length:,} bytes, more than the {limits.UNPACKED:,} that are unpacked to pass it over"
            )
        return Member(key, suffix, None, start, length, f"{length:,} bytes, more than {limits.FILE:,}")
    file.seek(start)
    if len(data := file.read(length)) < length:
        raise tarfile.ReadError("unexpected end of data")
    return Member(key, suffix, data, start, length)


@contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """The tar to read from its beginning on, and its size in bytes, unless it is packed."""
    with open_file(path, READ_AHEAD) as file:
        if packing := _packing(file):
            with pa.CompressedInputStream(pa.PythonFile(file, "r"), packing) as stream:
                yield io.BufferedReader(Unpacked(stream), 1 << 20), None
            return
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        yield file, size


def _packing(file: BinaryIO) -> str | None:
    start = file.read(4)
    file.seek(0)
    return next((name for mark, name in PACKED.items() if start.startswith(mark)), None)


def is_packed(path: str) -> bool:
    """Whether the places of members in the tar are none of the file itself."""
    with open_file(path) as file:
        return _packing(file) is not None
