"""Find captions that repeat themselves: loops of words, and sentences that recur."""

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

from diversity.words.endings import languages_of
from diversity.words.sentences import sentences
from diversity.words.tokens import is_written_without_blanks, pieces, words

MAX_LOOP = 64  # largest unit of a loop, in pieces; larger units are found as sentences only
# A unit that counts on, as in "person 1, person 2, …", must occur so many times to be a loop, and have at most so many
# pieces.
COUNTED, LONGEST_COUNTED = 8, 5
MAX_DIGITS = 6  # of a number that counts
MAX_SIGN_REPEATS = 4  # times that a text on a sign may repeat a unit
SAME = 3  # smallest number of words of a sentence that recurs word for word
ALMOST = 6  # smallest number of words of a sentence that recurs almost word for word
RECURRING = 0.15  # share of a caption's words that must be in recurring sentences
RECURRING_LONG = 0.05  # the same for recurring sentences of at least ALMOST words
MAX_EARLIER = 8  # earlier sentences that are remembered for each pair of words
MAX_COMPARED = 3  # earlier sentences that a sentence is compared with

# Units that good captions repeat: "hand in hand in", "side by side by side", "Arm in Arm in", "main dans la main dans
# la", "a black and white and black and white dog", "एक लड़की एक लड़की से बात".
_TWICE = re.compile(
    r"\w{3,}(?<!ing) (?:in|by|to|on|after|upon|for|an|um|für|aan|à|nella|dans la)"
    r"|(?:and|und|et)(?: \w+){1,2}|\w+ (?:and|und|et)(?: \w+)?|\w+ \w+ (?:and|und|et)|एक \S+"
)
_PLACES = frozenset(
    "left right top bottom upper lower front back foreground background middle center centre first second third "
    "fourth last one other another links rechts linken rechten oben unten gauche droite haut bas vlevo vpravo "
    "nahoře dole izquierda derecha sinistra destra 左 右 上 下 前 后 後 中 बाईं दाईं बाएं दाएं".split()
)
# Sounds, which come in threes: "ho ho ho", "a cha cha cha", "tick tock tick tock".
_SOUNDS = frozenset(
    "ha ho he hee hi la na cha choo ja no yes yeah knock woof meow quack tweet bang boom buzz beep tick tock".split()
)
_VERBS = frozenset("is are has have wears ist hat trägt est a porte es está tiene".split())
SAYING = frozenset("reads read reading says say saying written spells spelling \" “ „ « ‘ ' 「 『".split())


def looping(caption: str, caption_words: Sequence[str]) -> int:
    """Count the words in loops, which are places where a unit of pieces is followed by itself too often, or counts on.

    Punctuation marks are pieces, too, so "the wall. The wall is red" has no loop.
    """
    counting_words = _without_numbers(caption_words)
    if not _has_pair_twice(counting_words):
        return 0  # every loop has some pair of words twice
    units = pieces(caption)
    written = pieces(caption, fold=False)
    has_capitals = len(written) == len(units) and not caption.isupper()
    # Names have capitals, but not where all words have them, and not in German.
    has_names = has_capitals and any(map(str.islower, written)) and languages_of(caption_words) != ["de"]
    in_loops: set[int] = set()  # indices of pieces
    for start, end, size in _repeats(units) if _has_pair_twice(caption_words) else ():
        unit = units[start : start + size]
        in_capitals = has_capitals and "".join(written[start : start + size]).isupper()
        is_name = has_names and all(piece[0].isupper() or piece in ",!?" for piece in written[start:end])
        fewest = _fewest_repeats(unit)
        if _follows_saying(units, start) or in_capitals or is_name:  # the text of a sign, or "New York New York"
            fewest = max(fewest, MAX_SIGN_REPEATS + 1)
        if (end - start) // size >= fewest:
            in_loops.update(range(start, end))
    if counting_words != caption_words:
        for start, end, size in _repeats(_without_numbers(units)):
            if size <= LONGEST_COUNTED and (end - start + 1) // size >= COUNTED and _counts_on(units[start:end]):
                in_loops.update(range(start, end))
    return sum(units[index][0].isalnum() for index in in_loops)


def _follows_saying(units: Sequence[str], start: int) -> bool:
    """Return whether the pieces before a place say that a sign reads what follows, or a quotation begins there."""
    before = set(units[max(start - 3, 0) : start])
    if '"' in before and units[:start].count('"') % 2 == 0:  # the end of a quotation
        before.remove('"')
    return not SAYING.isdisjoint(before)


def _has_pair_twice(units: Sequence[str]) -> bool:
    """Return whether some pair of neighbours occurs twice."""
    return len(set(pairwise(units))) < len(units) - 1


def _without_numbers(units: Sequence[str]) -> list[str]:
    """Return pieces with one piece for all numbers."""
    return ["0" if _is_number(unit) else unit for unit in units]


def _is_number(unit: str) -> bool:
    """Return whether a piece is a number that may count something."""
    return unit.isdecimal() and len(unit) <= MAX_DIGITS


def _counts_on(units: Sequence[str]) -> bool:
    """Return whether pieces have words and numbers that count up by one."""
    numbers = [int(unit) for unit in units if _is_number(unit)]
    return any(map(str.isalpha, units)) and all(after == before + 1 for before, after in pairwise(numbers))


def _repeats(units: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Yield start, end and size of the unit of each place where a unit of pieces is followed by itself."""
    for size in _possible_sizes(units):
        same = 0  # pieces in a row that equal the piece `size` before
        for index in range(size, len(units) + 1):
            if index < len(units) and units[index] == units[index - size]:
                same += 1
                continue
            if same >= size:
                yield index - same - size, index, size
            same = 0


def _possible_sizes(units: Sequence[str]) -> list[int]:
    """Return the sizes of units that may be followed by themselves: distances at which enough pairs of words recur."""
    starts_of: dict[tuple[str, str], deque[int]] = {}
    pairs_at = Counter()  # distance -> number of pairs that recur at it
    for index, pair in enumerate(pairwise(units)):
        earlier = starts_of.setdefault(pair, deque(maxlen=MAX_LOOP))
        pairs_at.update(distance for start in earlier if (distance := index - start) <= MAX_LOOP)
        earlier.append(index)
    return sorted(size for size, pairs in pairs_at.items() if pairs >= size - 1)


def _fewest_repeats(unit: Sequence[str]) -> float:
    """Return how often a unit must occur in a row to be a loop."""
    unit_words = [piece for piece in unit if piece[0].isalnum()]
    if not unit_words:
        return float("inf")
    # In scripts without blanks a word is a character, and doubled words are common: 高高兴兴, ゆっくりゆっくり
    by_character = all(map(is_written_without_blanks, unit_words))
    if _SOUNDS.issuperset(unit_words):
        return MAX_SIGN_REPEATS + 1
    if len(unit) == 1:
        return 4 if by_character else 3
    if by_character and len(unit) < 5 or _TWICE.fullmatch(" ".join(unit)):
        return 3
    return 2


def recurs(caption: str) -> bool:
    """Return whether a good part of the words is in sentences that recur, word for word or almost.

    A sentence recurs almost if two thirds of its pairs of neighbouring words are in one earlier sentence, and are two
    thirds of the earlier sentence's pairs. Where the two sentences are about different places or things, as "on the
    left …" and "on the right …", or "the man is …" and "the boy is …", none recurs.
    """
    parts = sentences(caption)
    if len(parts) < 2:
        return False
    parts = [part for sentence in parts if (part := words(sentence))]
    earlier_parts: set[tuple[str, ...]] = set()
    with_pair: dict[tuple[str, str], list[int]] = {}  # pair -> the first sentences that have it
    short = long = 0  # words in sentences that recur word for word, and almost
    for number, part in enumerate(parts):
        pairs = list(pairwise(part))
        common_pairs = Counter(earlier for pair in pairs for earlier in with_pair.get(pair, ()))
        almost = len(part) >= ALMOST and any(
            3 * common >= 2 * max(len(part), len(parts[earlier])) - 2
            and not _are_about_different_things(part, parts[earlier])
            for earlier, common in common_pairs.most_common(MAX_COMPARED)
        )
        if almost:
            long += len(part)
        elif len(part) >= SAME and tuple(part) in earlier_parts:
            short += len(part)
        earlier_parts.add(tuple(part))
        for pair in set(pairs):
            if len(sentences_with := with_pair.setdefault(pair, [])) < MAX_EARLIER:
                sentences_with.append(number)
    length = sum(map(len, parts))
    return long > 0 and long >= RECURRING_LONG * length or short > 0 and short + long >= RECURRING * length


def _are_about_different_things(first: Sequence[str], second: Sequence[str]) -> bool:
    """Return whether each of two sentences names a place or an ordinal number that the other lacks, or its own thing.

    A thing is the second word of a sentence whose third word is a verb: "the man is", "the boy is".
    """
    first_places, second_places = _PLACES.intersection(first), _PLACES.intersection(second)
    if first_places - second_places and second_places - first_places:
        return True
    return first[1] != second[1] and first[2] == second[2] in _VERBS
