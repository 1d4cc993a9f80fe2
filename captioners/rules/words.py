"""A caption as words, for the rules: colours of things, plurals, and replacing a word together with its article."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from captioners.english import COLOURS

MOST_WORDS = 400  # words of a caption that are read
Edits = tuple[tuple[int, int, str], ...]  # (start, end, new text)


class Word(NamedTuple):
    """A word or a punctuation mark of a caption."""

    low: str  # in lower case
    start: int  # position in the caption
    end: int
    name: bool  # whether it is part of a name, because it begins with a capital within a sentence


_TOKEN = re.compile(r"[^\W_](?:[\w'’-]*[^\W_])?|[^\w\s]")


def words_of(caption: str) -> list[Word]:
    """The first `MOST_WORDS` words and punctuation marks of a caption."""
    words = []
    all_capitals = caption.isupper() or caption.istitle()
    begins_sentence = True
    for match in _TOKEN.finditer(caption):
        word = match[0]
        is_name = word[0].isupper() and not begins_sentence and not all_capitals
        words.append(Word(word.lower(), match.start(), match.end(), name=is_name))
        begins_sentence = not word[0].isalnum()
        if len(words) == MOST_WORDS:
            break
    return words


def low_of(words: Sequence[Word], index: int) -> str:
    """The word at an index, in lower case; "" before the first word and after the last."""
    return words[index].low if 0 <= index < len(words) else ""


def replaced(words: Sequence[Word], index: int, text: str) -> Edits:
    """The edits that replace a word by a text, and the article before it by the one that the text needs."""
    edits = ((words[index].start, words[index].end, text),)
    article = "an" if text[0] in "aeio" else "a"
    if low_of(words, index - 1) in {"a", "an"} - {article}:
        return ((words[index - 1].start, words[index - 1].end, article), *edits)
    return edits


# Words that cannot be part of the name of a thing.
NO_THING = frozenset(
    "a an the and or of on in at by with from to into under over above below behind near beside between through along "
    "across against around inside outside for as while that which who is are was were has have had next up down off "
    "out its his her their during according regarding".split()
)
_PLURALS = frozenset(
    "people men women children sheep deer fish geese mice feet teeth cattle police oxen persons".split()
)


def is_plural(low: str) -> bool:
    """Whether a word looks like a plural noun, or a verb in the third person."""
    return low in _PLURALS or len(low) > 3 and low[-1] == "s" and low[-2] not in "su'’" and low[-2:] != "is"


# For each colour, the colours that replace it: nobody confuses them with it.
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
    "man men woman women person people boy boys girl girls child children lady ladies guy guys kid kids male "
    "female".split()
)
_NO_COLOUR_OF = frozenset(
    "tea wine sox beans house light lights noise friday board juice slice slices peel tree trees and & -".split()
)


def is_colour(words: Sequence[Word], index: int) -> bool:
    """Whether a word is a colour that may be replaced: before a thing, or after "is" or "are"."""
    low, before, after = words[index].low, low_of(words, index - 1), low_of(words, index + 1)
    if COLOURS.get(low) not in OTHERS or low not in (COLOURS[low], "gray") or words[index].name:
        return False
    if after in _SKIN or after in _NO_COLOUR_OF or before in ("and", "&", "-"):
        return False
    if after[:1].isalnum() and after not in NO_THING:
        return True
    return low != "orange" and before in ("is", "are")
