"""Which picture is which: of the same bytes, or of the same key and the same look; and what was read of each input."""

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from imagetext.sample import Record, decode_image

SIDE = 16  # pixels of the small grey pictures that are compared
ALIKE = 4  # of 255: their mean difference is below; other encodings and sizes of one photograph differ by 0 to 2


class Identity(NamedTuple):
    """A picture's key, and a hash of its bytes: files of one path have the same."""

    key: str
    hash: bytes


class Pictures(Protocol):
    """Pictures by number."""

    @property
    def identities(self) -> Sequence[Identity]:
        """Which picture is which."""
        ...

    def encoded(self, index: int) -> bytes | None:
        """The picture's bytes."""
        ...


class HeldOutRecords:
    """Records with their pictures' bytes, by number."""

    def __init__(self, records: Sequence[Record]):
        self.records = records
        self.identities = [Identity(record.key, picture_hash(record.image)) for record in records]

    def encoded(self, index: int) -> bytes | None:
        return self.records[index].image


def picture_hash(data: bytes | None) -> bytes:
    """The hash of a picture's bytes."""
    return hashlib.blake2b(data or b"", digest_size=16).digest()


def find_duplicates(pictures: Pictures, held: Pictures, numbers: Collection[int]) -> set[int]:
    """Which of `pictures` are among these numbers of `held`: by their bytes, or by key, where they look alike, too.

    A key alone says little: two sets may both begin with 000000.
    """
    hashes = {held.identities[number].hash for number in numbers}
    by_key = {held.identities[number].key: number for number in numbers}
    same_bytes = {number for number, (_, hash) in enumerate(pictures.identities) if hash in hashes}
    same_key = [
        (number, by_key[key])
        for number, (key, _) in enumerate(pictures.identities)
        if key in by_key and number not in same_bytes
    ]
    with ThreadPoolExecutor() as pool:  # pictures decode without Python's lock
        looks = pool.map(lambda pair: look_alike(pictures.encoded(pair[0]), held.encoded(pair[1])), same_key)
        return same_bytes | {number for (number, _), are_alike in zip(same_key, looks, strict=True) if are_alike}


def look_alike(first: bytes | None, second: bytes | None) -> bool:
    """Whether two encoded pictures look the same, whatever their sizes and encodings."""
    first_small, second_small = (
        np.asarray(decode_image(data).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float)
        for data in (first, second)
    )
    return float(np.abs(first_small - second_small).mean()) < ALIKE


class InputHashes:
    """A hash of all records that were read of each input file or folder, in their order."""

    def __init__(self) -> None:
        self._by_path: dict[str, hashlib.blake2b] = {}

    def add(self, path: str, record: Record, picture: bytes) -> None:
        """Adds a record with the hash of its picture."""
        columns = (text for name, texts in record.columns.items() for text in (name, *texts))
        parts = [picture, *(text.encode("utf-8", "replace") for text in (record.key, *record.captions, *columns))]
        parts += [part for name, data in record.members.items() for part in (name.encode(), data)]
        hash = self._by_path.setdefault(path, hashlib.blake2b(digest_size=16))
        for part in parts:
            hash.update(len(part).to_bytes(8, "little"))
            hash.update(part)

    def hexdigests(self) -> dict[str, str]:
        return {path: hash.hexdigest() for path, hash in self._by_path.items()}
