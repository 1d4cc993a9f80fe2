"""What a degenerate caption is, defined once, and how true the facts are that captions state.

Noise looks diverse, so no measure of spread is shown without these.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from diversity.tokens import LONG_CHUNK, Tokens, pieces, words

MIN_WORDS = 3
LONGEST_WORD = 24
MAX_LOOP = 64  # pieces; longer repeated units are not looked for


class Reason(NamedTuple):
    """Why a caption is degenerate: what the reason means, and captions that have it."""

    meaning: str
    examples: tuple[str, ...]


REASONS: Mapping[str, Reason] = {
    "empty": Reason("no word at all", ("", "  ", "...")),
    "short": Reason(f"fewer than {MIN_WORDS} words", ("cat", "a dog.")),
    "loop": Reason("a word three times in a row, or several words and at once the same again",
                   ("a 2 2 2 2", "a man on the on the street", "a cat. a cat. a cat.")),
    "cut": Reason("stopped by the length limit, or the last word or mark cannot end a sentence",
                  ("a dog standing next to a", "a plate full of", "two men in hats,")),
    "broken": Reason("an article before a word that it cannot stand before",
                     ("a zebra standing a and grass a on a round tree", "the of a red circle")),
    "digits": Reason("three numbers in a row, or a number of seven digits or more",
                     ("a 2 2 2 2", "photo 4 17 2019 of a dog", "order number 20190304221 of the shop")),
    "nonwords": Reason("at least a third of it is no words: file names, web addresses, letters that cannot be read, "
                       "or characters that could not be decoded",
                       ("IMG_20413.JPG photo", "a xkqrtz bfghjk", "a caf\ufffd by the sea")),
}

# Words that do not end an English sentence. "on", "in", "up", "her" and "that" are left out: people end captions so.
_HANGING = frozenset("a an the and or but of with at from into onto than his its their my your our".split())
_HANGING_MARKS = tuple(",;:-–—(&/")
_ARTICLE, _AFTER_NONE = r"\b(?:an?|[Tt]he)", r"(?:and|or|of|with|is|are|was|from|at|on|in)\b(?!-)"  # "A and B" may be names
_BROKEN = re.compile(rf"{_ARTICLE}\s+{_AFTER_NONE}")
_DIGIT_RUN = re.compile(r"\d(?:\d{6}|\d*\s+\d+\s+\d)")
_UNDECODED = re.compile(r"[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SUSPICIOUS = re.compile(r"[.:\d]\w|://|([a-z])\1\1|[bcdfghjklmnpqrstvwxz]{5}")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S|\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|pdf|html?)\b")
_LETTERS_AND_DIGITS = re.compile(r"[a-z]+\d+[a-z]+\d+|\d+[a-z]+\d+[a-z]+")  # a1b2, not mp3, 4x4 or h2o
_THRICE = re.compile(r"([a-z])\1\1")
_NO_VOWEL = re.compile(r"[bcdfghjklmnpqrstvwxz]{5,}")
_ROMAN = re.compile(r"[ivxlcdm]+")


def degenerate_reasons(caption: str, truncated: bool = False, found: list[str] | None = None) -> tuple[str, ...]:
    """The names of `REASONS` for which the caption is degenerate, in their order; none for a good caption.

    `truncated` is a record's own mark that the captioner stopped at its length limit; `found` are the caption's words, where
    they are known. The rules look at form alone and know English best; a fluent caption of another picture has no reason here.
    """
    found = words(caption) if found is None else found
    if not found:
        return ("empty",)
    tests = {"short": len(found) < MIN_WORDS,
             "loop": _has_loop(caption, found),
             "cut": truncated or _ends_hanging(caption, found[-1]),
             "broken": _BROKEN.search(caption) is not None,
             "digits": _DIGIT_RUN.search(caption) is not None,
             "nonwords": _has_nonwords(caption.lower(), found)}
    return tuple(reason for reason, holds in tests.items() if holds)


def _has_loop(caption: str, found: list[str]) -> bool:
    """Whether a unit of words is followed by itself: one word twice more, or two and more pieces once more.

    Marks count here: "the wall. The wall is red" is no loop, "a cat. a cat." is one.
    """
    if len(set(pairwise(found))) == len(found) - 1:
        return False  # a loop holds some pair of words twice
    units = pieces(caption)
    earlier: dict[tuple[str, str], list[int]] = {}
    for at, pair in enumerate(pairwise(units)):
        before = earlier.setdefault(pair, [])
        for start in reversed(before):
            if at - start > MAX_LOOP:
                break
            unit = units[start:at]
            if unit == units[at:2 * at - start] and any(piece[0].isalnum() for piece in unit):
                return True
        before.append(at)
    return False


def _ends_hanging(caption: str, last: str) -> bool:
    text = caption.rstrip()
    if text.endswith(_HANGING_MARKS):
        return True
    if last not in _HANGING:
        return False
    return not (last == "a" and "A" in text[-3:] and not text.isupper())  # "gate A" is a name


def _has_nonwords(caption: str, found: list[str]) -> bool:
    if _UNDECODED.search(caption):
        return True
    chunks = caption.split()
    if not any(len(chunk) > LONG_CHUNK or _is_suspicious(chunk) for chunk in chunks) and max(map(len, found)) <= LONGEST_WORD:
        return False  # nearly every caption: nothing below can hold
    bad = sum(_ADDRESS.search(chunk) is not None or any(map(_is_nonword, words(chunk))) for chunk in chunks)
    return bad > 0 and 3 * bad >= len(chunks)


@lru_cache(maxsize=1 << 16)
def _is_suspicious(chunk: str) -> bool:
    return _SUSPICIOUS.search(chunk) is not None


def _is_nonword(word: str) -> bool:
    if not word.isascii():
        return False  # scripts that these rules do not know
    if _LETTERS_AND_DIGITS.search(word):
        return True
    if not word.isalpha() or _ROMAN.fullmatch(word):
        return False
    return len(word) > LONGEST_WORD or _NO_VOWEL.fullmatch(word) is not None or _THRICE.search(word) is not None


# What `suspects` asks of a chunk, a stretch between white space, as bits.
(_ENDS_OPEN, _ENDS_ARTICLE, _STARTS_WRONG, _ENDS_DIGIT, _IS_NUMBER, _STARTS_DIGIT, _IS_LONG_NUMBER, _IS_UNDECODED,
 _IS_NONWORD) = (1 << at for at in range(9))
_TRAITS = tuple((bit, re.compile(pattern)) for bit, pattern in (
    (_ENDS_ARTICLE, rf"{_ARTICLE}\Z"), (_STARTS_WRONG, rf"\A{_AFTER_NONE}"), (_ENDS_DIGIT, r"\d\Z"), (_IS_NUMBER, r"\A\d+\Z"),
    (_STARTS_DIGIT, r"\A\d"), (_IS_LONG_NUMBER, r"\d{7}"), (_IS_UNDECODED, _UNDECODED)))


def suspects(captions: Sequence[str], tokens: Tokens) -> np.ndarray:
    """Which captions (C,) may be degenerate, `tokens` being theirs: for all others `degenerate_reasons` finds nothing.

    It marks few others, and reads each chunk once, so that a set is searched in a small part of the time.
    """
    traits = np.fromiter((_traits_short(chunk) if len(chunk) <= LONG_CHUNK else _traits(chunk) for chunk in tokens.chunks),
                         np.uint16, len(tokens.chunks))[tokens.chunk_ids]  # (K,)
    chunks = np.diff(tokens.chunk_ends)
    caption = np.repeat(np.arange(len(chunks)), chunks)                   # (K,)
    found = (tokens.lengths < MIN_WORDS) | _may_loop(tokens)
    hanging = np.array([word in _HANGING for word in tokens.vocabulary], bool)
    with_words, last = tokens.lengths > 0, tokens.caption_ends[1:] - 1
    found[with_words] |= hanging[tokens.ids[last[with_words]]]

    def mark(places: np.ndarray, *bits: int) -> None:
        """Marks captions that have a chunk of the first bits among places, the next of the second, and so on."""
        places = places[places + len(bits) <= len(traits)]
        places = places[caption[places] == caption[places + len(bits) - 1]]
        for at, bit in enumerate(bits):
            places = places[traits[places + at] & bit > 0]
        found[caption[places]] = True

    everywhere = np.arange(len(traits))
    mark(tokens.chunk_ends[1:][chunks > 0] - 1, _ENDS_OPEN)
    mark(everywhere, _ENDS_ARTICLE, _STARTS_WRONG)
    mark(everywhere, _ENDS_DIGIT, _IS_NUMBER, _STARTS_DIGIT)
    mark(everywhere, _IS_LONG_NUMBER | _IS_UNDECODED)
    bad = np.bincount(caption, traits & _IS_NONWORD > 0, len(chunks))
    found |= (bad > 0) & (3 * bad >= chunks)
    text = "".join(captions)
    if any(lost in text for lost in "\0\x1c\x1d\x1e\x1f"):  # undecoded, but chunks need not hold them
        found |= np.array([_UNDECODED.search(caption) is not None for caption in captions])
    return found


def _may_loop(tokens: Tokens) -> np.ndarray:
    """Captions (C,) in which some words are followed at once by the same again."""
    found = np.zeros(len(tokens.lengths), bool)
    words, captions = tokens.ids, tokens.caption_of_word
    for lag in range(1, MAX_LOOP + 1):
        long = tokens.lengths[captions] >= 2 * lag
        words, captions = words[long], captions[long]
        if not len(words):
            break
        same = (words[lag:] == words[:-lag]) & (captions[lag:] == captions[:-lag])
        ends = np.concatenate([[0], np.cumsum(same)])
        found[captions[:len(ends) - lag][ends[lag:] - ends[:-lag] == lag]] = True
    return found


def _traits(chunk: str) -> int:
    lower = chunk.lower()
    nonword = _ADDRESS.search(lower) is not None or any(map(_is_nonword, words(lower)))
    return (_ENDS_OPEN * chunk.endswith(_HANGING_MARKS) + _IS_NONWORD * nonword
            + sum(bit for bit, pattern in _TRAITS if pattern.search(chunk)))


_traits_short = lru_cache(maxsize=1 << 17)(_traits)


def count_true(caption: str, scene: Mapping[str, Any]) -> tuple[int, int]:
    """How many of the facts that a caption of a built-in picture states are true, and how many it states."""
    from imagetext.facts import facts_of, true_facts

    stated = facts_of(caption)
    return len(stated & true_facts(scene)), len(stated)


class FactCounts:
    """Facts of captions against the truth, by kind; a sum over pictures, so shards add up in any order.

    precision = true stated facts / stated facts, over captions; recall = key facts of the pictures that some of their
    captions state / key facts. Both in [0, 1], higher is better; None where there is nothing to divide by.
    """

    def __init__(self) -> None:
        self.captions = 0
        self.stated, self.true, self.key, self.found = Counter(), Counter(), Counter(), Counter()

    def update(self, captions: Sequence[str], scene: Mapping[str, Any]) -> None:
        """Counts the captions of one built-in picture, whose description is `scene`."""
        from imagetext.facts import facts_of, key_facts, true_facts

        true, key = true_facts(scene), key_facts(scene)
        stated = [facts_of(caption) for caption in captions]
        self.captions += len(captions)
        for facts in stated:
            self.stated.update(fact.kind for fact in facts)
            self.true.update(fact.kind for fact in facts & true)
        self.key.update(fact.kind for fact in key)
        self.found.update(fact.kind for fact in key & frozenset().union(*stated))

    def merge(self, other: "FactCounts") -> None:
        self.captions += other.captions
        for mine, theirs in zip((self.stated, self.true, self.key, self.found),
                                (other.stated, other.true, other.key, other.found), strict=True):
            mine.update(theirs)

    def result(self) -> dict[str, Any] | None:
        """Precision and recall of all facts and of each kind, or None where no picture's truth is known."""
        if not self.captions:
            return None
        from imagetext.facts import KINDS

        kinds = {kind: _scores(self.stated[kind], self.true[kind], self.key[kind], self.found[kind])
                 for kind in KINDS if self.stated[kind] or self.key[kind]}
        total = _scores(*(counts.total() for counts in (self.stated, self.true, self.key, self.found)))
        return {**total, "stated_per_caption": total["stated"] / self.captions, "kinds": kinds}


def _scores(stated: int, true: int, key: int, found: int) -> dict[str, float | None]:
    return {"precision": true / stated if stated else None, "recall": found / key if key else None,
            "stated": stated, "true": true, "key": key, "found": found}
