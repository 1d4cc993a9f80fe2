"""Two things of a caption that change their places, or their colours, where it matters which is which."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from captioners.english import COLOURS
from captioners.rules.words import NO_THING, Edits, Word, is_colour, is_plural, low_of, replaced

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
    "day night afternoon evening time side end way distance background front middle few lot bit game trick phone".split()
)
_DONE = frozenset(
    "written made held worn shown taken seen kept built cut hung drawn driven ridden eaten lit laid set thrown".split()
)


class _Phrase(NamedTuple):
    first: int  # words from here
    last: int  # to before here


def _phrases(words: Sequence[Word]) -> list[_Phrase]:
    """Things with "a" or "an" that end where their grammar surely does: "a large red ball" before "on", a verb or a mark."""
    phrases = []
    for index, word in enumerate(words):
        if word.low not in ("a", "an"):
            continue
        end = index + 1
        while end < len(words) and end - index <= 5 and words[end].low[0].isalnum() and not _ends_phrase(words, end):
            end += 1
        if (
            end - index > 1
            and words[index + 1].low != "few"
            and (end == len(words) or _ends_phrase(words, end) or not words[end].low[0].isalnum())
        ):
            if not any(each.name for each in words[index:end]) and low_of(words, end) != "-":
                phrases.append(_Phrase(index, end))
    return phrases


def _ends_phrase(words: Sequence[Word], index: int) -> bool:
    """Whether a word is the first after a thing in the singular: a preposition, a join, a verb that ends in -ing or -s."""
    low, after = words[index].low, low_of(words, index + 1)
    if low in NO_THING:
        return True
    if low.endswith("ing") and len(low) > 4:
        return low not in _NOUNS_IN_ING or after in ("a", "an", "the", "his", "her")  # "a man cutting the hedge"
    if low.endswith("ed") and len(low) > 4 or low in _DONE:
        return after in NO_THING
    return is_plural(low) and after in NO_THING


def swapped_things(caption: str, words: Sequence[Word]) -> Iterator[Edits]:
    """Neighbours that change their places, where it matters which is which: "a dog on a box", not "a dog and a box"."""
    phrases = _phrases(words)
    for phrase, other in zip(phrases, phrases[1:]):
        between = [word.low for word in words[phrase.last : other.first]]
        ours, theirs = ([word.low for word in words[each.first + 1 : each.last]] for each in (phrase, other))
        before, after = low_of(words, phrase.first - 1), low_of(words, other.last)
        if (
            ours[-1] == theirs[-1]
            or not _is_one_way(between)
            or {ours[-1], theirs[-1]} & (_NO_OBJECT | COLOURS.keys())
            or after == "of"
        ):
            continue
        if before in NO_THING or before == ",":  # "a man on a bike on a street" is one on a street on a bike
            continue
        first, second = (caption[words[each.first].start : words[each.last - 1].end] for each in (phrase, other))
        yield (
            (words[phrase.first].start, words[phrase.last - 1].end, second),
            (words[other.first].start, words[other.last - 1].end, first),
        )


def _is_one_way(between: Sequence[str]) -> bool:
    """Whether words between two things say of the first what they do not say of the second."""
    rest = [low for low in between if low not in ("is", "that", "which", "who")]
    if not rest:
        return False
    verb = rest[0] if rest[0].endswith(("ing", "s")) and rest[0] not in NO_THING else ""
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


def swapped_colours(words: Sequence[Word]) -> Iterator[Edits]:
    """Colours of two things that are changed for each other, where that makes a thing that was not there."""
    places = [
        index
        for index in range(len(words))
        if is_colour(words, index) and low_of(words, index + 1) not in COLOURS and low_of(words, index + 1)
    ]
    pairs = {(COLOURS[words[index].low], low_of(words, index + 1)) for index in places}
    for place, other in zip(places, places[1:]):
        (first, thing), (second, another) = (
            (COLOURS[words[index].low], low_of(words, index + 1)) for index in (place, other)
        )
        if (
            first == second
            or thing == another
            or thing in NO_THING
            or another in NO_THING
            or {(second, thing), (first, another)} & pairs
        ):
            continue
        edits = []
        for index, new in ((place, words[other]), (other, words[place])):
            edits += replaced(words, index, new.low)
        yield tuple(edits)
