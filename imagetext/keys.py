"""Keys of samples: unique in a shard, and safe as names in a tar."""

import hashlib
import logging
import re
from urllib.parse import unquote

logger = logging.getLogger(__name__)

LONGEST, BEGINNING = 1000, 64  # characters of a key's name in a tar; and what stays of a longer key


def encode_key(key: str) -> str:
    """The key as a name in a tar: all but `A-Z a-z 0-9 _ - /` is percent-encoded, and so is a slash at either end."""

    def encode(match: re.Match) -> str:
        return "".join(f"%{byte:02X}" for byte in match[0].encode())

    return re.sub(r"^/|/\Z|[^A-Za-z0-9_/-]", encode, key)


def decode_key(name: str) -> str:
    """The key that `encode_key` made this name of; a name that was never encoded stays as it is."""
    return unquote(name, errors="replace") if re.fullmatch(r"(?:[A-Za-z0-9_/-]|%[0-9A-F]{2})*", name) else name


def shortened(key: str) -> str:
    """The key, or where its name in a tar would be longer than LONGEST, its beginning and a hash of the whole."""
    if 12 * len(key) <= LONGEST or len(encode_key(key)) <= LONGEST:  # a character is four bytes at most, of three each
        return key
    return f"{key[:BEGINNING]}~{hashlib.sha256(key.encode()).hexdigest()[:32]}"


class SeenKeys:
    """The keys of one shard so far: a key seen twice becomes `KEY~2`, and a warning says so of the first TOLD; so of long ones."""

    TOLD = 10

    def __init__(self, shard: str):
        self.shard, self.told = shard, 0
        self.seen: dict[str, int] = {}  # by key, the last number that was tried

    def unique(self, key: str) -> str:
        """The key, or the first of `KEY~2`, `KEY~3`, ... that is new."""
        given = key.encode("utf-8", "backslashreplace").decode()  # a file name may hold bytes that are no text
        if (key := shortened(given)) != given:
            self._tell("%s: a key of %s characters becomes %r", f"{len(given):,}", key)
        unique, number = key, self.seen.get(key, 1)
        while unique in self.seen:
            number += 1
            unique = f"{key}~{number}"
        if unique != key:
            self.seen[key] = number
            self._tell("%s: key %r seen twice, the later one becomes %r", key, unique)
        self.seen[unique] = 1
        return unique

    def _tell(self, message: str, *values: str) -> None:
        self.told += 1
        if self.told <= self.TOLD:
            logger.warning(message, self.shard, *values)
        if self.told == self.TOLD + 1:
            logger.warning("%s: more keys are seen twice, or too long", self.shard)
