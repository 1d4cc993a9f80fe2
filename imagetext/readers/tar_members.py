"""Read the files of a tar one after another. Nothing is unpacked to disk, and a cut or damaged tar is an error.

A tar may be compressed by gzip, bzip2 or zstd, which is recognised by its first bytes, not by its name.
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

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}  # by the first bytes
LITTER_IN = re.compile(rf"(^|/)({'|'.join(map(re.escape, LITTER))})(/|$)")
READ_AHEAD = 8 << 20  # bytes that are read from a store at once


class Member(NamedTuple):
    """One file of a tar."""

    key: str  # of its sample
    suffix: str
    data: bytes | None  # None: it cannot be read, for the reason in `problem`
    offset: int  # of the data in the tar, in bytes
    size: int
    problem: str = ""


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member, by webdataset's rule: the key ends at the first dot of the last part of the path."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, well_formed(suffix.lower().replace("\0", "?"))


def read_members(path: str, skip: Callable[[str], bool] | None = None) -> Iterator[Member | None]:
    """Yield every file in a tar, except those whose suffix `skip` accepts and those without a key or a suffix.

    Folders and files of file managers are left out, too. The data of a link, device or sparse file are None. If the
    tar ends after a whole file, but without an end mark, None comes last: its writer did not close it, or it is cut
    there.

    Raises ValueError, which names the tar and the offset, if the tar is cut or damaged; `tarfile` itself takes a
    damaged header for the end.
    """
    with _opened(path) as (file, size):
        offset = 0
        try:
            headers: Any = _Headers(file)
            archive: Any
            with tarfile.open(fileobj=headers, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    headers.bytes_left = limits.TAR_HEADERS
                    archive.members.clear()  # tarfile would keep every header that it has read,
                    archive.pax_headers.clear()  # and copy the fields of all files into each header
                    if archive.offset <= offset or member.size < 0:  # reading would never end
                        raise tarfile.ReadError(f"a file of {member.size} bytes")
                    if len(member.name) > limits.NAME:
                        raise tarfile.ReadError(
                            f"a name of {len(member.name):,} characters, more than {limits.NAME:,}"
                        )
                    offset = archive.offset
                    key, suffix = split_name(member.name)
                    has_no_name = not suffix or not key or key[-1] == "/"
                    if has_no_name or member.isdir() or LITTER_IN.search(member.name) or (skip and skip(suffix)):
                        continue
                    yield _read_member(file, size, member, key=key, suffix=suffix)
                offset = archive.offset
            file.seek(offset)
            if not _has_end_mark(file, offset):
                if size is not None and offset < size:
                    raise tarfile.ReadError(f"reading stopped there, but the file has {size:,} bytes")
                yield None
        except (tarfile.TarError, EOFError, OverflowError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: cut or damaged near byte {min(offset, file.tell())}: {error}") from error


class _Headers:
    """A tar as `tarfile` reads it: only its headers. Their size is limited, because they themselves state it."""

    def __init__(self, file: BinaryIO):
        self.file, self.seek, self.tell = file, file.seek, file.tell
        self.bytes_left = limits.TAR_HEADERS  # bytes of headers that may still be read before the next file's data

    def read(self, count: int) -> bytes:
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise tarfile.ReadError(f"the headers of a file are more than {limits.TAR_HEADERS:,} bytes")
        return self.file.read(count)


def _has_end_mark(file: BinaryIO, offset: int) -> bool:
    """Whether there is an end mark after the last file of a tar; False if there is nothing.

    Raises tarfile.ReadError if there is anything else.
    """
    mark = file.read(tarfile.BLOCKSIZE)
    if mark and mark != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end-of-archive mark at byte {offset}")
    for _ in range(limits.PADDING >> 20):
        if file.read(1 << 20).strip(b"\0"):
            raise tarfile.ReadError(f"there are data after the end-of-archive mark at byte {offset}")
    return bool(mark)


def _read_member(file: BinaryIO, tar_size: int | None, member: tarfile.TarInfo, *, key: str, suffix: str) -> Member:
    """Read a file of a tar. tar_size: the size of the whole tar in bytes; None if it is compressed."""
    start, size = member.offset_data, member.size
    without_data = Member(key, suffix, None, offset=start, size=size)
    if not member.isreg() or member.issparse():
        return without_data._replace(problem="not a regular file of a tar")
    if tar_size is not None and start + size > tar_size:
        raise tarfile.ReadError("unexpected end of data")
    if size > limits.FILE:
        if tar_size is None and size > limits.UNPACKED:
            raise tarfile.ReadError(
                f"a file of {size:,} bytes, more than the {limits.UNPACKED:,} that are unpacked to skip it"
            )
        return without_data._replace(problem=f"{size:,} bytes, more than {limits.FILE:,}")
    file.seek(start)
    data = file.read(size)
    if len(data) < size:
        raise tarfile.ReadError("unexpected end of data")
    return Member(key, suffix, data, offset=start, size=size)


@contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a tar at its beginning; also yield its size in bytes, or None if it is compressed."""
    with open_file(path, READ_AHEAD) as file:
        if compression := _compression(file):
            with pa.CompressedInputStream(pa.PythonFile(file, "r"), compression) as stream:
                yield io.BufferedReader(Unpacked(stream), 1 << 20), None
            return
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        yield file, size


def _compression(file: BinaryIO) -> str | None:
    start = file.read(4)
    file.seek(0)
    return next((name for mark, name in COMPRESSIONS.items() if start.startswith(mark)), None)


def is_packed(path: str) -> bool:
    """Whether a tar is compressed, so that the offsets of its members are not offsets in the file."""
    with open_file(path) as file:
        return _compression(file) is not None
