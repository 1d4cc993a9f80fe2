"""Find the captions that may be degenerate among many, so that only these have to be examined one by one.

C: captions   K: chunks of all captions, which are the stretches between white space   W: words of all captions
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from captioners.replies import holds_token
from diversity.words.conversations import may_converse
from diversity.words.endings import HANGING, HANGING_MARKS, LYING, MIN_WORDS, is_sentence_before_comma
from diversity.words.loops import MAX_LOOP
from diversity.words.nonwords import RANDOM, UNDECODED, is_misread, is_nonsense, randomness
from diversity.words.refusals import may_refuse
from diversity.words.sentences import sentences
from diversity.words.tokens import LONG_CHUNK, Tokens

# Traits of a chunk, as bits.
(
    _ENDS_OPEN,
    _ENDS_ARTICLE,
    _STARTS_WRONG,
    _ENDS_DIGIT,
    _IS_NUMBER,
    _STARTS_DIGIT,
    _IS_FAULT,
    _IS_NONSENSE,
    _ENDS_SENTENCE,
    _HAS_SENTENCES,
    _IS_LAST,
) = (1 << bit for bit in range(11))
_TRAITS = tuple(
    (bit, re.compile(pattern))
    for bit, pattern in (
        (_ENDS_ARTICLE, r"\b(?:an?|[Tt]he)\Z"),
        (_STARTS_WRONG, r"\A(?:(?:and|or|at|on|in)\Z|(?:of|with|is|are|was|from)\b)"),
        (_ENDS_DIGIT, r"\d\Z"),
        (_IS_NUMBER, r"\A\d+\Z"),
        (_STARTS_DIGIT, r"\A\d"),
        (_IS_FAULT, r"\d{7}"),
        (_IS_FAULT, UNDECODED),
    )
)
_RECURRING_PAIRS = 0.02  # share of the words from which recurring pairs of neighbours may be recurring sentences


def suspects(captions: Sequence[str], tokens: Tokens) -> np.ndarray:
    """Return which captions (C,) may be degenerate; for all others `degenerate_reasons` finds no reason.

    `tokens` are those of the captions. Few good captions are among the suspects, and each different chunk is examined
    once, so a set is searched in a small part of the time that `degenerate_reasons` takes for all captions.
    """
    traits = np.fromiter(
        (_traits_short(chunk) if len(chunk) <= LONG_CHUNK else _traits(chunk) for chunk in tokens.chunks),
        np.uint16,
        len(tokens.chunks),
    )[tokens.chunk_ids]  # (K,)
    chunks = np.diff(tokens.chunk_ends)
    caption = np.repeat(np.arange(len(chunks)), chunks)  # (K,)
    suspicious = (tokens.lengths < MIN_WORDS) | _may_loop(tokens)
    hanging, lying, on = (
        np.array([word in words for word in tokens.vocabulary], bool) for words in (HANGING, LYING, ("on",))
    )
    last = tokens.ids[tokens.caption_ends[1:][~suspicious] - 1]  # of captions with some words
    suspicious[~suspicious] |= hanging[last] | on[last] & lying[tokens.ids[tokens.caption_ends[1:][~suspicious] - 2]]

    def having(*bits: int) -> np.ndarray:
        """Return which captions (C,) have consecutive chunks with these traits, one trait each."""
        first = np.flatnonzero(traits & bits[0])
        first = first[first + len(bits) <= len(traits)]
        first = first[caption[first] == caption[first + len(bits) - 1]]
        for offset, bit in enumerate(bits[1:], 1):
            first = first[traits[first + offset] & bit > 0]
        return np.bincount(caption[first], minlength=len(chunks)) > 0

    traits[tokens.chunk_ends[1:][chunks > 0] - 1] |= _IS_LAST
    ends_open = caption[np.flatnonzero(traits & (_ENDS_OPEN | _IS_LAST) == _ENDS_OPEN | _IS_LAST)]
    for index in map(int, ends_open):
        suspicious[index] |= not is_sentence_before_comma(captions[index].rstrip(), int(tokens.lengths[index]))
    traits[traits & (_ENDS_SENTENCE | _IS_LAST) == _ENDS_SENTENCE] |= _HAS_SENTENCES
    suspicious |= (
        having(_IS_FAULT) | having(_ENDS_ARTICLE, _STARTS_WRONG) | having(_ENDS_DIGIT, _IS_NUMBER, _STARTS_DIGIT)
    )
    bad = np.bincount(caption[np.flatnonzero(traits & _IS_NONSENSE)], minlength=len(chunks))
    suspicious |= (bad > 0) & (3 * bad >= chunks)
    values = np.array([randomness(chunk)[1] for chunk in tokens.chunks], np.int64)[tokens.chunk_ids]
    suspicious |= np.bincount(caption, values, minlength=len(chunks)) >= RANDOM
    suspicious |= _may_recur(tokens, having(_HAS_SENTENCES))
    text = "".join(captions)
    for blank in "\0\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0":  # signs of wrong decoding that are white space, so in no chunk
        if blank in text:
            suspicious |= np.array([blank in caption for caption in captions])
    return suspicious


def _may_loop(tokens: Tokens) -> np.ndarray:
    """Return the captions (C,) in which some words are followed at once by the same but for numbers."""
    are_numbers = np.array([word.isdecimal() for word in tokens.vocabulary], bool)
    loops = np.zeros(len(tokens.lengths), bool)
    words, captions = tokens.ids, tokens.caption_of_word
    for lag in range(1, MAX_LOOP + 1):
        long = tokens.lengths[captions] >= 2 * lag
        words, captions = words[long], captions[long]
        if not len(words):
            break
        if lag == 2:  # units that count have a word beside the number
            words = np.where(are_numbers[words], -1, words)
        same = (words[lag:] == words[:-lag]) & (captions[lag:] == captions[:-lag])
        ends = np.concatenate([[0], np.cumsum(same)])
        loops[captions[: len(ends) - lag][ends[lag:] - ends[:-lag] == lag]] = True
    return loops


def _may_recur(tokens: Tokens, examined: np.ndarray) -> np.ndarray:
    """Return which `examined` captions (C,) have as many recurring pairs of words as recurring sentences need."""
    of_examined = np.flatnonzero(examined[tokens.caption_of_word])
    words, captions = tokens.ids[of_examined], tokens.caption_of_word[of_examined]
    same_caption = captions[:-1] == captions[1:]
    pairs = (words[:-1] * len(tokens.vocabulary) + words[1:])[same_caption]
    captions = captions[:-1][same_caption]
    order = np.lexsort((pairs, captions))
    pairs, captions = pairs[order], captions[order]
    recurs = (pairs[1:] == pairs[:-1]) & (captions[1:] == captions[:-1])
    recurring = np.bincount(captions[1:][recurs], minlength=len(examined))
    return (recurring >= 2) & (recurring >= _RECURRING_PAIRS * tokens.lengths)


def _traits(chunk: str) -> int:
    """Return the traits of a chunk as bits."""
    traits = sum({bit for bit, pattern in _TRAITS if pattern.search(chunk)})
    if chunk.endswith(HANGING_MARKS):
        traits |= _ENDS_OPEN
    if holds_token(chunk) or "Ġ" in chunk or may_converse(chunk) or may_refuse(chunk) or is_misread(chunk):
        traits |= _IS_FAULT
    if is_nonsense(chunk.lower()):
        traits |= _IS_NONSENSE
    if not chunk.isalnum():  # then it may contain marks
        traits |= _ENDS_SENTENCE if len(sentences(f"{chunk} A")) > 1 else 0
        traits |= _HAS_SENTENCES if len(sentences(f"A {chunk}")) > 1 else 0
    return traits


_traits_short = lru_cache(maxsize=1 << 17)(_traits)
