"""Changes that make an English caption false: of colours, numbers, relations and attributes, and swaps.

The rules do not see the picture. They omit changes after which a caption could still be true, such as swapping two
things around "and", a smaller number, or a similar colour, and changes for which the grammar is uncertain.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from captioners.english import COLOURS, UNITS, colours_in
from captioners.rules.swaps import swapped_colours, swapped_things
from captioners.rules.words import NO_THING, OTHERS, Edits, Word, is_colour, is_plural, low_of, replaced, words_of

KINDS = ("colour", "count", "relation", "attribute", "swap")


class Change(NamedTuple):
    """A change of a caption."""

    kind: str  # one of `KINDS`
    edits: Edits  # in the order of the caption

    def apply(self, caption: str) -> str:
        """The caption after the change."""
        parts, position = [], 0
        for start, end, text in self.edits:
            parts += [caption[position:start], text]
            position = end
        return "".join([*parts, caption[position:]])


_FOREIGN = frozenset(
    "ein eine einen einem der das und mit auf un une les des est et dans el los las una con il di het och som".split()
)


def changes(caption: str) -> list[Change]:
    """All changes that rules can make to a caption, those of a kind in the order of their positions.

    [] if the caption does not seem to be English.
    """
    words = words_of(caption)
    vocabulary = {word.low for word in words}
    if not _FOREIGN.isdisjoint(vocabulary):
        return []
    possible = [
        *_colours(words, vocabulary),
        *_counts(words),
        *_relations(words, vocabulary),
        *_attributes(words, vocabulary),
    ]
    possible += [("swap", edits) for edits in (*swapped_things(caption, words), *swapped_colours(words))]
    return [
        Change(kind, tuple((start, end, _with_case(caption, start, text)) for start, end, text in edits))
        for kind, edits in possible
    ]


def _with_case(caption: str, start: int, text: str) -> str:
    """The text in the upper or lower case of the caption at this position."""
    if caption.isupper():
        return text.upper()
    return (text[0].upper() if caption[start].isupper() else text[0].lower()) + text[1:]


# ---- colours --------------------------------------------------------------------------------------------------


def _colours(words: Sequence[Word], vocabulary: set[str]) -> Iterator[tuple[str, Edits]]:
    """Other colours that the caption does not mention."""
    mentioned = colours_in(vocabulary)
    for index, word in enumerate(words):
        if is_colour(words, index):
            for other in OTHERS[COLOURS[word.low]].split():
                if other not in mentioned:
                    yield "colour", replaced(words, index, other)


# ---- numbers --------------------------------------------------------------------------------------------------

_COUNTS = "one two three four five six seven eight nine ten".split()
_MEASURES = frozenset(
    "feet inches years hours minutes seconds days weeks months degrees percent meters metres miles dollars cents "
    "times stories levels tiers pieces types kinds halves thirds quarters parts sides ways others lanes wheels".split()
)


def _counts(words: Sequence[Word]) -> Iterator[tuple[str, Edits]]:
    """Larger numbers. A smaller one could still be true: three dogs are also two dogs."""
    for index, word in enumerate(words):
        number = UNITS.get(word.low, int(word.low) if re.fullmatch(r"[2-9]", word.low) else 0)
        if (
            not 2 <= number <= 8
            or word.name
            or low_of(words, index - 1) in ("number", "at", "#", "of", "page", "route", "-", ":", ".")
        ):
            continue
        next_words = (low_of(words, index + 1 + step) for step in range(3))
        in_name = itertools.takewhile(lambda low: low and low not in NO_THING, next_words)
        thing = next(filter(is_plural, in_name), "")
        if thing and thing not in _MEASURES and low_of(words, index + 1) not in ("-", ":", ".", "of"):
            for other in range(number + 1, number + 3):
                yield "count", ((word.start, word.end, str(other) if word.low.isdigit() else _COUNTS[other - 1]),)


# ---- relations and attributes ---------------------------------------------------------------------------------

_OPPOSITE_PLACE = {
    "in front of": "behind",
    "behind": "in front of",
    "on top of": "underneath",
    "underneath": "on top of",
    "above": "below",
    "below": "above",
    "inside": "outside",
    "outside": "inside",
    "left of": "right of",
    "right of": "left of",
    "the left": "the right",
    "the right": "the left",
    "upper left": "lower right",
    "upper right": "lower left",
    "lower left": "upper right",
    "lower right": "upper left",
    "at the top": "at the bottom",
    "at the bottom": "at the top",
}
_LONGEST = 3  # words in a key of _OPPOSITE_PLACE
# Words before which a relation is left alone: "in front of each other", "behind him".
_NO_PLACE = frozenset("each another one them it him her me us".split())
_POSTURES = frozenset(
    "sitting standing lying laying sits stands lies resting sleeping sat seated perched placed sleeps".split()
)
_FURNITURE = frozenset("table bed couch sofa chair bench desk counter shelf bridge umbrella".split())


def _relations(words: Sequence[Word], vocabulary: set[str]) -> Iterator[tuple[str, Edits]]:
    """Opposite places, and "on" for "under" and vice versa for people and animals on furniture."""
    index = 0
    while index < len(words):
        for size in range(min(_LONGEST, len(words) - index), 0, -1):
            place, after = " ".join(word.low for word in words[index : index + size]), low_of(words, index + size)
            other = _OPPOSITE_PLACE.get(place, "")
            # nothing follows "behind" in "trees behind.", so "in front of" would not fit
            fits = after[:1].isalnum() or other.endswith("of") == place.endswith("of")
            if other and fits and after not in _NO_PLACE and vocabulary.isdisjoint(_new_words(other, place)):
                yield "relation", ((words[index].start, words[index + size - 1].end, other),)
                index += size - 1
                break
        else:
            low, thing = words[index].low, low_of(words, index + 2)
            if (
                low in ("on", "under")
                and low_of(words, index - 1) in _POSTURES
                and low_of(words, index + 1) in ("a", "the")
                and thing in _FURNITURE
            ):
                yield "relation", ((words[index].start, words[index].end, "under" if low == "on" else "on"),)
        index += 1


def _new_words(other: str, place: str) -> set[str]:
    """The words of the opposite of a place that the place itself does not contain."""
    return {*other.split()} - {*place.split()} - {"in", "of", "on", "front"}


_OPPOSITE: dict[str, str] = dict(
    re.findall(
        r"(\w+)/(\w+)",
        "small/large large/small big/small little/large tall/short short/tall young/old old/young open/closed "
        "closed/open empty/full full/empty wet/dry dry/wet clean/dirty dirty/clean thick/thin thin/thick wide/narrow "
        "narrow/wide happy/sad sad/happy striped/plain dotted/striped plain/striped",
    )
)
# Attributes that are changed only before these words.
_ONLY_OF = {
    **dict.fromkeys(("young", "old"), "man men woman women person people lady couple dog cat horse elephant"),
    **dict.fromkeys(
        ("open", "closed"), "door doors window windows umbrella umbrellas laptop book books box suitcase drawer"
    ),
}
# Attributes that are not changed before these words.
_NOT_OF = {
    "short": "sleeve sleeves haired hair order distance",
    "full": "of size length moon view body sized",
    "dry": "erase cleaning",
    "clean": "up shaven",
    "large": "group number amount crowd variety assortment body bodies selection array",
    "small": "group number amount crowd variety assortment body bodies selection array",
    "little": "bit league girl girls boy boys kid kids",
    "big": "ben bird",
    "plain": "looking background grey sand sky mint",
}


def _attributes(words: Sequence[Word], vocabulary: set[str]) -> Iterator[tuple[str, Edits]]:
    """Opposite attributes of things."""
    for index, word in enumerate(words):
        other, after, before = _OPPOSITE.get(word.low), low_of(words, index + 1), low_of(words, index - 1)
        if not other or other in vocabulary or word.name:
            continue
        if after == "-" or after in _NOT_OF.get(word.low, "").split():
            continue
        if word.low in _ONLY_OF and after not in _ONLY_OF[word.low].split():
            continue
        if before in ("very", "too", "so", "not", "as", "year", "years"):
            continue
        if after[:1].isalnum() and after not in NO_THING or before in ("is", "are"):
            yield "attribute", replaced(words, index, other)
