"""When a fault strikes: after `count_all`, a run counts its steps, batches, pictures and bytes."""

import builtins
import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generate.captions.stages
import generate.reinforce.stages
from finetune.trainer import Trainer
from imagetext.shards import ShardWriter


class Moment:
    """Calls `strike` at unit number `number` of a kind; `units` has the units counted so far, by kind.

    lasting: whether it also strikes at every later unit, as a full disk does
    """

    def __init__(
        self, kind: str = "", number: int = 0, strike: Callable[[], Any] = lambda: None, *, lasting: bool = False
    ):
        self.kind, self.number, self.strike, self.lasting, self.units = kind, number, strike, lasting, Counter()


moment, hit = Moment(), Path()  # the moment of a run, and the file that shows that the fault has struck


def reach(kind: str, units: int = 1) -> bool:
    """Count units, and let the fault strike at its moment; return whether reading must stop early."""
    before = moment.units[kind]
    moment.units[kind] += units
    if kind != moment.kind or before + units < moment.number or before >= moment.number and not moment.lasting:
        return False
    os.close(os.open(hit, os.O_CREAT))
    return bool(moment.strike())


def counted(kind: str, function: Callable) -> Callable:
    def call(*args, **kwargs):
        reach(kind)
        return function(*args, **kwargs)

    return call


class CountedFile:
    """A file that counts the bytes read and written; after the moment, reading stops early."""

    def __init__(self, file: Any):
        self._file, self._short = file, False

    def read(self, size: int = -1):
        data = self._file.read(size)
        if not self._short and data and reach("read", len(data)):
            self._short = True
            return data[: len(data) // 2]
        return data[:0] if self._short else data

    def write(self, data):
        reach("written", len(data))
        return self._file.write(data)

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __iter__(self):
        return iter(self._file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def count_all(folder: Path) -> None:
    """Begin to count what this process does: bytes of files in the folder, batches, decoded pictures, and steps."""
    open_file = builtins.open

    def opened(file, mode="r", *args, **kwargs):
        opened_file = open_file(file, mode, *args, **kwargs)
        return CountedFile(opened_file) if str(file).startswith(str(folder)) else opened_file

    builtins.open = io.open = tarfile.bltn_open = opened
    os.replace, os.fsync = counted("step", os.replace), counted("step", os.fsync)
    ShardWriter.write = counted("step", ShardWriter.write)
    Trainer._step = counted("batch", Trainer._step)
    generate.captions.stages.decode_image = counted("picture", generate.captions.stages.decode_image)
    generate.reinforce.stages.decode_stored = counted("picture", generate.reinforce.stages.decode_stored)
