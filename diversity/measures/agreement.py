"""Measure how captions agree with the human captions of their picture, and with those of other pictures.

P: pictures   N: captions of a column   V: different words of all human captions
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from diversity.measures.pairs import Groups
from diversity.measures.references import CiderD, NoSynonyms, Words, bleu_4, meteor, rouge_l
from diversity.measures.signs import Language, alike, copying
from diversity.words.tokens import words

SAME = 1e-6  # cosines that float32 cannot tell apart


class AgreementScores(NamedTuple):
    """The agreement of one column: scores of captions and of pictures, and signs of suspect captions."""

    captions: list[np.ndarray]  # CIDEr-D of each caption, one array per picture
    pictures: dict[str, np.ndarray]  # cider_d, found_words: (P,), NaN where undefined
    signs: dict[str, np.ndarray]  # (P,), NaN where undefined; `diversity.verdict.suspicions` reads them


class Agreement:
    """The human captions of pictures, and the agreement of captions with them.

    The argument `themselves` of its methods says that the captions are themselves human captions of these pictures.
    Each is then compared with the other human captions of its picture.
    """

    def __init__(self, references: Groups):
        self._texts = [[text_words for text in group if (text_words := words(text))] for group in references]
        self._cider, self._search, self._language = CiderD(self._texts), WordSearch(self._texts), Language(self._texts)

    def score(self, groups: Groups, themselves: bool = False) -> AgreementScores:
        """Score the captions of each picture."""
        rows = []
        for caption, references, picture in self._compared(groups, themselves):
            if references:
                rows.append(self._score_caption(caption, references, picture, themselves=themselves))
            else:
                rows.append(self._score_without_references(caption, picture, themselves))
        scores = np.array(rows).reshape(-1, len(_EACH))  # (N, scores)
        counts = [len(group) for group in groups]
        owners = np.repeat(np.arange(len(groups)), counts)
        by_picture = {name: means(values, owners, len(groups)) for name, values in zip(_EACH, scores.T, strict=True)}
        pictures = {name: by_picture.pop(name) for name in ("cider_d", "found_words")}
        signs = by_picture
        if themselves:
            signs["alike"] = alike(self._texts)
        return AgreementScores(np.split(scores[:, 0], np.cumsum(counts)[:-1]), pictures, signs)

    def overlap(self, groups: Groups, themselves: bool = False) -> tuple[dict[str, np.ndarray], float | None]:
        """Return ROUGE-L and METEOR of each picture (P,), and BLEU-4 of all captions together."""
        compared = [row for row in self._compared(groups, themselves) if row[1]]
        captions, references, owners = map(list, zip(*compared)) if compared else ([], [], [])
        scores = {"rouge_l": rouge_l(captions, references), "meteor": meteor(captions, references, NoSynonyms())}
        return (
            {name: means(values, owners, len(groups)) for name, values in scores.items()},
            bleu_4(captions, references) if captions else None,
        )

    def _compared(self, groups: Groups, themselves: bool) -> Iterator[tuple[Words, list[Words], int]]:
        """Yield each caption, the human captions that it is compared with, and its picture."""
        for picture, group in enumerate(groups):
            for caption in map(words, group):
                references: list[Words] = list(self._texts[picture])
                if themselves and caption in references:
                    references.remove(caption)
                yield caption, references, picture

    def _score_without_references(self, caption: Words, picture: int, themselves: bool) -> tuple[float, ...]:
        """Return NaN for all scores of a caption, except how well a human caption is grounded in its own words."""
        scores = dict.fromkeys(_EACH, np.nan)
        if themselves:
            scores |= dict(zip(_THIRDS, self._language.grounded_thirds(caption, picture, [caption])))
        return tuple(scores.values())

    def _score_caption(
        self, caption: Words, references: Sequence[Words], picture: int, *, themselves: bool
    ) -> tuple[float, ...]:
        """Return the scores of a caption in the order of `_EACH`."""
        share = self._search.share_behind(caption, picture, themselves)
        return (
            self._cider.score(caption, references),
            share,
            float(strange(share)),
            float(share < 0.5 and set(caption).isdisjoint(word for text in references for word in text)),
            *self._language.order(caption, picture),
            *self._language.grounded_thirds(caption, picture, references),
            self._language.known(caption),
            *self._language.strangers(caption, picture),
            float(caption in references) if len(references) > 1 else np.nan,
            *copying(caption, references),
        )


_THIRDS = ("first_third", "last_third", "whole")
# The scores of a caption.
_EACH = (
    "cider_d",
    "found_words",
    "strange_words",
    "no_common_word",
    "order",
    "any_order",
    *_THIRDS,
    "known_words",
    "common_pairs",
    "strangers",
    "same",
    "copies",
    "nearer_to_one",
)


class WordSearch:
    """The human captions of pictures as vectors of words, with which a caption is used to search its picture."""

    def __init__(self, texts: Sequence[Sequence[Words]]):
        """`texts` are the human captions of each picture, as words."""
        pictures_with = Counter(word for group in texts for word in {word for text in group for word in text})
        self._ids = {word: number for number, word in enumerate(pictures_with)}
        self._weights = np.log(len(texts) / np.array([*pictures_with.values(), 1], np.float32))  # (V + 1,)
        self._sizes = [len(group) for group in texts]
        self._pictures = np.zeros((len(self._ids), len(texts)), np.float32)  # (V, P) means of unit vectors
        for picture, group in enumerate(texts):
            for text in group:
                ids, weights = self._vector(text)
                if length := np.linalg.norm(weights):
                    self._pictures[ids, picture] += weights / length / len(group)

    def _vector(self, text: Words) -> tuple[list[int], np.ndarray]:
        """Return the words that some human caption has, and their counts times ln(P / pictures with the word)."""
        counts = Counter(word for word in text if word in self._ids)
        ids = [self._ids[word] for word in counts]
        return ids, np.array([*counts.values()], np.float32) * self._weights[ids]

    def share_behind(self, caption: Words, picture: int, itself: bool = False) -> float:
        """Return the share of other pictures that are less like a caption than its own picture; equal ones count half.

        The likeness of a picture is the mean cosine between the tf-idf vectors of the caption and the picture's human
        captions. `itself`: the caption is one of the picture's human captions, and is not compared with itself. NaN
        where there is no other picture.
        """
        ids, weights = self._vector(caption)
        likeness = weights @ self._pictures[ids]  # (P,)
        if itself and self._sizes[picture] > 1:
            size = self._sizes[picture]
            likeness[picture] = (size * likeness[picture] - np.linalg.norm(weights)) / (size - 1)
        return share_behind(likeness, picture)


def share_behind(likeness: np.ndarray, picture: int) -> float:
    """Return the share of the other pictures with a lower likeness (P,) than `picture`; equal ones count half."""
    if len(likeness) < 2:
        return math.nan
    own_likeness = likeness[picture]
    less, equal = (likeness < own_likeness - SAME).sum(), (np.abs(likeness - own_likeness) <= SAME).sum() - 1
    return float(less + equal / 2) / (len(likeness) - 1)


def strange(share_behind: float | np.ndarray) -> np.ndarray:
    """Return 2 where most other pictures are more like a caption than its own picture, 1 where half are, else 0.

    `share_behind` is the share of the other pictures that are less like the caption. A caption of another picture has
    a share below one half in every second case, and a caption of its own picture never has. So the mean of the result
    is the share of captions that fit other pictures as well as their own.
    """
    return np.where(np.isnan(share_behind), np.nan, 2.0 * (share_behind < 0.5) + (share_behind == 0.5))


def means(values: np.ndarray, owners: Sequence[int] | np.ndarray, pictures: int) -> np.ndarray:
    """Return the mean of each picture's values (P,), without values that are NaN; NaN for pictures without a value.

    `owners` holds the picture of each value.
    """
    defined = ~np.isnan(values)
    owners = np.array(owners, int)[defined]
    with np.errstate(invalid="ignore"):
        return np.bincount(owners, values[defined], pictures) / np.bincount(owners, minlength=pictures)
