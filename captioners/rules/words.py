"""A caption as words for the rules: what is a colour of a thing, a plural, and and the article before what is put in its place."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from captioners.english import COLOURS

MOST = 400  # words of a caption that are looked at
Edits = tuple[tuple[int, int, str], ...]  # stretches of the caption, with what to put there


class Word(NamedTuple):
    """A word or a mark of a caption, and where it stands."""

    low: str  # in lower case
    start: int
    end: int
    name: bool  # whether it begins with a capital within a sentence, and so is a name's


_TOKEN = re.compile(r"[^\W_](?:[\w'’-]*[^\W_])?|[^\w\s]")


def words_of(caption: str) -> list[Word]:
    """The words and marks of a caption, the first `MOST` of them."""
    words = []
    shouted = caption.isupper() or caption.istitle()
    begins = True
    for match in _TOKEN.finditer(caption):
        word = match[0]
        words.append(Word(word.lower(), match.start(), match.end(), word[0].isupper() and not begins and not shouted))
        begins = not word[0].isalnum()
        if len(words) == MOST:
            break
    return words


def low_of(words: Sequence[Word], index: int) -> str:
    """A word in lower case; "" before the first and after the last."""
    return words[index].low if 0 <= index < len(words) else ""


def replaced(words: Sequence[Word], index: int, text: str) -> Edits:
    """The edits that put a text in the place of a word, and before it the article that its sound asks for."""
    edits = ((words[index].start, words[index].end, text),)
    article = "an" if text[0] in "aeio" else "a"
    if low_of(words, index - 1) in {"a", "an"} - {article}:
        return ((words[index - 1].start, words[index - 1].end, article), *edits)
    return edits


NO_THING = frozenset(  # words that no thing's name goes on with
    "a an the and or of on in at by with from to into under over above below behind near beside between through along across against "
    "around inside outside for as while that which who is are was were has have had next up down off out its his her their during "
    "according regarding".split()
)
_PLURALS = frozenset(
    "people men women children sheep deer fish geese mice feet teeth cattle police oxen persons".split()
)


def is_plural(low: str) -> bool:
    """Whether a word looks like a noun in the plural, or a verb in the third person."""
    return low in _PLURALS or len(low) > 3 and low[-1] == "s" and low[-2] not in "su'’" and low[-2:] != "is"


# What a colour may become: those that nobody takes for it.
OTHERS = {
    "red": "green blue yellow black white",
    "orange": "green blue purple black white",
    "yellow": "red blue purple black",
    "green": "red orange blue purple black white",
    "blue": "red orange yellow green white",
    "purple": "yellow green orange white black",
    "pink": "green blue yellow black",
    "brown": "green blue purple white",
    "black": "red yellow green white",
    "white": "red green blue purple black",
    "grey": "red yellow green purple",
}
_SKIN = frozenset(
    "man men woman women person people boy boys girl girls child children lady ladies guy guys kid kids male female".split()
)
_NO_COLOUR_OF = frozenset(
    "tea wine sox beans house light lights noise friday board juice slice slices peel tree trees and & -".split()
)


def is_colour(words: Sequence[Word], index: int) -> bool:
    """Whether a word is a colour that may be another: of a thing that follows it, or that it is said of."""
    low, before, after = words[index].low, low_of(words, index - 1), low_of(words, index + 1)
    if COLOURS.get(low) not in OTHERS or low not in (COLOURS[low], "gray") or words[index].name:
        return False
    if after in _SKIN or after in _NO_COLOUR_OF or before in ("and", "&", "-"):
        return False
    if after[:1].isalnum() and after not in NO_THING:
        return True
    return low != "orange" and before in ("is", "are")
