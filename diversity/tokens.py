"""Captions as words, and words as arrays.

P: pictures   C: captions of all of them   W: words of all captions
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b

import numpy as np

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # written without spaces: each character is a word
_WORD = rf"[{_CJK}]|[^\W_{_CJK}]+(?:['’][^\W_{_CJK}]+)*"
_WORDS = re.compile(_WORD)
_PIECES = re.compile(rf"{_WORD}|[^\w\s]")

TOKENIZER = "capsmith words 1: NFC, lower case, runs of letters and digits with inner apostrophes, punctuation dropped"


def words(caption: str) -> list[str]:
    """The words of a caption as every measure counts them (see `TOKENIZER`).

    Punctuation is dropped, as in COCO's evaluation: three human captions in four end in a full stop and few machine
    captions do, which says nothing about either.
    """
    return _WORDS.findall(_normalised(caption))


def pieces(caption: str) -> list[str]:
    """The words of a caption and its punctuation marks, in order."""
    return _PIECES.findall(_normalised(caption))


def _normalised(caption: str) -> str:
    return (caption if caption.isascii() else unicodedata.normalize("NFC", caption)).lower()


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    """64 bits of the word that are the same in every process and on every machine, unlike `hash`."""
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True, eq=False)
class Tokens:
    """The words of the captions of some pictures, flat: caption c is words[caption_ends[c]:caption_ends[c + 1]]."""

    words: list[str]            # (W,)
    hashes: np.ndarray          # (W,) uint64
    caption_ends: np.ndarray    # (C + 1,) first word of each caption, then W
    picture_ends: np.ndarray    # (P + 1,) first caption of each picture, then C

    @property
    def pictures(self) -> int:
        return len(self.picture_ends) - 1

    @cached_property
    def lengths(self) -> np.ndarray:  # (C,) words per caption
        return np.diff(self.caption_ends)

    @cached_property
    def counts(self) -> np.ndarray:  # (P,) captions per picture
        return np.diff(self.picture_ends)

    @cached_property
    def caption_of_word(self) -> np.ndarray:  # (W,)
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def picture_of_caption(self) -> np.ndarray:  # (C,)
        return np.repeat(np.arange(self.pictures), self.counts)


def encode(groups: Iterable[Sequence[str]]) -> Tokens:
    """The captions of each picture as `Tokens`."""
    found: list[str] = []
    lengths, counts = [0], [0]
    for group in groups:
        counts.append(len(group))
        for caption in group:
            of_caption = words(caption)
            lengths.append(len(of_caption))
            found += of_caption
    hashes = np.fromiter(map(_word_hash, found), np.uint64, len(found))
    return Tokens(found, hashes, np.cumsum(lengths), np.cumsum(counts))
