"""Split captions into words, and store the words of many captions in arrays.

P: pictures   C: captions of all pictures   W: words of all captions   V: different words
K: chunks of all captions, which are the stretches between white space   U: different chunks
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

# Scripts without blanks: each character with its marks is a word, as is usual for Chinese.
_NO_BLANKS = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ーｰ\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&[\p{L}\p{Nl}]]"
_MARKS = r"\p{M}\u200c\u200d"  # with the joiners of letters in Persian and Indian scripts
_LETTER, _IN_WORD = rf"[[\p{{L}}\p{{N}}]--{_NO_BLANKS}]", rf"[[\p{{L}}\p{{N}}{_MARKS}]--{_NO_BLANKS}]"
# Thai and Lao AM are letters in Unicode, but part of the letter before them.
_CHARACTER = rf"{_NO_BLANKS}[{_MARKS}ำຳ]*+"
_WORD = rf"{_LETTER}{_IN_WORD}*+(?:['·׳״]{_LETTER}{_IN_WORD}*+)*+|{_CHARACTER}"
_WORDS = regex.compile(_WORD, regex.VERSION1)
_PIECES = regex.compile(rf"{_WORD}|[^\w\s]", regex.VERSION1)
_ONE_CHARACTER = regex.compile(_NO_BLANKS, regex.VERSION1)
_ASCII_WORDS = re.compile(r"[a-z0-9]+(?:'[a-z0-9]+)*")  # what _WORDS finds in ASCII, in a third of the time
_ASCII_PIECES = re.compile(rf"{_ASCII_WORDS.pattern}|[^\w\s]", re.IGNORECASE)
_UNITS = regex.compile(rf"\s*+(?:{_CHARACTER}|(?:(?!{_NO_BLANKS})\S)++)", regex.VERSION1)
# More than 30 marks on a letter are cut: no script needs more, and the time to sort them grows with the square of
# their number.
_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}++")
# Soft hyphens, directions of writing, and styles of emoji.
_INVISIBLE = regex.compile(r"[[\p{Cf}\ufe00-\ufe0f]--[\u200b-\u200d]]", regex.VERSION1)
_APOSTROPHES = regex.compile("[’‘ʼ´＇]")
_END = "\0"  # separates captions; it is neither a letter nor white space
LONG_CHUNK = 64  # in characters; results for longer chunks are not cached, so that the caches stay small

TOKENIZER = (
    "capsmith words 2: NFC, lower case, runs of letters, marks and digits with inner apostrophes, punctuation "
    "dropped; each character of Chinese, Japanese, Thai, Lao, Khmer and Burmese"
)


def words(caption: str) -> list[str]:
    """Return the words of a caption as every measure counts them (see `TOKENIZER`).

    Punctuation is dropped, as in COCO's evaluation: three in four human captions end with a full stop and few captions
    of models do, which says nothing about their quality.
    """
    return (_ASCII_WORDS if caption.isascii() else _WORDS).findall(folded(caption))


def pieces(caption: str, fold: bool = True) -> list[str]:
    """Return the words and the punctuation marks of a caption in order; as they are written if `fold` is False."""
    return (_ASCII_PIECES if caption.isascii() else _PIECES).findall(folded(caption) if fold else caption)


def is_written_without_blanks(word: str) -> bool:
    """Return whether a word is a character of a script without blanks."""
    return _ONE_CHARACTER.match(word) is not None


def units(text: str) -> list[str]:
    """Split a text into units between which it may be cut; joined they are the text again.

    A unit is a word with its punctuation and the blanks before it, or a character of a script without blanks.
    """
    return _UNITS.findall(text)


def folded(caption: str) -> str:
    """Return the caption in lower case with one form of each character.

    é is composed, the Turkish İ becomes i, and apostrophes are straight.
    """
    if caption.isascii():
        return caption.lower()
    caption = unicodedata.normalize("NFC", _MANY_MARKS.sub(r"\1", _INVISIBLE.sub("", caption)))
    return _APOSTROPHES.sub("'", caption.lower().replace("i\u0307", "i"))


@dataclass(frozen=True, eq=False)
class Tokens:
    """The words of the captions of some pictures; caption c has words[caption_ends[c]:caption_ends[c + 1]]."""

    vocabulary: list[str]  # (V,)
    ids: np.ndarray  # (W,) index of each word in the vocabulary
    hashes: np.ndarray  # (W,) uint64
    caption_ends: np.ndarray  # (C + 1,) index of the first word of each caption, then W
    picture_ends: np.ndarray  # (P + 1,) index of the first caption of each picture, then C
    chunks: list[str]  # (U,) as they are written
    chunk_ids: np.ndarray  # (K,) index of each chunk in `chunks`
    chunk_ends: np.ndarray  # (C + 1,) index of the first chunk of each caption, then K

    @property
    def pictures(self) -> int:
        return len(self.picture_ends) - 1

    @cached_property
    def words(self) -> list[str]:  # (W,)
        return [self.vocabulary[word_id] for word_id in self.ids.tolist()]

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
    """Split the captions of each picture into words, as `words` does; each different chunk is split once."""
    groups = list(groups)
    captions = [caption for group in groups for caption in group]
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # gives a new chunk the next number
    numbers[_END]
    split = f" {_END} ".join([*captions, ""]).split()
    chunk_ids = np.fromiter(map(numbers.__getitem__, split), np.int64, len(split))
    numbers.default_factory = None
    ends = np.flatnonzero(chunk_ids == 0)
    if len(ends) != len(captions):  # a caption contains the separator, which is part of no word
        return encode([[caption.replace(_END, " ") for caption in group] for group in groups])
    chunks, chunk_ids = list(numbers)[1:], chunk_ids[chunk_ids != 0] - 1
    chunk_ends = np.concatenate([[0], ends - np.arange(len(ends))])

    hashed = [_hashed_words_cached(chunk) if len(chunk) <= LONG_CHUNK else _hashed_words(chunk) for chunk in chunks]
    hash_of = {word: word_hash for chunk_words in hashed for word, word_hash in chunk_words}
    id_of = {word: number for number, word in enumerate(hash_of)}
    sizes = np.fromiter(map(len, hashed), np.int64, len(hashed))  # (U,) words of each different chunk
    ids_of_chunks = np.array([id_of[word] for chunk_words in hashed for word, _ in chunk_words], np.int64)
    lengths = sizes[chunk_ids]  # (K,)
    word_ends = np.concatenate([[0], np.cumsum(lengths)])  # (K + 1,)
    starts = (np.cumsum(sizes) - sizes)[chunk_ids] - word_ends[:-1]
    ids = ids_of_chunks[np.arange(word_ends[-1]) + np.repeat(starts, lengths)]  # (W,)
    return Tokens(
        vocabulary=list(hash_of),
        ids=ids,
        hashes=np.fromiter(hash_of.values(), np.uint64, len(hash_of))[ids],
        caption_ends=word_ends[chunk_ends],
        picture_ends=np.cumsum([0, *map(len, groups)]),
        chunks=chunks,
        chunk_ids=chunk_ids,
        chunk_ends=chunk_ends,
    )


def _hashed_words(chunk: str) -> tuple[tuple[str, int], ...]:
    """Return the words of a chunk, each with a 64-bit hash."""
    return tuple((word, name_hash(word)) for word in words(chunk))


_hashed_words_cached = lru_cache(maxsize=1 << 17)(_hashed_words)
