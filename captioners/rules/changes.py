"""What may be changed in an English caption so that it is no longer true: colours, numbers, relations, attributes, what stands where.

Rules know no picture. They leave out what would stay true by itself, such as two words changed for each other round an "and", fewer
of what there are more of, or a colour that somebody else sees in the same thing, and where they are not sure of the grammar.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from captioners.english import COLOURS, UNITS

MOST = 400  # words of a caption that are looked at
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


class _Word(NamedTuple):
    low: str  # in lower case
    start: int
    end: int
    name: bool  # whether it begins with a capital within a sentence, and so is a name's


_TOKEN = re.compile(r"[^\W_](?:[\w'’-]*[^\W_])?|[^\w\s]")
_FOREIGN = frozenset(
    "ein eine einen einem der das und mit auf un une les des est et dans el los las una con il di het och som".split()
)


def changes(caption: str) -> list[Change]:
    """Every change that a rule makes of a caption, those of a kind in the order of their places; none of what is not English."""
    words = _words(caption)
    known = {word.low for word in words}
    if not _FOREIGN.isdisjoint(known):
        return []
    found = [*_colours(words, known), *_counts(words), *_relations(words, known), *_attributes(words, known)]
    found = [Change(kind, _with_article(words, edits)) for kind, edits in found]
    found += [Change("swap", edits) for edits in (*_swapped_things(caption, words), *_swapped_colours(words))]
    return [
        Change(one.kind, tuple((start, end, _written(caption, start, end, text)) for start, end, text in one.edits))
        for one in found
    ]


Edits = tuple[tuple[int, int, str], ...]


def _words(caption: str) -> list[_Word]:
    found = []
    shouted = caption.isupper() or caption.istitle()
    begins = True
    for match in _TOKEN.finditer(caption):
        word = match[0]
        found.append(_Word(word.lower(), match.start(), match.end(), word[0].isupper() and not begins and not shouted))
        begins = not word[0].isalnum()
        if len(found) == MOST:
            break
    return found


def _written(caption: str, start: int, end: int, text: str) -> str:
    """The text with the capitals of what stands there."""
    old = caption[start:end]
    if caption.isupper():
        return text.upper()
    first = old[:1].isupper() and not text[:1].isupper()
    lower = not old[:1].isupper() and text[:1].isupper() and start > 0 and not text[1:2].isupper()
    return text[:1].upper() + text[1:] if first else text[:1].lower() + text[1:] if lower else text


def _with_article(words: Sequence[_Word], edits: Edits) -> Edits:
    """The edits of one word, with the article before it that its new sound asks for."""
    (start, end, text), *rest = edits
    at = next((at for at, word in enumerate(words) if word.start == start), 0)
    if at and words[at - 1].low in ("a", "an") and not rest:
        article = article_of(text)
        if article != words[at - 1].low:
            return ((words[at - 1].start, words[at - 1].end, article), *edits)
    return edits


def article_of(text: str) -> str:
    """The article that English puts before a word."""
    return (
        "an"
        if re.match(r"[aeio]|u(?!ni[^mn]|s[ei]|tensil)|hour|honest", text) and not text.startswith(("one", "eu"))
        else "a"
    )


# ---- colours -----------------------------------------------------------------------------------------------------------

# What a colour may become: those that nobody takes for it.
_OTHERS = {
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
_NO_THING = frozenset(
    "a an the and or of on in at by with from to into under over above below behind near beside between through along across against "
    "around inside outside for as while that which who is are was were has have had next up down off out its his her their during according regarding".split()
)
_SKIN = frozenset(
    "man men woman women person people boy boys girl girls child children lady ladies guy guys kid kids male female".split()
)
_NO_COLOUR_OF = frozenset(
    "tea wine sox beans house light lights noise friday board juice slice slices peel tree trees and & -".split()
)


def _is_colour(words: Sequence[_Word], at: int) -> bool:
    """Whether a word is a colour that may be another: of a thing that follows it, or that it is said of."""
    low, before, after = words[at].low, _low(words, at - 1), _low(words, at + 1)
    if COLOURS.get(low) not in _OTHERS or low not in (COLOURS[low], "gray") or words[at].name:
        return False
    if after in _SKIN or after in _NO_COLOUR_OF or before in ("and", "&", "-"):
        return False
    if after[:1].isalnum() and after not in _NO_THING:
        return True
    return low != "orange" and before in ("is", "are")


def _low(words: Sequence[_Word], at: int) -> str:
    return words[at].low if 0 <= at < len(words) else ""


def _colours(words: Sequence[_Word], known: set[str]) -> Iterator[tuple[str, Edits]]:
    there = {COLOURS[word] for word in known if word in COLOURS}
    for at, word in enumerate(words):
        if _is_colour(words, at):
            for other in _OTHERS[COLOURS[word.low]].split():
                if other not in there:
                    yield "colour", ((word.start, word.end, other),)


# ---- numbers -----------------------------------------------------------------------------------------------------------

_COUNTS = "one two three four five six seven eight nine ten".split()
_PLURALS = frozenset(
    "people men women children sheep deer fish geese mice feet teeth cattle police oxen persons".split()
)
_MEASURES = frozenset(
    "feet inches years hours minutes seconds days weeks months degrees percent meters metres miles dollars cents times stories "
    "levels tiers pieces types kinds halves thirds quarters parts sides ways others lanes wheels".split()
)


def _counts(words: Sequence[_Word]) -> Iterator[tuple[str, Edits]]:
    """More of what is counted: where there are three there are two as well."""
    for at, word in enumerate(words):
        number = UNITS.get(word.low, int(word.low) if re.fullmatch(r"[2-9]", word.low) else 0)
        if (
            not 2 <= number <= 8
            or word.name
            or _low(words, at - 1) in ("number", "at", "#", "of", "page", "route", "-", ":", ".")
        ):
            continue
        thing = next(
            (
                low
                for low in (_low(words, at + step) for step in (1, 2, 3))
                if _is_plural(low) or low in _NO_THING or not low
            ),
            "",
        )
        if _is_plural(thing) and thing not in _MEASURES and _low(words, at + 1) not in ("-", ":", ".", "of"):
            for other in range(number + 1, number + 3):
                yield "count", ((word.start, word.end, str(other) if word.low.isdigit() else _COUNTS[other - 1]),)


def _is_plural(low: str) -> bool:
    return low in _PLURALS or len(low) > 3 and low[-1] == "s" and low[-2] not in "su'’" and low[-2:] != "is"


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


def _relations(words: Sequence[_Word], known: set[str]) -> Iterator[tuple[str, Edits]]:
    at = 0
    while at < len(words):
        for size in range(min(_LONGEST, len(words) - at), 0, -1):
            said = " ".join(word.low for word in words[at : at + size])
            other = _WHERE.get(said)
            if (
                other
                and _low(words, at + size) not in _NO_PLACE
                and not any(word in known for word in _own(other, said))
            ):
                yield "relation", ((words[at].start, words[at + size - 1].end, other),)
                at += size - 1
                break
        else:
            low, thing = words[at].low, _low(words, at + 2)
            if (
                low in ("on", "under")
                and _low(words, at - 1) in _POSTURES
                and _low(words, at + 1) in ("a", "the")
                and thing in _FURNITURE
            ):
                yield "relation", ((words[at].start, words[at].end, "under" if low == "on" else "on"),)
        at += 1


def _own(other: str, said: str) -> set[str]:
    """The words of a relation that another has not."""
    return {*other.split()} - {*said.split()} - {"in", "of", "on", "front"}


_OPPOSITES = "small/large big/small little/large tall/short young/old open/closed empty/full wet/dry clean/dirty thick/thin wide/narrow happy/sad striped/plain dotted/striped plain/striped"
_ATTRIBUTES = {
    "large": "small",
    "short": "tall",
    "old": "young",
    "closed": "open",
    "full": "empty",
    "dry": "wet",
    "dirty": "clean",
}
_ATTRIBUTES |= {"thin": "thick", "narrow": "wide", "sad": "happy"} | dict(
    pair.split("/") for pair in _OPPOSITES.split()
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
    "plain": "background grey sand sky mint",
}


def _attributes(words: Sequence[_Word], known: set[str]) -> Iterator[tuple[str, Edits]]:
    for at, word in enumerate(words):
        other, after, before = _ATTRIBUTES.get(word.low), _low(words, at + 1), _low(words, at - 1)
        if not other or other in known or word.name or after == "-" or after in _NOT_OF.get(word.low, "").split():
            continue
        if (
            word.low in _ONLY_OF
            and after not in _ONLY_OF[word.low].split()
            or before in ("very", "too", "so", "not", "as", "year", "years")
        ):
            continue
        if after[:1].isalnum() and after not in _NO_THING or before in ("is", "are"):
            yield "attribute", ((word.start, word.end, other),)


# ---- two things that change their places -------------------------------------------------------------------------------

_BEGIN = frozenset(("a", "an"))
_NOUNS_IN_ING = frozenset(
    "building ceiling clothing evening morning string ring king wing thing railing lightning painting living dining swimming parking "
    "washing frying wedding shopping sing spring skating cutting vending rolling racing running hunting fishing hiking serving".split()
)
_ASYMMETRIC = frozenset("on in under above below behind inside outside over onto into through underneath".split())
_LONG_ASYMMETRIC = ("in front of", "on top of", "left of", "right of", "to the left of", "to the right of")
_MUTUAL = frozenset(
    "facing meeting touching kissing hugging joining matching crossing resembling watching seeing following accompanying including "
    "featuring having showing containing being greeting fighting passing approaching playing looking depicting displaying".split()
)


_NO_OBJECT = frozenset(
    "day night afternoon evening time side end way distance background front middle few lot bit game trick".split()
)
_DONE = frozenset(
    "written made held worn shown taken seen kept built cut hung drawn driven ridden eaten lit laid set thrown".split()
)


class _Phrase(NamedTuple):
    first: int  # words from here
    last: int  # to before here


def _phrases(words: Sequence[_Word]) -> list[_Phrase]:
    """Things with "a" or "an" that end where their grammar surely does: "a large red ball" before "on", a verb or a mark."""
    found = []
    for at, word in enumerate(words):
        if word.low not in _BEGIN:
            continue
        end = at + 1
        while end < len(words) and end - at <= 5 and words[end].low[0].isalnum() and not _ends_phrase(words, end):
            end += 1
        if (
            end - at > 1
            and words[at + 1].low != "few"
            and (end == len(words) or _ends_phrase(words, end) or not words[end].low[0].isalnum())
        ):
            if not any(each.name for each in words[at:end]) and _low(words, end) != "-":
                found.append(_Phrase(at, end))
    return found


def _ends_phrase(words: Sequence[_Word], at: int) -> bool:
    """Whether a word is the first after a thing in the singular: a preposition, a join, a verb that ends in -ing or -s."""
    low, after = words[at].low, _low(words, at + 1)
    if low in _NO_THING or low in ("each", "holding"):
        return True
    if low.endswith("ing"):
        return low not in _NOUNS_IN_ING and len(low) > 4
    if low.endswith("ed") and len(low) > 4 or low in _DONE:
        return after in _NO_THING
    return _is_plural(low) and after in _NO_THING | _BEGIN


def _swapped_things(caption: str, words: Sequence[_Word]) -> Iterator[Edits]:
    """Neighbours that change their places, where it matters which is which: "a dog on a box", not "a dog and a box"."""
    found = _phrases(words)
    for one, other in zip(found, found[1:]):
        between = [word.low for word in words[one.last : other.first]]
        ours, theirs = ([word.low for word in words[each.first + 1 : each.last]] for each in (one, other))
        before, after = _low(words, one.first - 1), _low(words, other.last)
        if ours[-1] == theirs[-1] or not _is_one_way(between) or {ours[-1], theirs[-1]} & _NO_OBJECT or after == "of":
            continue
        if before in _NO_THING or before == ",":  # "a man on a bike on a street" is one on a street on a bike
            continue
        first, second = (caption[words[each.first].start : words[each.last - 1].end] for each in (one, other))
        yield (
            (words[one.first].start, words[one.last - 1].end, second),
            (words[other.first].start, words[other.last - 1].end, first),
        )


def _is_one_way(between: Sequence[str]) -> bool:
    """Whether words between two things say of the first what they do not say of the second."""
    rest = [low for low in between if low not in ("is", "that", "which", "who")]
    if not rest:
        return False
    verb = rest[0] if rest[0].endswith(("ing", "s")) and rest[0] not in _NO_THING else ""
    place = " ".join(rest[1:] if verb else rest)
    if verb in _MUTUAL:
        return False
    return (
        place in _ASYMMETRIC
        or place in _LONG_ASYMMETRIC
        or bool(verb)
        and not place
        and verb not in ("looks", "has", "plays")
    )


def _swapped_colours(words: Sequence[_Word]) -> Iterator[Edits]:
    """Colours of two things that are changed for each other, where that makes a thing that was not there."""
    places = [
        at
        for at in range(len(words))
        if _is_colour(words, at) and _low(words, at + 1) not in COLOURS and _low(words, at + 1)
    ]
    pairs = {(COLOURS[words[at].low], _low(words, at + 1)) for at in places}
    for one, other in zip(places, places[1:]):
        (first, thing), (second, another) = ((COLOURS[words[at].low], _low(words, at + 1)) for at in (one, other))
        if (
            first == second
            or thing == another
            or thing in _NO_THING
            or another in _NO_THING
            or {(second, thing), (first, another)} & pairs
        ):
            continue
        edits = []
        for at, new in ((one, words[other]), (other, words[one])):
            edits += _with_article(words, ((words[at].start, words[at].end, new.low),))
        yield tuple(edits)
