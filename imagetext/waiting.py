"""Rows that wait until the rest of a shard is written wait on disk, so that memory stays flat however many there are."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from imagetext.stores import is_remote


class Waiting:
    """Rows of a value of JSON's types and bytes, in a file without a name beside the shard's; iterating gives them in order.

    path: of the shard; where that is in a store, the file is where temporary files are.
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
