"""Swap two things in a caption, or their colours, if the swap changes the meaning."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from captioners.english import COLOURS
from captioners.rules.words import NO_THING, Edits, Word, is_colour, is_plural, low_of, replaced

_NOUNS_IN_ING = frozenset(
    "building ceiling clothing evening morning string ring king wing thing railing lightning painting living dining "
    "swimming parking washing frying wedding shopping sing spring skating cutting vending rolling racing running "
    "hunting fishing hiking serving".split()
)
_ASYMMETRIC = frozenset("on in under above below behind inside outside over onto into through underneath".split())
_LONG_ASYMMETRIC = ("in front of", "on top of", "left of", "right of", "to the left of", "to the right of")
# Verbs after which both orders may be true.
_MUTUAL = frozenset(
    "facing meeting touching kissing hugging joining matching crossing resembling watching seeing following "
    "accompanying including featuring having showing containing being greeting fighting passing approaching playing "
    "looking depicting displaying".split()
)
# Nouns that are no objects and cannot be swapped.
_NO_OBJECT = frozenset(
    "day night afternoon evening time side end way distance background front middle few lot bit game trick "
    "phone".split()
)
# Participles that do not end in -ed.
_DONE = frozenset(
    "written made held worn shown taken seen kept built cut hung drawn driven ridden eaten lit laid set thrown".split()
)


class _Phrase(NamedTuple):
    """The name of a thing with its article, as indices of words."""

    first: int
    end: int  # after the last word


def _phrases(words: Sequence[Word]) -> list[_Phrase]:
    """Names of things with "a" or "an" whose end is certain: "a large red ball" before "on", a verb, or a mark."""
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
            if not any(part.name for part in words[index:end]) and low_of(words, end) != "-":
                phrases.append(_Phrase(index, end))
    return phrases


def _ends_phrase(words: Sequence[Word], index: int) -> bool:
    """Whether a word ends the name of a thing in the singular: a preposition, a conjunction, a verb in -ing or -s."""
    low, after = words[index].low, low_of(words, index + 1)
    if low in NO_THING:
        return True
    if low.endswith("ing") and len(low) > 4:
        return low not in _NOUNS_IN_ING or after in ("a", "an", "the", "his", "her")  # "a man cutting the hedge"
    if low.endswith("ed") and len(low) > 4 or low in _DONE:
        return after in NO_THING
    return is_plural(low) and after in NO_THING


def swapped_things(caption: str, words: Sequence[Word]) -> Iterator[Edits]:
    """Swap neighbouring things if the swap changes the meaning: in "a dog on a box", not in "a dog and a box"."""
    phrases = _phrases(words)
    for left, right in zip(phrases, phrases[1:]):
        between = [word.low for word in words[left.end : right.first]]
        left_noun, right_noun = words[left.end - 1].low, words[right.end - 1].low
        before, after = low_of(words, left.first - 1), low_of(words, right.end)
        if (
            left_noun == right_noun
            or not _is_one_way(between)
            or {left_noun, right_noun} & (_NO_OBJECT | COLOURS.keys())
            or after == "of"
        ):
            continue
        if before in NO_THING or before == ",":  # "a man on a bike on a street" means the same after a swap
            continue
        (left_start, left_end), (right_start, right_end) = (
            (words[phrase.first].start, words[phrase.end - 1].end) for phrase in (left, right)
        )
        yield (
            (left_start, left_end, caption[right_start:right_end]),
            (right_start, right_end, caption[left_start:left_end]),
        )


def _is_one_way(between: Sequence[str]) -> bool:
    """Whether the words between two things state a relation that is not symmetric."""
    relation = [low for low in between if low not in ("is", "that", "which", "who")]
    if not relation:
        return False
    verb = relation[0] if relation[0].endswith(("ing", "s")) and relation[0] not in NO_THING else ""
    place = " ".join(relation[1:] if verb else relation)
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
    """Swap the colours of two things if the swap gives a thing a colour that it does not have in the caption."""
    indices = []  # of colours directly before a thing
    for index in range(len(words)):
        after = low_of(words, index + 1)
        if is_colour(words, index) and after and after not in COLOURS:
            indices.append(index)
    pairs = {(COLOURS[words[index].low], low_of(words, index + 1)) for index in indices}
    for left, right in zip(indices, indices[1:]):
        left_colour, left_thing = COLOURS[words[left].low], low_of(words, left + 1)
        right_colour, right_thing = COLOURS[words[right].low], low_of(words, right + 1)
        if (
            left_colour == right_colour
            or left_thing == right_thing
            or left_thing in NO_THING
            or right_thing in NO_THING
            or {(right_colour, left_thing), (left_colour, right_thing)} & pairs
        ):
            continue
        yield (*replaced(words, left, words[right].low), *replaced(words, right, words[left].low))
