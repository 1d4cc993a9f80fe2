"""Recognises pictures: finds duplicates by bytes, or by key and appearance, and hashes what each input holds."""

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from imagetext.sample import Record, decode_image

SIDE = 16  # side, in pixels, of the small grey pictures that are compared
# Pictures look alike if their mean difference, of 255, is below this. Encodings and sizes of one photograph differ by
# 0 to 2.
ALIKE = 4


class Identity(NamedTuple):
    """The key of a picture and a hash of its bytes."""

    key: str
    hash: bytes


class Pictures(Protocol):
    """A set of pictures, each with an index."""

    @property
    def identities(self) -> Sequence[Identity]:
        """The key and hash of each picture."""
        ...

    def encoded(self, index: int) -> bytes | None:
        """Return the bytes of the picture."""
        ...


class HeldOutRecords:
    """Records in memory as a set of pictures, for `find_duplicates`."""

    def __init__(self, records: Sequence[Record]):
        self.records = records
        self.identities = [Identity(record.key, picture_hash(record.image)) for record in records]

    def encoded(self, index: int) -> bytes | None:
        return self.records[index].image


def picture_hash(data: bytes | None) -> bytes:
    """Return the hash of a picture's bytes."""
    return hashlib.blake2b(data or b"", digest_size=16).digest()


def find_duplicates(pictures: Pictures, held_out: Pictures, held_out_indices: Collection[int]) -> set[int]:
    """Return the indices of those `pictures` that are also among the given pictures of `held_out`.

    Two pictures are duplicates if they have the same bytes, or the same key and the same appearance. The same key
    alone is not enough, because two sets may both start with 000000.
    """
    hashes = {held_out.identities[index].hash for index in held_out_indices}
    indices_of_key: dict[str, list[int]] = {}  # several, if two held-out sets have pictures of one key
    for index in held_out_indices:
        indices_of_key.setdefault(held_out.identities[index].key, []).append(index)
    same_bytes = {index for index, identity in enumerate(pictures.identities) if identity.hash in hashes}
    same_key = [
        (index, held_out_index)
        for index, identity in enumerate(pictures.identities)
        if index not in same_bytes
        for held_out_index in indices_of_key.get(identity.key, ())
    ]
    with ThreadPoolExecutor() as pool:  # decoding releases Python's global lock
        are_alike = pool.map(lambda pair: look_alike(pictures.encoded(pair[0]), held_out.encoded(pair[1])), same_key)
        return same_bytes | {index for (index, _), alike in zip(same_key, are_alike, strict=True) if alike}


def look_alike(first: bytes | None, second: bytes | None) -> bool:
    """Return whether two encoded pictures look the same, whatever their sizes and encodings."""
    first_small, second_small = (
        np.asarray(decode_image(data).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=float)
        for data in (first, second)
    )
    return float(np.abs(first_small - second_small).mean()) < ALIKE


class InputHashes:
    """For each input file or folder, a hash of all records that were read from it, in their order."""

    def __init__(self) -> None:
        self._by_path: dict[str, hashlib.blake2b] = {}

    def add(self, path: str, record: Record, picture: bytes) -> None:
        """Add a record with the hash of its picture."""
        columns = (text for name, texts in record.columns.items() for text in (name, *texts))
        parts = [picture, *(text.encode("utf-8", "replace") for text in (record.key, *record.captions, *columns))]
        parts += [part for name, data in record.members.items() for part in (name.encode(), data)]
        hash = self._by_path.setdefault(path, hashlib.blake2b(digest_size=16))
        for part in parts:
            hash.update(len(part).to_bytes(8, "little"))
            hash.update(part)

    def hexdigest(self, path: str) -> str:
        """Return the hash of what was read from a path so far; "" if nothing was."""
        return self._by_path[path].hexdigest() if path in self._by_path else ""

    def hexdigests(self) -> dict[str, str]:
        """Return the hash of each input by its path."""
        return {path: hash.hexdigest() for path, hash in self._by_path.items()}
