"""Hashes of names, equal in every process and on every machine, and hashes of files."""

import os
from functools import lru_cache
from hashlib import blake2b, sha256

from imagetext.stores import is_remote, open_file

SAMPLE = 1 << 16  # bytes of each of the three parts of a file that are hashed
BLOCK = 1 << 20  # bytes that are read at a time


def name_hash(name: str, purpose: str = "", *, seed: int = 0, bits: int = 64) -> int:
    """A hash of a name, with evenly spread bits.

    Hashes of the same name with another purpose (up to 16 bytes) or seed are independent of it.
    """
    digest = _empty_hash(purpose, seed, bits).copy()
    digest.update(name.encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest(), "little")


@lru_cache(maxsize=64)
def _empty_hash(purpose: str, seed: int, bits: int) -> "blake2b":
    """Return the hash of no bytes; copies of it are made faster than new hashes of these settings."""
    return blake2b(digest_size=bits // 8, salt=seed.to_bytes(16, "little"), person=purpose.encode())


def sample_hash(path: str) -> str:
    """The hash of the first, the middle and the last SAMPLE bytes of a file on this machine; "" for everything else.

    Raises OSError if the file cannot be read.
    """
    if is_remote(path) or not os.path.isfile(path):
        return ""
    digest = sha256()
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        for start in (0, end // 2, max(0, end - SAMPLE)):
            file.seek(start)
            data = file.read(SAMPLE)
            if len(data) != min(SAMPLE, end - start):
                raise OSError(f"{path}: {len(data)} of {min(SAMPLE, end - start)} bytes were read from offset {start}")
            digest.update(data)
    return digest.hexdigest()


def file_hash(path: str) -> tuple[str, int]:
    """The SHA-256 and the size in bytes of a file, on this machine or in a store."""
    digest, size = sha256(), 0
    with open_file(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size
