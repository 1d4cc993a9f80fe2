"""Keys of samples: unique in a shard, and safe as names in a tar."""

import hashlib
import logging
import re
from typing import Any
from urllib.parse import unquote

logger = logging.getLogger(__name__)

LONGEST = 1000  # characters of a key's name in a tar
BEGINNING = 64  # characters of a longer key that are kept


def encode_key(key: str) -> str:
    """The key as a name in a tar.

    All characters except `A-Z a-z 0-9 _ - /` are percent-encoded, and so is a slash at the beginning or the end.
    """

    def encode(match: re.Match) -> str:
        return "".join(f"%{byte:02X}" for byte in match[0].encode())

    return re.sub(r"^/|/\Z|[^A-Za-z0-9_/-]", encode, key)


def decode_key(name: str) -> str:
    """The key that `encode_key` turned into this name. A name that was never encoded is returned unchanged."""
    return unquote(name, errors="replace") if re.fullmatch(r"(?:[A-Za-z0-9_/-]|%[0-9A-F]{2})*", name) else name


def shortened(key: str) -> str:
    """The key, or its beginning and a hash of it if its name in a tar would be longer than LONGEST."""
    # A character is at most four bytes, and an encoded byte is three characters.
    if 12 * len(key) <= LONGEST or len(encode_key(key)) <= LONGEST:
        return key
    return f"{key[:BEGINNING]}~{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def text_of(name: Any) -> str:
    """The name of a record, a picture or a class as text.

    A whole number is written without a fraction: other tools store the numbers of a column as 1.0 if one is missing.
    """
    if isinstance(name, bytes):
        return name.decode("utf-8", "backslashreplace")
    return str(int(name) if isinstance(name, float) and name.is_integer() else name)


class SeenKeys:
    """The keys of one shard so far. It makes a repeated key unique (`KEY~2`) and shortens a key that is too long.

    The first MAX_WARNINGS changes are logged as warnings.
    """

    MAX_WARNINGS = 10

    def __init__(self, shard: str):
        self.shard, self.changes = shard, 0
        self.seen: dict[str, int] = {}  # by key, the last number that was tried

    def unique(self, key: str) -> str:
        """The key, or the first new one of `KEY~2`, `KEY~3`, ..."""
        full_key = key.encode("utf-8", "backslashreplace").decode()  # a file name may hold bytes that are not text
        if (key := shortened(full_key)) != full_key:
            self._warn("%s: a key of %s characters is too long and becomes %r", f"{len(full_key):,}", key)
        unique, number = key, self.seen.get(key, 1)
        while unique in self.seen:
            number += 1
            unique = f"{key}~{number}"
        if unique != key:
            self.seen[key] = number
            self._warn("%s: key %r seen twice, the later one becomes %r", key, unique)
        self.seen[unique] = 1
        return unique

    def _warn(self, message: str, *values: str) -> None:
        self.changes += 1
        if self.changes <= self.MAX_WARNINGS:
            logger.warning(message, self.shard, *values)
        if self.changes == self.MAX_WARNINGS + 1:
            logger.warning("%s: further keys that are seen twice or too long are not listed", self.shard)
