"""Measure how many bits captions tell about their picture, and how much each further caption of a picture adds.

N: captions   P: pictures   V: different words of all references
"""

from collections.abc import Mapping, Sequence

import numpy as np

from diversity.measures.pairs import Groups
from diversity.measures.references import CiderD, Words
from diversity.words.content import content_words
from diversity.words.tokens import words

SHARPEST = 1e5  # the largest factor of cosines, at which even the smallest difference decides
HALVINGS = 40  # steps of the bisection for the best factor


def picture_bits(likeness: np.ndarray, owners: np.ndarray) -> float:
    """Return how many bits a caption tells on average about which of P pictures is its own, for a judge of likeness.

    likeness (N, P): how alike each caption and each picture are. owners (N,): each caption's picture.

    With q(p | c) = softmax over p of s · likeness, the result is log₂ P + the mean of log₂ q(own | c), for the s ≥ 0
    that makes this greatest. It is a lower bound of the mutual information between captions and pictures (Barber and
    Agakov 2003; InfoNCE, van den Oord et al. 2018). In [0, log₂ P]: log₂ P where each caption is nearest to its own
    picture and to no other; 0 for captions that fit any picture equally well, true or not, and for captions of other
    pictures; log₂ (P / g) where g pictures share each caption.
    """
    own_likeness = likeness[np.arange(len(owners)), owners]  # (N,)
    low, high = 0.0, SHARPEST
    for _ in range(HALVINGS):  # the bits are a concave function of s
        middle = np.sqrt(max(low, 1e-3) * high)
        low, high = (middle, high) if _slope(likeness, own_likeness, middle) > 0 else (low, middle)
    logits = high * (likeness - own_likeness[:, None])  # (N, P) relative to the own picture
    largest = logits.max(axis=1, keepdims=True)
    losses = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))  # (N,) -ln q(own | c)
    return max(0.0, float((np.log(likeness.shape[1]) - losses.mean(dtype=np.float64)) / np.log(2)))


def _slope(likeness: np.ndarray, own_likeness: np.ndarray, sharpness: float) -> float:
    """Return the derivative of the bits by s: the own likeness minus the expected likeness, mean over captions."""
    weights = np.exp(sharpness * (likeness - likeness.max(axis=1, keepdims=True)))
    expected = (weights * likeness).sum(axis=1) / weights.sum(axis=1)
    return float((own_likeness - expected).mean(dtype=np.float64))


class ReferenceSearch:
    """Compare captions with the references of every picture by CIDEr without its penalty for other lengths."""

    def __init__(self, references: Groups):
        """`references` are the captions of each picture; those without a word are left out."""
        texts = [[text_words for text in group if (text_words := words(text))] for group in references]
        self._cider, self._pictures = CiderD(texts), len(texts)
        weight_of: dict[Words, dict[int, float]] = {}  # n-gram -> picture -> mean weight over its references
        for picture, group in enumerate(texts):
            for text in group:
                for ngram, weight in self._scaled_ngrams(text):
                    postings = weight_of.setdefault(ngram, {})
                    postings[picture] = postings.get(picture, 0.0) + weight / len(group)
        self._postings = {
            ngram: (np.array([*postings], int), np.array([*postings.values()], np.float32))
            for ngram, postings in weight_of.items()
        }

    def _scaled_ngrams(self, text: Words) -> list[tuple[Words, float]]:
        """Return the n-grams with their weights, for each n scaled to a vector of length ½.

        So the sum of products over n = 1..4 is a mean of four cosines.
        """
        weights, norms = self._cider.weigh(tuple(text))
        return [(ngram, weight / norms[len(ngram) - 1] / 2) for ngram, weight in weights.items() if weight]

    def likeness(self, captions: Sequence[str]) -> np.ndarray:
        """Return the mean cosine of weighted n-grams over n = 1..4 and a picture's references (N, P), from 0 to 1."""
        likeness = np.zeros((len(captions), self._pictures), np.float32)
        for row, caption in zip(likeness, captions):
            for ngram, weight in self._scaled_ngrams(words(caption)):
                if postings := self._postings.get(ngram):
                    row[postings[0]] += weight * postings[1]
        return likeness


def word_bits(captions: Groups, references: Groups) -> np.ndarray:
    """Return the bits that captions tell about whether a word is true of their picture, for each reference word (V,).

    The words are sorted. The bits of a word are the mutual information of two facts: the caption has the word, and a
    reference of its picture has it. They are negative where captions have the word more often when it is not true.
    They are 0 for words that captions have whatever the picture shows, and 1 for a word that half of the pictures have
    and exactly their captions name. The expected value for chance, 1 ÷ (2 P ln 2), is subtracted (Miller 1955). Words
    that always occur together each have their bits, so the sum over words may be more than captions tell.
    """
    vocabulary = {word for group in references for text in group for word in words(text)}
    word_ids = {word: number for number, word in enumerate(sorted(vocabulary))}
    true = _has_words([[word for text in group for word in words(text)] for group in references], word_ids)  # (P, V)
    true = np.repeat(true, [len(group) for group in captions], axis=0)  # (N, V)
    named = _has_words([words(text) for group in captions for text in group], word_ids)  # (N, V)
    bits = np.zeros(len(word_ids))
    for is_named in (named, ~named):
        for is_true in (true, ~true):
            joint = (is_named & is_true).mean(axis=0)  # (V,)
            independent = is_named.mean(axis=0) * is_true.mean(axis=0)  # (V,)
            bits += joint * np.log2(np.divide(joint, independent, out=np.ones(len(word_ids)), where=joint > 0))
    signs = np.sign(len(named) * (named & true).sum(axis=0) - named.sum(axis=0) * true.sum(axis=0))  # (V,)
    return signs * bits - (signs != 0) / (2 * len(references) * np.log(2))


def _has_words(texts: Sequence[Words], word_ids: Mapping[str, int]) -> np.ndarray:
    """Return whether each text has each word (texts, V)."""
    has_word = np.zeros((len(texts), len(word_ids)), bool)
    for row, text in zip(has_word, texts):
        row[[word_ids[word] for word in text if word in word_ids]] = True
    return has_word


def new_words(captions: Groups, references: Groups) -> float:
    """Return how many content words of the references each further caption of a picture adds, mean over pictures.

    (words of all k captions - words of the caption that has most) ÷ (k - 1), counting the different content words that
    the references have, too. 0 for equal captions, for wrong ones, and for one caption alone.
    """
    added = []
    for group, references_of_picture in zip(captions, references, strict=True):
        reference_words = content_words(references_of_picture)
        shared = [content_words([text]) & reference_words for text in group]
        more = len(frozenset().union(*shared)) - max(map(len, shared))
        added.append(more / max(1, len(group) - 1))
    return float(np.mean(added))
