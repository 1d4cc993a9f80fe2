"""Signs of captions that are no captions of their picture: their words, the words' order, and copies of human captions.

P: pictures   H: human captions
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from diversity.measures.references import Words, common_words

LONGEST = 20  # words of a caption whose order is looked at
NEAR = 0.6  # of the words of the longer of two captions, where one may be a copy of the other
EXPECTED = 2  # times that two words would be neighbours if any were, so that it says something if they never are


class Language:
    """Words and pairs of neighbouring words in captions, and under how many pictures each stands."""

    def __init__(self, texts: Sequence[Sequence[Words]]):
        """`texts` are the captions of each picture, as words."""
        self._words = [{word for text in group for word in text} for group in texts]
        self._pairs = [{pair for text in group for pair in pairwise(text)} for group in texts]
        self._pictures_with = Counter(word for group in self._words for word in group)
        self._pictures_with_pair = Counter(pair for group in self._pairs for pair in group)
        self._times = Counter(word for group in texts for text in group for word in text)
        self._length = self._times.total()

    def order(self, caption: Words, picture: int) -> tuple[float, float]:
        """The share of a caption's neighbouring words that are neighbours under another picture too, and that of words
        in any order.

        NaN for fewer than three words.
        """
        caption, own = caption[:LONGEST], self._pairs[picture]
        if len(caption) < 3:
            return np.nan, np.nan
        known = [
            [self._pictures_with_pair[one, other] > ((one, other) in own) for other in caption] for one in caption
        ]
        places = range(len(caption))
        neighbours = [known[at][at + 1] for at in places[:-1]]
        return sum(neighbours) / len(neighbours), (sum(map(sum, known)) - sum(known[at][at] for at in places)) / (
            len(caption) * (len(caption) - 1)
        )

    def strangers(self, caption: Words, picture: int) -> tuple[float, float]:
        """How many pairs of neighbours are common words, and how many of these stand under no other picture.

        Common: chance alone would have them be neighbours `EXPECTED` times. Whoever writes the language hardly ever has such
        strangers, in any style; a word that was put in the place of another often makes some. NaN for no word.
        """
        if not caption:
            return np.nan, np.nan
        common = [
            pair
            for pair in pairwise(caption)
            if self._times[pair[0]] * self._times[pair[1]] >= EXPECTED * self._length
        ]
        return len(common), sum(self._pictures_with_pair[pair] <= (pair in self._pairs[picture]) for pair in common)

    def known(self, caption: Words) -> float:
        """The share of a caption's words that stand in some caption, NaN without a word."""
        return sum(word in self._pictures_with for word in caption) / len(caption) if caption else np.nan

    def grounded_thirds(self, caption: Words, picture: int, own: Sequence[Words]) -> tuple[float, float, float]:
        """How well the first third, the last third and all of a caption's words are grounded in `own` captions of the picture.

        A word is grounded by 1 where one of these has it, else by 0, less the share of other pictures whose captions have it; so
        words that say nothing of the picture are grounded by 0 on average. NaN for fewer than three words.
        """
        if len(caption) < 3:
            return np.nan, np.nan, np.nan
        here, others = {word for text in own for word in text}, max(1, len(self._words) - 1)
        grounded = [
            (word in here) - (self._pictures_with[word] - (word in self._words[picture])) / others for word in caption
        ]
        third = len(caption) // 3
        return sum(grounded[:third]) / third, sum(grounded[-third:]) / third, sum(grounded) / len(grounded)


def copying(caption: Words, own: Sequence[Words]) -> tuple[float, float]:
    """Whether a caption may be a copy of a human caption of its picture, 0 or 1, and how much nearer it is to one than
    to the next.

    It may be a copy where three fifths of the words of the longer stand in both in one order. Nearness is the Jaccard
    similarity of their sets of words: a copy, with noise too, is nearer to its one model than to all others; a caption
    that says what all of them say is not. NaN of fewer than two human captions.
    """
    mine = set(caption)
    near = sorted((len(mine & theirs) / (len(mine | theirs) or 1) for theirs in map(set, own)), reverse=True)
    same = any(common_words(caption, text) >= NEAR * max(len(caption), len(text)) for text in own)
    return float(same), near[0] - near[1] if len(near) > 1 else np.nan


def alike(texts: Sequence[Sequence[Words]]) -> np.ndarray:
    """Whether each picture's first human caption is much like one of another picture (P,), 0 or 1; NaN without a caption.

    Much like: at least half of their words are in both (Jaccard). Of people's free descriptions one in four is, in a thousand
    pictures; where nearly all are, they follow templates, and an honest captioner says the same sentence as people do.
    """
    sets = [set(text) for group in texts for text in group]  # (H,)
    owners = np.repeat(np.arange(len(texts)), [len(group) for group in texts])  # (H,)
    sizes, holders = np.array([len(found) for found in sets]), {}
    for at, found in enumerate(sets):
        for word in found:
            holders.setdefault(word, []).append(at)
    found = np.full(len(texts), np.nan)
    for picture, first in zip(*np.unique(owners, return_index=True)):
        common = np.bincount(np.concatenate([holders[word] for word in sets[first]]), minlength=len(sets))
        found[picture] = (2 * common >= sizes + sizes[first] - common)[owners != picture].any()
    return found
