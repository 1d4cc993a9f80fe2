"""Compressed files that are read forwards, without unpacking them to disk."""

import io
import os
import tarfile

import pyarrow as pa

from imagetext.stores import StoreError


class Unpacked(io.RawIOBase):
    """The content of a compressed stream, which can only be read forwards."""

    def __init__(self, stream: pa.NativeFile):
        self.stream, self.position = stream, 0

    def readinto(self, buffer: bytearray | memoryview) -> int:
        try:
            data = self.stream.read(len(buffer))
        except StoreError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise tarfile.ReadError(str(error)) from error
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        ahead = offset - (self.position if whence == os.SEEK_SET else 0)
        while ahead > 0 and (count := self.readinto(bytearray(min(ahead, 1 << 20)))):
            ahead -= count
        return self.position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
