"""The index of a run's records: what was found in its tars, so that a resumed run does not read and decode them again.

The index has a file for each uncompressed tar on this machine. The second line of the file is JSON; the first line is
a hash of the second and of all that decides it: the tar, the settings, and the versions of this file and of libraries.
If the hash is another one, the tar or a setting has changed, or the file is damaged or cut: the tar is read again.
"""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.checkpoints import explain_write_errors
from finetune.identity import Identity
from finetune.tar_files import TarFiles, is_local_tar
from imagetext.hashes import name_hash, sample_hash
from imagetext.outputs import write_file
from imagetext.sample import Record, Shard

FORMAT = 2  # another number for another form of the files, or if other records are found in the same tar
LIBRARIES = ("capsmith", "numpy", "pillow", "torch")  # they decide which records are usable


@dataclass
class Survey:
    """What was found in one shard.

    records: the usable records, each with its files if it is in a tar; then without what is read from these.
    identities: key and hash of each record's picture. has_negative: whether each record has a hard negative.
    rejects: (key, reason) of each record that cannot be used.
    failed_before: (key, reason) of each record that the input itself marks as failed.
    columns: names of columns that some usable record has. kinds: kinds of texts that some usable record has.
    input_hash: hash of what was read from the shard's path so far; "" if there was no usable record.
    """

    records: list[tuple[Record, TarFiles | None]] = field(default_factory=list)
    identities: list[Identity] = field(default_factory=list)
    has_negative: list[bool] = field(default_factory=list)
    rejects: list[tuple[str, str]] = field(default_factory=list)
    failed_before: list[tuple[str, str]] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)
    input_hash: str = ""

    def add(self, other: "Survey") -> None:
        """Add what was found in another shard, except its hash."""
        self.records += other.records
        self.identities += other.identities
        self.has_negative += other.has_negative
        self.rejects += other.rejects
        self.failed_before += other.failed_before
        self.columns |= other.columns
        self.kinds |= other.kinds


class RecordIndex:
    """The index in a folder.

    settings: all that decides, beside the tar, what is found in it; values of JSON.
    anew: whether all tars are read again, whatever the index has.
    """

    def __init__(self, folder: Path, *, settings: dict[str, Any], anew: bool = False):
        self.folder, self.anew = folder, anew
        self.settings = {"format": FORMAT, **{name: version(name) for name in LIBRARIES}, **settings}
        # For each tar: its file, all that decides the survey, the survey, and whether it is from the file.
        self._surveys: list[tuple[Path, bytes, Survey, bool]] = []

    def survey(self, shard: Shard, read: Callable[[Shard], Survey]) -> Survey:
        """Return what is found in a shard: by the index, otherwise by `read`. Nothing is written yet."""
        if not is_local_tar(shard):
            return read(shard)
        file = self.folder / f"{name_hash(shard.path, 'index', bits=128):032x}.json"  # a tar's name may be too long
        # This is settled before the tar is read, so that the next run notices a change during the reading.
        decisive = {"tar": shard.path, **shard.stamp, "sample": sample_hash(shard.path), "settings": self.settings}
        deciding = json.dumps(decisive, sort_keys=True).encode()
        known = None if self.anew else _load(file, deciding, shard.path)
        survey = known or read(shard)
        self._surveys.append((file, deciding, survey, known is not None))
        return survey

    def write(self) -> None:
        """Write what the folder does not have yet. Only the process that has the folder's lock may call this."""
        with explain_write_errors(self.folder):
            for file, deciding, survey, is_known in self._surveys:
                if not (is_known and file.exists()):  # known files may have been moved aside with an earlier run
                    content = _dump(survey)
                    write_file(file, _hash(deciding, content) + b"\n" + content)
        self._surveys.clear()


def _hash(deciding: bytes, content: bytes) -> bytes:
    """Return the first line of a file. Neither part has a line break."""
    return blake2b(deciding + b"\n" + content, digest_size=16).hexdigest().encode()


def _dump(survey: Survey) -> bytes:
    """Return the content of the file of a tar's survey."""
    records = [
        [sample.key, sample.captions, sample.columns, tar_files and tar_files.files, identity.hash.hex(), has_negative]
        for (sample, tar_files), identity, has_negative in zip(
            survey.records, survey.identities, survey.has_negative, strict=True
        )
    ]
    content = {
        "records": records,
        "rejects": survey.rejects,
        "failed_before": survey.failed_before,
        "columns": sorted(survey.columns),
        "kinds": sorted(survey.kinds),
        "input_hash": survey.input_hash,
    }
    return json.dumps(content, separators=(",", ":")).encode()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause garbage collection, which would go through all records again and again while more are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_no_garbage_collection()
def _load(file: Path, deciding: bytes, path: str) -> Survey | None:
    """Return the survey of the tar at a path from its file; None if the file is missing, out of date or damaged."""
    try:
        hash, _, content = file.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hash != _hash(deciding, content):
        return None
    found = json.loads(content)
    survey = Survey(
        rejects=[(key, reason) for key, reason in found["rejects"]],
        failed_before=[(key, reason) for key, reason in found["failed_before"]],
        columns=set(found["columns"]),
        kinds=set(found["kinds"]),
        input_hash=found["input_hash"],
    )
    for key, captions, columns, files, picture, has_negative in found["records"]:
        sample = Record(key, None, tuple(captions), columns={name: tuple(texts) for name, texts in columns.items()})
        positions = {suffix: (offset, size) for suffix, (offset, size) in files.items()}
        survey.records.append((sample, TarFiles(path, positions)))
        survey.identities.append(Identity(key, bytes.fromhex(picture)))
        survey.has_negative.append(has_negative)
    return survey
