"""Signs that captions do not describe their picture: their words, the order of words, and copies of human captions.

P: pictures   H: human captions
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from diversity.measures.references import Words, common_words

LONGEST = 20  # words of a caption whose order is examined
NEAR = 0.6  # share of the words of the longer of two captions from which one may be a copy of the other
EXPECTED = 2  # two words are common if chance would make them neighbours so many times


class Language:
    """The words and the pairs of neighbouring words in captions, and how many pictures have each of them."""

    def __init__(self, texts: Sequence[Sequence[Words]]):
        """`texts` are the captions of each picture, as words."""
        self._words = [{word for text in group for word in text} for group in texts]
        self._pairs = [{pair for text in group for pair in pairwise(text)} for group in texts]
        self._pictures_with = Counter(word for group in self._words for word in group)
        self._pictures_with_pair = Counter(pair for group in self._pairs for pair in group)
        self._times = Counter(word for group in texts for text in group for word in text)
        self._length = self._times.total()

    def order(self, caption: Words, picture: int) -> tuple[float, float]:
        """Return the share of neighbouring words that another picture has as neighbours, too, and that of any order.

        The second share is over all ordered pairs of the caption's words, so it is what a shuffled caption would have.
        NaN for fewer than three words.
        """
        caption, own_pairs = caption[:LONGEST], self._pairs[picture]
        count = len(caption)
        if count < 3:
            return np.nan, np.nan
        is_known = [  # whether another picture has the pair of a word of each row and a word of each column
            [self._pictures_with_pair[first, second] > ((first, second) in own_pairs) for second in caption]
            for first in caption
        ]
        known_neighbours = sum(is_known[index][index + 1] for index in range(count - 1))
        known_pairs = sum(map(sum, is_known)) - sum(is_known[index][index] for index in range(count))
        return known_neighbours / (count - 1), known_pairs / (count * (count - 1))

    def strangers(self, caption: Words, picture: int) -> tuple[float, float]:
        """Count the pairs of neighbours that are common words, and those of them that no other picture has.

        Two words are common if chance would make them neighbours `EXPECTED` times. People who write the language
        hardly ever have common words as neighbours that no other picture has, in whatever style; a word that replaces
        another one often does. NaN without a word.
        """
        if not caption:
            return np.nan, np.nan
        common, strangers = 0, 0
        for pair in pairwise(caption):
            if self._times[pair[0]] * self._times[pair[1]] >= EXPECTED * self._length:
                common += 1
                strangers += self._pictures_with_pair[pair] <= (pair in self._pairs[picture])
        return common, strangers

    def known(self, caption: Words) -> float:
        """Return the share of a caption's words that some of the captions has; NaN without a word."""
        return sum(word in self._pictures_with for word in caption) / len(caption) if caption else np.nan

    def grounded_thirds(self, caption: Words, picture: int, references: Sequence[Words]) -> tuple[float, float, float]:
        """Return how well the first third, the last third and all of a caption's words are grounded in its picture.

        `references` are captions of the picture. A word scores 1 if one of them has it, else 0, minus the share of
        other pictures whose captions have it. So words that say nothing about the picture score 0 on average. NaN for
        fewer than three words.
        """
        if len(caption) < 3:
            return np.nan, np.nan, np.nan
        reference_words = {word for text in references for word in text}
        other_pictures = max(1, len(self._words) - 1)
        grounded = []
        for word in caption:
            others_with_word = self._pictures_with[word] - (word in self._words[picture])
            grounded.append((word in reference_words) - others_with_word / other_pictures)
        third = len(caption) // 3
        return sum(grounded[:third]) / third, sum(grounded[-third:]) / third, sum(grounded) / len(grounded)


def copying(caption: Words, references: Sequence[Words]) -> tuple[float, float]:
    """Return whether a caption may be a copy of a reference, 0 or 1, and how much nearer it is to one than to others.

    `references` are human captions of its picture. The caption may be a copy if both have three fifths of the words of
    the longer one in the same order. Nearness is the Jaccard similarity of their sets of words. A copy, even a noisy
    one, is nearer to its original than to all other references; a caption that says what all references say is not.
    The nearness is NaN for fewer than two references.
    """
    caption_words = set(caption)
    nearness = []
    for reference in map(set, references):
        nearness.append(len(caption_words & reference) / (len(caption_words | reference) or 1))
    nearness.sort(reverse=True)
    same = any(common_words(caption, text) >= NEAR * max(len(caption), len(text)) for text in references)
    return float(same), nearness[0] - nearness[1] if len(nearness) > 1 else np.nan


def alike(texts: Sequence[Sequence[Words]]) -> np.ndarray:
    """Return whether each picture's first human caption is much like one of another picture (P,), 0 or 1.

    NaN for a picture without a caption.

    Two captions are much alike if both have at least half of their words (Jaccard). Among a thousand pictures with
    free descriptions by people, this holds for one in four. If it holds for nearly all, people follow templates, and
    an honest captioner writes the same sentences as people do.
    """
    sets = [set(text) for group in texts for text in group]  # (H,)
    owners = np.repeat(np.arange(len(texts)), [len(group) for group in texts])  # (H,)
    sizes = np.array([len(caption_words) for caption_words in sets])  # (H,)
    captions_with: dict[str, list[int]] = {}
    for number, caption_words in enumerate(sets):
        for word in caption_words:
            captions_with.setdefault(word, []).append(number)
    is_alike = np.full(len(texts), np.nan)
    for picture, first in zip(*np.unique(owners, return_index=True)):
        common = np.bincount(np.concatenate([captions_with[word] for word in sets[first]]), minlength=len(sets))
        is_alike[picture] = (2 * common >= sizes + sizes[first] - common)[owners != picture].any()
    return is_alike
