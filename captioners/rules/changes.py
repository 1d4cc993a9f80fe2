"""Changes that make an English caption false: of colours, numbers, relations, attributes, and swaps.

Rules know no picture. They leave out what would stay true by itself, such as two words changed for each other round an "and", fewer
of what there are more of, or a colour that somebody else sees in the same thing, and where they are not sure of the grammar.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from captioners.english import COLOURS, UNITS
from captioners.rules.swaps import swapped_colours, swapped_things
from captioners.rules.words import NO_THING, OTHERS, Edits, Word, is_colour, is_plural, low_of, replaced, words_of

KINDS = ("colour", "count", "relation", "attribute", "swap")


class Change(NamedTuple):
    """A change of a caption: its kind, one of `KINDS`, and stretches (start, end) with the text to put there, in their order."""

    kind: str
    edits: tuple[tuple[int, int, str], ...]

    def apply(self, caption: str) -> str:
        parts, done = [], 0
        for start, end, text in self.edits:
            parts += [caption[done:start], text]
            done = end
        return "".join([*parts, caption[done:]])


_FOREIGN = frozenset(
    "ein eine einen einem der das und mit auf un une les des est et dans el los las una con il di het och som".split()
)


def changes(caption: str) -> list[Change]:
    """Every change that a rule makes of a caption, those of a kind in the order of their places; none of what is not English."""
    words = words_of(caption)
    known = {word.low for word in words}
    if not _FOREIGN.isdisjoint(known):
        return []
    possible = [*_colours(words, known), *_counts(words), *_relations(words, known), *_attributes(words, known)]
    possible += [("swap", edits) for edits in (*swapped_things(caption, words), *swapped_colours(words))]
    return [
        Change(kind, tuple((start, end, _written(caption, start, text)) for start, end, text in edits))
        for kind, edits in possible
    ]


def _written(caption: str, start: int, text: str) -> str:
    """The text with the capitals of what stands there."""
    if caption.isupper():
        return text.upper()
    return (text[0].upper() if caption[start].isupper() else text[0].lower()) + text[1:]


# ---- colours -----------------------------------------------------------------------------------------------------------


def _colours(words: Sequence[Word], known: set[str]) -> Iterator[tuple[str, Edits]]:
    there = {COLOURS[word] for word in known if word in COLOURS}
    for index, word in enumerate(words):
        if is_colour(words, index):
            for other in OTHERS[COLOURS[word.low]].split():
                if other not in there:
                    yield "colour", replaced(words, index, other)


# ---- numbers -----------------------------------------------------------------------------------------------------------

_COUNTS = "one two three four five six seven eight nine ten".split()
_MEASURES = frozenset(
    "feet inches years hours minutes seconds days weeks months degrees percent meters metres miles dollars cents times stories "
    "levels tiers pieces types kinds halves thirds quarters parts sides ways others lanes wheels".split()
)


def _counts(words: Sequence[Word]) -> Iterator[tuple[str, Edits]]:
    """More of what is counted: where there are three there are two as well."""
    for index, word in enumerate(words):
        number = UNITS.get(word.low, int(word.low) if re.fullmatch(r"[2-9]", word.low) else 0)
        if (
            not 2 <= number <= 8
            or word.name
            or low_of(words, index - 1) in ("number", "at", "#", "of", "page", "route", "-", ":", ".")
        ):
            continue
        names = itertools.takewhile(
            lambda low: low and low not in NO_THING, (low_of(words, index + 1 + step) for step in range(3))
        )
        thing = next(filter(is_plural, names), "")
        if thing and thing not in _MEASURES and low_of(words, index + 1) not in ("-", ":", ".", "of"):
            for other in range(number + 1, number + 3):
                yield "count", ((word.start, word.end, str(other) if word.low.isdigit() else _COUNTS[other - 1]),)


# ---- where things are, and what they are like --------------------------------------------------------------------------

_WHERE = {
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
_LONGEST = 3  # words of them
_NO_PLACE = frozenset("each another one them it him her me us".split())  # "in front of each other", "behind him"
_POSTURES = frozenset(
    "sitting standing lying laying sits stands lies resting sleeping sat seated perched placed sleeps".split()
)
_FURNITURE = frozenset("table bed couch sofa chair bench desk counter shelf bridge umbrella".split())


def _relations(words: Sequence[Word], known: set[str]) -> Iterator[tuple[str, Edits]]:
    index = 0
    while index < len(words):
        for size in range(min(_LONGEST, len(words) - index), 0, -1):
            said, after = " ".join(word.low for word in words[index : index + size]), low_of(words, index + size)
            other = _WHERE.get(said, "")
            # "trees behind." has nothing that follows
            goes_on = after[:1].isalnum() or other.endswith("of") == said.endswith("of")
            if other and goes_on and after not in _NO_PLACE and known.isdisjoint(_own(other, said)):
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


def _own(other: str, said: str) -> set[str]:
    """The words of a relation that another has not."""
    return {*other.split()} - {*said.split()} - {"in", "of", "on", "front"}


_OPPOSITE: dict[str, str] = dict(
    re.findall(
        r"(\w+)/(\w+)",
        "small/large large/small big/small little/large tall/short short/tall young/old old/young open/closed closed/open "
        "empty/full full/empty wet/dry dry/wet clean/dirty dirty/clean thick/thin thin/thick wide/narrow narrow/wide "
        "happy/sad sad/happy striped/plain dotted/striped plain/striped",
    )
)
_ONLY_OF = {
    **dict.fromkeys(("young", "old"), "man men woman women person people lady couple dog cat horse elephant"),
    **dict.fromkeys(
        ("open", "closed"), "door doors window windows umbrella umbrellas laptop book books box suitcase drawer"
    ),
}
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


def _attributes(words: Sequence[Word], known: set[str]) -> Iterator[tuple[str, Edits]]:
    for index, word in enumerate(words):
        other, after, before = _OPPOSITE.get(word.low), low_of(words, index + 1), low_of(words, index - 1)
        if not other or other in known or word.name or after == "-" or after in _NOT_OF.get(word.low, "").split():
            continue
        if (
            word.low in _ONLY_OF
            and after not in _ONLY_OF[word.low].split()
            or before in ("very", "too", "so", "not", "as", "year", "years")
        ):
            continue
        if after[:1].isalnum() and after not in NO_THING or before in ("is", "are"):
            yield "attribute", replaced(words, index, other)
