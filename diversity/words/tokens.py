"""Captions as words, and words as arrays.

P: pictures   C: captions of all of them   W: words of all captions   V: different words
K: chunks, what stands between white space   U: different chunks
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import regex

from imagetext.hashes import name_hash

# Written without blanks: each character with its marks is a word, as is usual for Chinese.
_NO_BLANKS = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ーｰ\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&[\p{L}\p{Nl}]]"
_MARKS = r"\p{M}\u200c\u200d"  # and what joins or parts letters in Persian and Indian scripts
_LETTER, _IN_WORD = rf"[[\p{{L}}\p{{N}}]--{_NO_BLANKS}]", rf"[[\p{{L}}\p{{N}}{_MARKS}]--{_NO_BLANKS}]"
_CHARACTER = rf"{_NO_BLANKS}[{_MARKS}ำຳ]*+"  # Thai and Lao AM is a letter to Unicode, and part of the one before it
_WORD = rf"{_LETTER}{_IN_WORD}*+(?:['·׳״]{_LETTER}{_IN_WORD}*+)*+|{_CHARACTER}"
_WORDS = regex.compile(_WORD, regex.VERSION1)
_PIECES = regex.compile(rf"{_WORD}|[^\w\s]", regex.VERSION1)
_ONE_CHARACTER = regex.compile(_NO_BLANKS, regex.VERSION1)
_ASCII_WORDS = re.compile(r"[a-z0-9]+(?:'[a-z0-9]+)*")  # what _WORDS finds in ASCII, in a third of the time
_ASCII_PIECES = re.compile(rf"{_ASCII_WORDS.pattern}|[^\w\s]", re.IGNORECASE)
_UNITS = regex.compile(rf"\s*+(?:{_CHARACTER}|(?:(?!{_NO_BLANKS})\S)++)", regex.VERSION1)
_MANY_MARKS = regex.compile(
    r"(\p{M}{30})\p{M}++"
)  # no writing needs more, and putting them in order takes their number squared
_UNSEEN = regex.compile(
    r"[[\p{Cf}\ufe00-\ufe0f]--[\u200b-\u200d]]", regex.VERSION1
)  # soft hyphens, directions, emoji styles
_APOSTROPHES = regex.compile("[’‘ʼ´＇]")
_END = "\0"  # between captions: neither a letter nor white space
LONG_CHUNK = 64  # characters; what is longer is read anew each time, so that what is remembered stays small

TOKENIZER = (
    "capsmith words 2: NFC, lower case, runs of letters, marks and digits with inner apostrophes, punctuation dropped; "
    "each character of Chinese, Japanese, Thai, Lao, Khmer and Burmese"
)


def words(caption: str) -> list[str]:
    """The words of a caption as every measure counts them (see `TOKENIZER`).

    Punctuation is dropped, as in COCO's evaluation: three human captions in four end in a full stop and few machine
    captions do, which says nothing about either.
    """
    return (_ASCII_WORDS if caption.isascii() else _WORDS).findall(folded(caption))


def pieces(caption: str, fold: bool = True) -> list[str]:
    """The words of a caption and its punctuation marks, in order; as they are written unless `fold`."""
    return (_ASCII_PIECES if caption.isascii() else _PIECES).findall(folded(caption) if fold else caption)


def is_written_without_blanks(word: str) -> bool:
    """Whether a word is a character of a script without blanks."""
    return _ONE_CHARACTER.match(word) is not None


def units(text: str) -> list[str]:
    """What a text may be cut between, joined the text again: words with marks and the blanks before them, or characters."""
    return _UNITS.findall(text)


def folded(caption: str) -> str:
    """The caption in lower case, each character in one form: é, the Turkish İ as i, every apostrophe as the straight one."""
    if caption.isascii():
        return caption.lower()
    caption = unicodedata.normalize("NFC", _MANY_MARKS.sub(r"\1", _UNSEEN.sub("", caption)))
    return _APOSTROPHES.sub("'", caption.lower().replace("i\u0307", "i"))


@dataclass(frozen=True, eq=False)
class Tokens:
    """The captions of some pictures, flat: the words of caption c are words[caption_ends[c]:caption_ends[c + 1]]."""

    vocabulary: list[str]  # (V,)
    ids: np.ndarray  # (W,) each word's place in the vocabulary
    hashes: np.ndarray  # (W,) uint64
    caption_ends: np.ndarray  # (C + 1,) first word of each caption, then W
    picture_ends: np.ndarray  # (P + 1,) first caption of each picture, then C
    chunks: list[str]  # (U,) as written
    chunk_ids: np.ndarray  # (K,)
    chunk_ends: np.ndarray  # (C + 1,) first chunk of each caption, then K

    @property
    def pictures(self) -> int:
        return len(self.picture_ends) - 1

    @cached_property
    def words(self) -> list[str]:  # (W,)
        return [self.vocabulary[at] for at in self.ids.tolist()]

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
    """The captions of each picture as `Tokens`: `words` of each caption, but a chunk that comes again is read once."""
    groups = list(groups)
    captions = [caption for group in groups for caption in group]
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # the next number
    numbers[_END]
    split = f" {_END} ".join([*captions, ""]).split()
    chunk_ids = np.fromiter(map(numbers.__getitem__, split), np.int64, len(split))
    numbers.default_factory = None
    ends = np.flatnonzero(chunk_ids == 0)
    if len(ends) != len(captions):  # a caption holds the end mark, which is no part of a word
        return encode([[caption.replace(_END, " ") for caption in group] for group in groups])
    chunks, chunk_ids = list(numbers)[1:], chunk_ids[chunk_ids != 0] - 1
    chunk_ends = np.concatenate([[0], ends - np.arange(len(ends))])

    read = [_read_short(chunk) if len(chunk) <= LONG_CHUNK else _read(chunk) for chunk in chunks]
    hash_of = {word: value for found in read for word, value in found}
    id_of = {word: at for at, word in enumerate(hash_of)}
    sizes = np.fromiter(map(len, read), np.int64, len(read))  # (U,) words of each chunk
    of_chunks = np.array([id_of[word] for found in read for word, _ in found], np.int64)
    lengths = sizes[chunk_ids]  # (K,)
    word_ends = np.concatenate([[0], np.cumsum(lengths)])  # (K + 1,)
    starts = (np.cumsum(sizes) - sizes)[chunk_ids] - word_ends[:-1]
    ids = of_chunks[np.arange(word_ends[-1]) + np.repeat(starts, lengths)]  # (W,)
    hashes = np.fromiter(hash_of.values(), np.uint64, len(hash_of))[ids]
    picture_ends = np.cumsum([0, *map(len, groups)])
    return Tokens(list(hash_of), ids, hashes, word_ends[chunk_ends], picture_ends, chunks, chunk_ids, chunk_ends)


def _read(chunk: str) -> tuple[tuple[str, int], ...]:
    """The words of a chunk with 64 bits of each."""
    return tuple((word, name_hash(word)) for word in words(chunk))


_read_short = lru_cache(maxsize=1 << 17)(_read)
