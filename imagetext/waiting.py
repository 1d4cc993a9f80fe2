"""Rows that are written at the end of a shard wait on disk, so that memory does not grow with their number."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from imagetext.stores import is_remote


class Waiting:
    """Rows in a file without a name, beside the shard's file; iterating yields them in order.

    A row is a value of JSON's types and a list of bytes.

    path: the shard's path. If the shard is in a store, the file is in the folder of temporary files.
    """

    def __init__(self, path: str):
        self.folder = None if is_remote(path) else os.path.dirname(path) or "."
        self.file, self.count = None, 0

    def append(self, value: Any, files: Sequence[bytes] = ()) -> None:
        if self.file is None:
            self.file = tempfile.TemporaryFile(dir=self.folder)
        self.file.write(f"{json.dumps([value, [*map(len, files)]])}\n".encode())
        self.file.writelines(files)
        self.count += 1

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Any, list[bytes]]]:
        if self.file is None:
            return
        self.file.seek(0)
        for _ in range(self.count):
            value, sizes = json.loads(self.file.readline())
            yield value, [self.file.read(size) for size in sizes]

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
