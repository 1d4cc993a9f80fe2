"""Compare captions with human references: CIDEr-D, BLEU-4, ROUGE-L and, where WordNet is installed, METEOR.

The measures take words, for one caption and some references per picture; `reference_scores` takes text and splits it
with `diversity.words.tokens.words`. COCO's official script splits with the PTB tokenizer, which needs Java and keeps
some marks, so its numbers differ a little. For the same words, CIDEr-D, BLEU-4 and ROUGE-L are equal to those of
pycocoevalcap.

They are implemented here because that package is 104 MB and no longer maintained, and because nltk's corpus BLEU
counts one 4-gram for a caption of fewer than four words.

P: pictures
"""

import importlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from zipfile import BadZipFile

import numpy as np

from diversity.words.tokens import words

Words = Sequence[str]
References = Sequence[Sequence[Words]]  # the references of each picture

SIGMA = 6.0  # tolerance of CIDEr-D for other lengths, in words
BETA = 1.2  # weight of recall in COCO's ROUGE-L


def reference_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `cider_d`, `bleu_4`, `rouge_l` and, where WordNet is installed, `meteor` of one caption per picture.

    References without a word are left out; an empty caption scores 0. Raises `ValueError` for a picture without
    references.
    """
    if not captions or len(captions) != len(references):
        raise ValueError(
            f"{len(captions)} captions for {len(references)} pictures' references: needs one of each picture"
        )
    caption_words = [words(caption) for caption in captions]
    reference_words = [[text_words for text in texts if (text_words := words(text))] for texts in references]
    if empty := [picture for picture, texts in enumerate(reference_words) if not texts]:
        raise ValueError(f"pictures {empty[:5]}: no reference with a word")
    scores = {
        "cider_d": cider_d(caption_words, reference_words).mean(),
        "bleu_4": bleu_4(caption_words, reference_words),
        "rouge_l": rouge_l(caption_words, reference_words).mean(),
    }
    if (wordnet := load_wordnet()) is not None:
        scores["meteor"] = meteor(caption_words, reference_words, wordnet).mean()
    return {name: float(score) for name, score in scores.items()}


def cider_d(captions: Sequence[Words], references: References) -> np.ndarray:
    """Return the CIDEr-D of one caption per picture (P,); see `CiderD`."""
    cider = CiderD(references)
    return np.array([cider.score(caption, texts) for caption, texts in zip(captions, references, strict=True)])


class CiderD:
    """Score what captions have in common with their references but not with the references of other pictures.

    CIDEr-D(c) = 10 mean over n = 1..4 and references r of exp(-(|c| - |r|)² / 2σ²) Σ min(g(c), g(r)) g(r) / ‖g(c)‖
    ‖g(r)‖, where g = count ln(P / pictures with the n-gram in a reference), |c| is the number of words, and σ = 6. In
    [0, 10], higher is better; papers often give it times 100. It depends on the set of pictures, so compare it on the
    same set only. With one picture every weight is ln 1 = 0, and so is the score. Vedantam et al. 2015, "CIDEr:
    Consensus-based Image Description Evaluation".
    """

    def __init__(self, references: References):
        """`references` are those of all pictures; a caption's score depends on them, and on no other caption."""
        self.pictures = len(references)
        self.pictures_with = Counter(
            ngram for texts in references for ngram in {ngram for text in texts for ngram in _ngrams(text)}
        )
        self.weigh = lru_cache(1 << 14)(self._weigh_ngrams)

    def _weigh_ngrams(self, text: tuple[str, ...]) -> tuple[dict[Words, float], list[float]]:
        """Return the weight of each n-gram, and for each n the length of the vector of weights."""
        weights = {
            ngram: count * math.log(self.pictures / max(1, self.pictures_with[ngram]))
            for ngram, count in _ngrams(text).items()
        }
        squares = [0.0] * 4
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        return weights, list(map(math.sqrt, squares))

    def score(self, caption: Words, texts: Sequence[Words]) -> float:
        """Return the CIDEr-D of a caption against some references of its picture."""
        weights, norms = self.weigh(tuple(caption))
        score = 0.0
        for text in texts:
            others, other_norms = self.weigh(tuple(text))
            shared = [0.0] * 4
            for ngram, weight in weights.items():  # not a set, whose order and so whose sum changes from run to run
                if ngram in others:
                    shared[len(ngram) - 1] += min(weight, others[ngram]) * others[ngram]
            cosines = [
                part / (norm * other_norm) for part, norm, other_norm in zip(shared, norms, other_norms) if part
            ]
            difference = len(caption) - len(text)
            score += 10 * sum(cosines) / 4 * math.exp(-(difference**2) / (2 * SIGMA**2))
        return score / len(texts)


def bleu_4(captions: Sequence[Words], references: References) -> float:
    """Return the BLEU-4 of all captions together: the share of their n-grams in references, less for short captions.

    exp(min(0, 1 - r / c)) (p₁ p₂ p₃ p₄)^¼, where pₙ = clipped matches / n-grams, and c and r are the words of the
    captions and of the references closest in length, all summed over pictures; no smoothing. In [0, 1], higher is
    better. Papineni et al. 2002.
    """
    matched, total = np.zeros(4), np.zeros(4)
    length = reference_length = 0
    for caption, texts in zip(captions, references, strict=True):
        largest_counts = Counter()
        for text in texts:
            largest_counts |= _ngrams(text)
        for ngram, count in _ngrams(caption).items():
            matched[len(ngram) - 1] += min(count, largest_counts[ngram])
            total[len(ngram) - 1] += count
        length += len(caption)
        reference_length += min((abs(len(text) - len(caption)), len(text)) for text in texts)[1]
    if not matched.all():
        return 0.0
    return math.exp(min(0, 1 - reference_length / length) + np.log(matched / total).mean())


def rouge_l(captions: Sequence[Words], references: References) -> np.ndarray:
    """Return the ROUGE-L of each caption (P,), from the longest common subsequence of words with a reference.

    (1 + β²) p r / (r + β² p), where p and r are the greatest values over references of LCS / words of the caption and
    LCS / words of the reference, and β = 1.2 as in COCO's script. In [0, 1], higher is better. Lin 2004.
    """
    scores = np.zeros(len(captions))
    for picture, (caption, texts) in enumerate(zip(captions, references, strict=True)):
        common = [common_words(caption, text) for text in texts]
        if any(common):
            precision = max(common) / len(caption)
            recall = max(count / len(text) for count, text in zip(common, texts))
            scores[picture] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def meteor(captions: Sequence[Words], references: References, wordnet: Any) -> np.ndarray:
    """Return nltk's METEOR of each caption (P,) for its best reference; words match exactly, by stem, or as synonyms.

    (1 - ½ (chunks / matches)³) p r / (0.9 p + 0.1 r). In [0, 1], higher is better. Synonyms are those of `wordnet`.
    Lavie and Agarwal 2007. COCO's script runs a later version with paraphrases, so the numbers cannot be compared.
    """
    _import_nltk()
    from nltk.stem import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    stemmer = PorterStemmer()
    stemmer.stem = lru_cache(1 << 14)(stemmer.stem)  # stemming takes most of the time
    return np.array(
        [
            meteor_score(texts, caption, stemmer=stemmer, wordnet=wordnet)
            for caption, texts in zip(captions, references, strict=True)
        ]
    )


class NoSynonyms:
    """A WordNet without synonyms, so that METEOR is the same number on every machine."""

    @staticmethod
    def synsets(word: str) -> tuple[()]:
        return ()


def load_wordnet() -> Any | None:
    """Return nltk's WordNet, or None where its data is not on this machine; nothing is downloaded."""
    _import_nltk()
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError, BadZipFile):  # the data is missing or incomplete
        return None
    return wordnet


def _import_nltk() -> None:
    """Import nltk, late because it takes a second. It refuses to be imported by a user without a home."""
    homeless = os.path.expanduser("~") == "~"  # as in containers
    if homeless:
        os.environ["HOME"] = os.devnull
    importlib.import_module("nltk")
    if homeless:
        del os.environ["HOME"]


def _ngrams(text: Words) -> Counter[Words]:
    return _ngrams_of(tuple(text))


@lru_cache(1 << 14)
def _ngrams_of(text: tuple[str, ...]) -> Counter[Words]:
    return Counter(text[start : start + n] for n in (1, 2, 3, 4) for start in range(len(text) - n + 1))


def common_words(first: Words, second: Words) -> int:
    """Return the length of the longest common subsequence of two texts."""
    row = [0] * (len(second) + 1)
    for word in first:
        previous_row = row
        row = [0]
        for index, other_word in enumerate(second):
            if word == other_word:
                row.append(previous_row[index] + 1)
            else:
                row.append(max(row[index], previous_row[index + 1]))
    return row[-1]
