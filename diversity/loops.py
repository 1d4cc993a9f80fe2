"""Captions that say the same again: loops of words, sentences that recur."""

import re
from collections import Counter, deque
from collections.abc import Sequence
from itertools import pairwise

from diversity.sentences import sentences
from diversity.tokens import is_written_without_blanks, pieces, words

MAX_LOOP = 64     # pieces; longer units are not looked for, but as sentences
SAID = 4          # times that a sign may say something
SAME = 3          # words that a sentence has at least which recurs word for word
ALMOST = 6        # and one that recurs almost so
RECURRING = 0.15  # of a caption's words, from which on it is degenerate if they stand in sentences that recur

# What may well be said twice: "hand in hand in", "side by side by side", "Arm in Arm in", "main dans la main dans la", "a black
# and white and black and white dog", "एक लड़की एक लड़की से बात".
_TWICE = re.compile(r"\w{3,}(?<!ing) (?:in|by|to|on|after|upon|for|an|um|für|aan|à|nella|dans la)"
                    r"|(?:and|und|et)(?: \w+){1,2}|\w+ (?:and|und|et)(?: \w+)?|\w+ \w+ (?:and|und|et)|एक \S+")
_SAYING = frozenset("reads read reading says say saying written spells spelling \" “ „ « ‘ ' 「 『".split())


def has_loop(caption: str, found: Sequence[str]) -> bool:
    """Whether a unit of pieces, marks among them, is followed by itself too often: "the wall. The wall is red" is no loop."""
    if len(set(pairwise(found))) == len(found) - 1:
        return False  # a loop holds some pair of words twice
    units = pieces(caption)
    written = pieces(caption, fold=False)
    capitals = len(written) == len(units) and not caption.isupper()
    for size in _sizes(units):
        same = 0  # pieces in a row that are equal to those that stand `size` before
        for at in range(size, len(units) + 1):
            if at < len(units) and units[at] == units[at - size]:
                same += 1
                continue
            if same >= size:
                start = at - same - size
                unit = units[start:start + size]
                said = (not _SAYING.isdisjoint(units[max(start - 3, 0):start])
                        or capitals and "".join(written[start:start + size]).isupper())
                if same // size + 1 >= max(_times(unit), said * (SAID + 1)):
                    return True
            same = 0
    return False


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
    by_character = all(map(is_written_without_blanks, inside))  # where twice is a common form: 高高兴兴, ゆっくりゆっくり
    if len(unit) == 1:
        return 4 if by_character else 3
    return 3 if by_character and len(unit) < 5 or _TWICE.fullmatch(" ".join(unit)) else 2


def recurs(caption: str) -> bool:
    """Whether sentences that recur, word for word or almost so, hold a good part of the words.

    Almost so: two thirds of the pairs of neighbouring words are those of one earlier sentence, and two thirds of that one's.
    """
    parts = sentences(caption)
    if len(parts) < 2:
        return False
    parts = [part for sentence in parts if (part := words(sentence))]
    seen: set[tuple[str, ...]] = set()
    first_in: dict[tuple[str, str], int] = {}  # each pair's sentence
    recurring = 0
    for at, part in enumerate(parts):
        pairs = list(pairwise(part))
        alike = Counter(first_in[pair] for pair in pairs if pair in first_in).most_common(1)
        almost = len(part) >= ALMOST and any(3 * same >= 2 * max(len(part), len(parts[earlier])) - 2 for earlier, same in alike)
        if almost or len(part) >= SAME and tuple(part) in seen:
            recurring += len(part)
        seen.add(tuple(part))
        for pair in pairs:
            first_in.setdefault(pair, at)
    return recurring > 0 and recurring >= RECURRING * sum(map(len, parts))
