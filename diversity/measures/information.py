"""How many bits captions tell of their picture, and how much each further caption of a picture adds.

N: captions   P: pictures   V: different words of all references
"""

from collections.abc import Mapping, Sequence

import numpy as np

from diversity.measures.pairs import Groups
from diversity.measures.references import CiderD, Words
from diversity.words.content import content_words
from diversity.words.tokens import words

SHARPEST = 1e5  # by which cosines are multiplied: where even the least difference decides
HALVINGS = 40


def picture_bits(likeness: np.ndarray, owners: np.ndarray) -> float:
    """Bits that a caption tells, on average, of which of P pictures is its own, as one judge reads captions.

    likeness (N, P) is how alike each caption and each picture are to the judge; owners (N,), each caption's picture. With
    q(p | c) = softmax over p of s · likeness, it is log₂ P + the mean of log₂ q(own | c), s ≥ 0 chosen so that this is greatest: a
    lower bound of the mutual information of captions and pictures (Barber and Agakov 2003; InfoNCE, van den Oord et al. 2018).
    In [0, log₂ P]: log₂ P where each caption finds its picture and nothing is as near; 0 for captions that would suit any picture
    as well, true or not, and for captions of other pictures; log₂ (P / g) where g pictures share each caption.
    """
    own = likeness[np.arange(len(owners)), owners]  # (N,)
    low, high = 0.0, SHARPEST
    for _ in range(HALVINGS):  # the bits are concave in s
        middle = np.sqrt(max(low, 1e-3) * high)
        low, high = (middle, high) if _slope(likeness, own, middle) > 0 else (low, middle)
    above = high * (likeness - own[:, None])
    most = above.max(axis=1, keepdims=True)
    shares = most[:, 0] + np.log(np.exp(above - most).sum(axis=1))  # (N,) -ln q(own | c)
    return max(0.0, float((np.log(likeness.shape[1]) - shares.mean(dtype=np.float64)) / np.log(2)))


def _slope(likeness: np.ndarray, own: np.ndarray, sharpness: float) -> float:
    """How the bits rise with the sharpness: the own likeness less what is expected, mean over captions."""
    weights = np.exp(sharpness * (likeness - likeness.max(axis=1, keepdims=True)))
    expected = (weights * likeness).sum(axis=1) / weights.sum(axis=1)
    return float((own - expected).mean(dtype=np.float64))


class ReferenceSearch:
    """The references of pictures, and how alike captions are to those of each: CIDEr without its allowance for length."""

    def __init__(self, references: Groups):
        """References without a word are left out."""
        texts = [[said for text in group if (said := words(text))] for group in references]
        self._world, self._pictures = CiderD(texts), len(texts)
        found: dict[Words, dict[int, float]] = {}
        for picture, group in enumerate(texts):
            for text in group:
                for ngram, weight in self._scaled(text):
                    postings = found.setdefault(ngram, {})
                    postings[picture] = postings.get(picture, 0.0) + weight / len(group)
        self._postings = {
            ngram: (np.array([*of], int), np.array([*of.values()], np.float32)) for ngram, of in found.items()
        }

    def _scaled(self, text: Words) -> list[tuple[Words, float]]:
        """The n-grams that weigh anything, those of each length scaled to length ½, so that four products are a mean of cosines."""
        weights, norms = self._world.weigh(tuple(text))
        return [(ngram, weight / norms[len(ngram) - 1] / 2) for ngram, weight in weights.items() if weight]

    def likeness(self, captions: Sequence[str]) -> np.ndarray:
        """The mean over n = 1..4 and a picture's references of cosines of weighed n-grams, 0 to 1, (N, P)."""
        found = np.zeros((len(captions), self._pictures), np.float32)
        for row, caption in zip(found, captions):
            for ngram, weight in self._scaled(words(caption)):
                if postings := self._postings.get(ngram):
                    row[postings[0]] += weight * postings[1]
        return found


def word_bits(captions: Groups, references: Groups) -> np.ndarray:
    """Bits that captions tell of whether a word is true of their picture, for each word of all references, in their order (V,).

    Of a word it is the mutual information of two questions, does the caption have it, and has one of its picture's references; less
    than 0 where captions have it rather where it is not true. 0 for words that stand in captions whatever the picture shows; 1 for
    a word that half of the pictures have and just their captions name. What chance adds, 1 ÷ (2 P ln 2), is taken off (Miller
    1955). Words that always come together each have their bits, so that the sum over words may be more than captions tell.
    """
    found = {word for group in references for text in group for word in words(text)}
    at = {word: place for place, word in enumerate(sorted(found))}
    true = _having([[word for text in group for word in words(text)] for group in references], at)  # (P, V)
    true = np.repeat(true, [len(group) for group in captions], axis=0)  # (N, V)
    named = _having([words(text) for group in captions for text in group], at)  # (N, V)
    bits = np.zeros(len(at))
    for one in (named, ~named):
        for other in (true, ~true):
            both, apart = (one & other).mean(axis=0), one.mean(axis=0) * other.mean(axis=0)  # (V,)
            bits += both * np.log2(np.divide(both, apart, out=np.ones(len(at)), where=both > 0))
    sides = np.sign(len(named) * (named & true).sum(axis=0) - named.sum(axis=0) * true.sum(axis=0))  # (V,)
    return sides * bits - (sides != 0) / (2 * len(references) * np.log(2))


def _having(texts: Sequence[Words], at: Mapping[str, int]) -> np.ndarray:
    """Whether each text has each word (texts, V)."""
    found = np.zeros((len(texts), len(at)), bool)
    for row, text in zip(found, texts):
        row[[at[word] for word in text if word in at]] = True
    return found


def new_words(captions: Groups, references: Groups) -> float:
    """Content words of its references that a picture's captions have and no single one of them has, for each further caption.

    (words of all k captions - words of the one that has most) ÷ (k - 1), of the different content words that the references have,
    too; mean over pictures. 0 for equal captions, for wrong ones, and for one caption alone.
    """
    found = []
    for group, wanted in zip(captions, references, strict=True):
        right = [content_words([text]) & content_words(wanted) for text in group]
        more = len(frozenset().union(*right)) - max(map(len, right))
        found.append(more / max(1, len(group) - 1))
    return float(np.mean(found))
