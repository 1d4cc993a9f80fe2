"""Keys of samples: unique in a shard, and safe as names in a tar."""

import logging
import re
from urllib.parse import unquote

logger = logging.getLogger(__name__)


def encode_key(key: str) -> str:
    """The key as a name in a tar: all but `A-Z a-z 0-9 _ - /` is percent-encoded, and so is a slash at either end."""

    def encode(match: re.Match) -> str:
        return "".join(f"%{byte:02X}" for byte in match[0].encode())

    return re.sub(r"^/|/\Z|[^A-Za-z0-9_/-]", encode, key)


def decode_key(name: str) -> str:
    """The key that `encode_key` made this name of; a name that was never encoded stays as it is."""
    return unquote(name, errors="replace") if re.fullmatch(r"(?:[A-Za-z0-9_/-]|%[0-9A-F]{2})*", name) else name


class SeenKeys:
    """The keys of one shard so far: a key seen twice becomes `KEY~2`, and a warning says so of the first TOLD."""

    TOLD = 10

    def __init__(self, shard: str):
        self.shard, self.told = shard, 0
        self.seen: dict[str, int] = {}  # by key, the last number that was tried

    def unique(self, key: str) -> str:
        """The key, or the first of `KEY~2`, `KEY~3`, ... that is new."""
        key = key.encode("utf-8", "backslashreplace").decode()  # a file name may hold bytes that are no text
        unique, number = key, self.seen.get(key, 1)
        while unique in self.seen:
            number += 1
            unique = f"{key}~{number}"
        if unique != key:
            self.seen[key], self.told = number, self.told + 1
            if self.told <= self.TOLD:
                logger.warning("%s: key %r seen twice, the later one becomes %r", self.shard, key, unique)
            if self.told == self.TOLD + 1:
                logger.warning("%s: more keys are seen twice", self.shard)
        self.seen[unique] = 1
        return unique
