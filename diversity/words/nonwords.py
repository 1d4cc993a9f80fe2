"""Find what is not words: senseless numbers, file names, random letters, and wrongly decoded characters."""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from diversity.words.loops import SAYING
from diversity.words.tokens import LONG_CHUNK, words

LONGEST_WORD = 40  # in letters
LONGEST_NUMBER = 13  # in digits, for telephone and article numbers
LONGEST_IN_GROUPS = 19  # the same in groups of digits, for card numbers
BEFORE = 40  # characters before a row of numbers, in which a word such as "reads" is looked for

_DIGIT = re.compile(r"\d")
_NUMBERS = re.compile(r"(?<!\d)\d++(?:\s++\d++){2,}+")
_LONG_NUMBER = re.compile(rf"(?<!\d)(?<!\d\.)\d{{{LONGEST_NUMBER + 1}}}\d*+")  # not the digits of a fraction
_QUOTED = re.compile(r"[\"“”„«»‘’'][\d\s.,:/-]++[\"“”«»‘’']")  # a text on a thing in the picture


def senseless_numbers(caption: str) -> int:
    """Count the numbers that are too long, or in rows that make no sense; what a sign reads may be any numbers."""
    if not _DIGIT.search(caption):
        return 0
    caption = _QUOTED.sub("", caption)
    rows = [
        row
        for run in _NUMBERS.finditer(caption)
        if not _is_sensible(row := run[0].split())
        and SAYING.isdisjoint(words(caption[max(run.start() - BEFORE, 0) : run.start()])[-3:])
    ]
    return len(_LONG_NUMBER.findall(caption)) + sum(map(len, rows))


def _is_sensible(numbers: Sequence[str]) -> bool:
    """Return whether numbers count in equal steps, rise, or can be a telephone, card or article number in groups."""
    first, *others = numbers
    lengths = {len(number) for number in numbers}
    if max(lengths) > LONGEST_NUMBER:
        return False
    steps = [int(after) - int(before) for before, after in pairwise(numbers)]
    if len(set(steps)) == 1 and steps[0] != 0:
        return True
    if min(steps) > 0 and (len(lengths) == 1 or len(numbers) > 3):  # not the date "4 17 2019"
        return True
    return (
        7 <= sum(map(len, numbers)) <= LONGEST_IN_GROUPS
        and (len(first) > 1 or first in "01" or min(map(len, others)) > 2)
        and all(len(number) > 1 for number in others)
    )


# Also what is left of JSON, of HTML, and of tokenizers: "\\n", "&amp;", "⁇", "##ing".
UNDECODED = re.compile(
    r"[\ufffd\u2047\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\\"|\\n(?![a-z])"
    r"|&(?:#x?[0-9a-fA-F]{2,6}|amp|nbsp|quot|apos|lt|gt);|(?<!\S)##[a-z]"
)
_SUSPICIOUS = re.compile(r"[.:\d]\w|://|([a-z])\1\1|[bcdfghjklmnpqrstvwxz]{5}")
_ADDRESS = re.compile(
    r"(?:https?://|www\.)\S|\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|pdf|html?)\b"
    r"|\b(?:img|dsc[nf]?|pict?|image|photo|screenshot|dcim|mvi|vid|pxl|wp)[_-]?\d{3,}"
)
_LETTERS_AND_DIGITS = re.compile(r"[a-z]+\d+[a-z]+\d+|\d+[a-z]+\d+[a-z]+")  # a1b2, not mp3, 4x4 or h2o
_ONE_LETTER = re.compile(r"([a-z])\1{3}|\b([a-z])\2\2\b")  # zzz; German has "Balletttänzer"
_NO_VOWEL = re.compile(r"[bcdfghjkmnpqstvwxz]{5}|[bcdfghjklmnpqrstvwxz]{6,}")  # Czech has "zmrzl"
_ROMAN = re.compile(r"[ivxlcdm]+")
# UTF-8 that was read as cp1252 or Latin-1, or as cp1251, has letters before characters that do not follow letters.
# Correct text may have "É »", "MENÜ“" and "MAÇÃ”.
_TYPE, _AFTER = "\xa0«»‘’“”", "\x80-\x9f¡-ª¬-º¼-¿€‚ƒ„…†‡ˆ‰Š‹ŒŽ•–—˜™š›œžŸ"
_CYRILLIC = bytes(range(0x80, 0xC0)).decode("cp1251", "ignore")
_MISREAD = re.compile(
    rf"[ÃÂ][{_AFTER}]|(?<![A-ZÀ-Þ])[ÃÂ][{_TYPE}]|â[\x80€][{_AFTER}{_TYPE}]|(?:[Ä-ß][{_AFTER}{_TYPE}]){{2}}"
    rf"|(?:[à-ï][{_AFTER}{_TYPE}]{{2}}){{2}}|ð[\x9fŸ][{_AFTER}{_TYPE}]{{2}}"
    rf"|(?:[РС][{_CYRILLIC}]){{3}}"
)
# A word of ASCII letters that is too long for most abbreviations, and no name such as "iPhone".
_PLAIN_WORD = re.compile(r"(?<![\w'])[A-Za-z][a-z]{3,}+(?!['\w])")
# For each letter, ten times the logarithm of how much likelier it is among random letters than in words, less 0.5.
# The values were fitted to frequent words of 28 languages, without their accents.
_RANDOMNESS = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz",
        (-14, 7, 3, 2, -14, 9, 6, 3, -10, 11, 4, -1, 5, -4, -13, 6, 29, -2, -2, -2, -5, 10, 9, 22, 1, 8),
    )
)
RANDOM = 40  # sum of these values from which a caption of at least RANDOM_LETTERS is random
RANDOM_LETTERS = 12
_HAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uff61-\uff9f]{8,}")


def is_misread(text: str) -> bool:
    """Return whether UTF-8 was read in another encoding: "cafÃ©", "â€œ", "РџСЂРё", "锟斤拷"."""
    return not text.isascii() and (_MISREAD.search(text) is not None or any(map(_is_misread_han, _HAN.findall(text))))


def _is_misread_han(run: str) -> bool:
    """Return whether nearly all bytes of Chinese or Japanese characters are such characters in UTF-8."""
    for encoding in ("gbk", "shift_jis"):
        encoded = run.encode(encoding, "ignore")
        characters = sum(character >= "\u0800" for character in encoded.decode("utf-8", "ignore"))
        if 3 * characters > 0.7 * len(encoded) > 0:  # such a character has three bytes in UTF-8
            return True
    return False


def is_random(caption: str) -> bool:
    """Return whether the words of a caption are random letters rather than words of a language."""
    if not caption.isascii():
        return False
    letters, values = map(sum, zip((0, 0), *map(randomness, caption.split())))
    return letters >= RANDOM_LETTERS and values >= RANDOM


def randomness(chunk: str) -> tuple[int, int]:
    """Return how many letters the words of a chunk have, and the sum of their values."""
    return (_randomness_short if len(chunk) <= LONG_CHUNK else _randomness)(chunk)


def _randomness(chunk: str) -> tuple[int, int]:
    letters = "".join(_PLAIN_WORD.findall(chunk)).lower()
    return len(letters), sum(map(_RANDOMNESS.__getitem__, letters))


_randomness_short = lru_cache(maxsize=1 << 16)(_randomness)


def has_nonwords(caption: str, caption_words: Sequence[str]) -> bool:
    """Return whether a third of a caption in lower case is not words, or a character could not be decoded."""
    if UNDECODED.search(caption):
        return True
    chunks = caption.split()
    if (
        max(map(len, chunks)) <= LONG_CHUNK
        and not any(map(_is_suspicious, chunks))
        and max(map(len, caption_words)) <= LONGEST_WORD
    ):
        return False  # a short cut for nearly all captions, of which no rule below can hold
    bad = sum(map(is_nonsense, chunks))
    return bad > 0 and 3 * bad >= len(chunks)


@lru_cache(maxsize=1 << 16)
def _is_suspicious(chunk: str) -> bool:
    return _SUSPICIOUS.search(chunk) is not None


def is_nonsense(chunk: str) -> bool:
    """Return whether a chunk in lower case is a file name or an address, or contains letters that are no word."""
    return _ADDRESS.search(chunk) is not None or any(map(_is_nonword, words(chunk)))


def _is_nonword(word: str) -> bool:
    if not word.isascii():
        return False  # these rules do not know other scripts
    if len(word) > LONGEST_WORD or _LETTERS_AND_DIGITS.search(word):
        return True
    if not word.isalpha() or _ROMAN.fullmatch(word):
        return False
    return _NO_VOWEL.fullmatch(word) is not None or _ONE_LETTER.search(word) is not None
