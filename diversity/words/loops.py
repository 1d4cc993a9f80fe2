"""Captions that say the same again: loops of words, sentences that recur."""

import re
from collections import Counter, deque
from collections.abc import Sequence
from itertools import pairwise

from diversity.words.sentences import sentences
from diversity.words.tokens import is_written_without_blanks, pieces, words

MAX_LOOP = 64  # pieces; longer units are not looked for, but as sentences
SAID = 4  # times that a sign may say something
SAME = 3  # words that a sentence has at least which recurs word for word
ALMOST = 6  # and one that recurs almost so
RECURRING, RECURRING_LONG = (
    0.15,
    0.05,
)  # of a caption's words, in sentences that recur and in those of six words and more
MOST_EARLIER, LIKELY = 8, 3  # sentences that a pair of words is remembered of, and that one is compared with

# What may well be said twice: "hand in hand in", "side by side by side", "Arm in Arm in", "main dans la main dans la", "a black
# and white and black and white dog", "एक लड़की एक लड़की से बात".
_TWICE = re.compile(
    r"\w{3,}(?<!ing) (?:in|by|to|on|after|upon|for|an|um|für|aan|à|nella|dans la)"
    r"|(?:and|und|et)(?: \w+){1,2}|\w+ (?:and|und|et)(?: \w+)?|\w+ \w+ (?:and|und|et)|एक \S+"
)
_PLACES = frozenset(
    "left right top bottom upper lower front back foreground background middle center centre first second third "
    "fourth last one other another links rechts linken rechten oben unten gauche droite haut bas vlevo vpravo "
    "nahoře dole izquierda derecha sinistra destra 左 右 上 下 前 后 後 中 बाईं दाईं बाएं दाएं".split()
)
_SAYING = frozenset("reads read reading says say saying written spells spelling \" “ „ « ‘ ' 「 『".split())


def looping(caption: str, found: Sequence[str]) -> int:
    """The words that stand where a unit of pieces is followed by itself too often.

    Marks are pieces, too: "the wall. The wall is red" is no loop.
    """
    if len(set(pairwise(found))) == len(found) - 1:
        return 0  # a loop holds some pair of words twice
    units = pieces(caption)
    written = pieces(caption, fold=False)
    capitals = len(written) == len(units) and not caption.isupper()
    places: set[int] = set()
    for size in _sizes(units):
        same = 0  # pieces in a row that are equal to those that stand `size` before
        for at in range(size, len(units) + 1):
            if at < len(units) and units[at] == units[at - size]:
                same += 1
                continue
            if same >= size:
                start = at - same - size
                unit = units[start : start + size]
                said = (
                    not _SAYING.isdisjoint(units[max(start - 3, 0) : start])
                    or capitals
                    and "".join(written[start : start + size]).isupper()
                )
                if same // size + 1 >= max(_times(unit), said * (SAID + 1)):
                    places.update(range(start, at))
            same = 0
    return sum(units[at][0].isalnum() for at in places)


def _sizes(units: Sequence[str]) -> list[int]:
    """The sizes of units that may be followed by themselves: at that distance enough pairs of neighbours stand again."""
    places: dict[tuple[str, str], deque[int]] = {}
    again = Counter()  # distance -> pairs
    for at, pair in enumerate(pairwise(units)):
        earlier = places.setdefault(pair, deque(maxlen=MAX_LOOP))
        again.update(distance for start in earlier if (distance := at - start) <= MAX_LOOP)
        earlier.append(at)
    return sorted(size for size, pairs in again.items() if pairs >= size - 1)


def _times(unit: Sequence[str]) -> float:
    """How often a unit must stand in a row to be a loop."""
    inside = [piece for piece in unit if piece[0].isalnum()]
    if not inside:
        return float("inf")
    by_character = all(
        map(is_written_without_blanks, inside)
    )  # where twice is a common form: 高高兴兴, ゆっくりゆっくり
    if len(unit) == 1:
        return 4 if by_character else 3
    return 3 if by_character and len(unit) < 5 or _TWICE.fullmatch(" ".join(unit)) else 2


def recurs(caption: str) -> bool:
    """Whether sentences that recur, word for word or almost so, hold a good part of the words.

    Almost so: two thirds of the pairs of neighbouring words are those of one earlier sentence, and two thirds of that one's.
    Where the two speak of other places, as "on the left …" and "on the right …", both say something.
    """
    parts = sentences(caption)
    if len(parts) < 2:
        return False
    parts = [part for sentence in parts if (part := words(sentence))]
    seen: set[tuple[str, ...]] = set()
    with_pair: dict[tuple[str, str], list[int]] = {}  # the first sentences with each pair
    short = long = 0  # words of those that recur
    for at, part in enumerate(parts):
        pairs = list(pairwise(part))
        alike = Counter(earlier for pair in pairs for earlier in with_pair.get(pair, ())).most_common(LIKELY)
        almost = len(part) >= ALMOST and any(
            3 * same >= 2 * max(len(part), len(parts[earlier])) - 2 and not _of_other_places(part, parts[earlier])
            for earlier, same in alike
        )
        if almost:
            long += len(part)
        elif len(part) >= SAME and tuple(part) in seen:
            short += len(part)
        seen.add(tuple(part))
        for pair in set(pairs):
            if len(sentences_with := with_pair.setdefault(pair, [])) < MOST_EARLIER:
                sentences_with.append(at)
    length = sum(map(len, parts))
    return long > 0 and long >= RECURRING_LONG * length or short > 0 and short + long >= RECURRING * length


def _of_other_places(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether each of two sentences names a place, or a number in order, that the other does not."""
    first, second = _PLACES.intersection(one), _PLACES.intersection(other)
    return bool(first - second and second - first)
