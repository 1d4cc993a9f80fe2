"""How captions agree with the human captions of their picture, beside those of other pictures.

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
    """Of one column: the CIDEr-D of each caption, an array a picture; scores and signs by picture (P,), NaN where undefined."""

    captions: list[np.ndarray]
    pictures: dict[str, np.ndarray]  # cider_d, found_words
    signs: dict[str, np.ndarray]  # what `diversity.verdict.suspicions` looks at


class Agreement:
    """The human captions of pictures, and how captions agree with them."""

    def __init__(self, references: Groups):
        self._texts = [[found for text in group if (found := words(text))] for group in references]
        self._cider, self._search, self._language = CiderD(self._texts), WordSearch(self._texts), Language(self._texts)

    def of(self, groups: Groups, themselves: bool = False) -> AgreementScores:
        """Scores the captions of each picture; `themselves`: they are human ones, each held against the picture's others."""
        scores = np.array(
            [
                (self._of_caption if own else self._alone)(caption, own, picture, themselves)
                for caption, own, picture in self._against(groups, themselves)
            ]
        ).reshape(-1, len(_EACH))  # (N, scores)
        counts = [len(group) for group in groups]
        owners = np.repeat(np.arange(len(groups)), counts)
        by_picture = {name: means(values, owners, len(groups)) for name, values in zip(_EACH, scores.T, strict=True)}
        signs = by_picture | ({"alike": alike(self._texts)} if themselves else {})
        return AgreementScores(
            np.split(scores[:, 0], np.cumsum(counts)[:-1]),
            {name: signs.pop(name) for name in ("cider_d", "found_words")},
            signs,
        )

    def overlap(self, groups: Groups, themselves: bool = False) -> tuple[dict[str, np.ndarray], float | None]:
        """ROUGE-L and METEOR by picture (P,), and BLEU-4 of all captions together."""
        pairs = [(caption, own, picture) for caption, own, picture in self._against(groups, themselves) if own]
        captions, against, owners = map(list, zip(*pairs)) if pairs else ([], [], [])
        scores = {"rouge_l": rouge_l(captions, against), "meteor": meteor(captions, against, NoSynonyms())}
        return (
            {name: means(values, owners, len(groups)) for name, values in scores.items()},
            bleu_4(captions, against) if captions else None,
        )

    def _against(self, groups: Groups, themselves: bool) -> Iterator[tuple[Words, list[Words], int]]:
        """Each caption, the human captions that it is held against, and its picture."""
        for picture, group in enumerate(groups):
            for caption in map(words, group):
                own: list[Words] = list(self._texts[picture])
                if themselves and caption in own:
                    own.remove(caption)
                yield caption, own, picture

    def _alone(self, caption: Words, _: Sequence[Words], picture: int, themselves: bool) -> tuple[float, ...]:
        """Of a caption without another to hold it against: nothing, but how a human one's words are grounded in itself."""
        grounded = self._language.grounded_thirds(caption, picture, [caption]) if themselves else ()
        return tuple((dict.fromkeys(_EACH, np.nan) | dict(zip(_THIRDS, grounded))).values())

    def _of_caption(self, caption: Words, own: Sequence[Words], picture: int, themselves: bool) -> tuple[float, ...]:
        before = self._search.share_behind(caption, picture, themselves)
        return (
            self._cider.score(caption, own),
            before,
            float(strange(before)),
            *self._language.order(caption, picture),
            *self._language.grounded_thirds(caption, picture, own),
            self._language.known(caption),
            *self._language.strangers(caption, picture),
            float(caption in own) if len(own) > 1 else np.nan,
            *copying(caption, own),
        )


_THIRDS = ("first_third", "last_third", "whole")
_EACH = (
    "cider_d",
    "found_words",
    "strange_words",
    "order",
    "any_order",
    *_THIRDS,
    "known_words",
    "common_pairs",
    "strangers",
    "same",
    "copies",
    "nearer_to_one",
)  # what `_of_caption` gives


class WordSearch:
    """Human captions as vectors of words, among which a caption searches its picture."""

    def __init__(self, texts: Sequence[Sequence[Words]]):
        """`texts` are the human captions of each picture, as words."""
        pictures_with = Counter(word for group in texts for word in {word for text in group for word in text})
        self._ids = {word: at for at, word in enumerate(pictures_with)}
        self._weights = np.log(len(texts) / np.array([*pictures_with.values(), 1], np.float32))  # (V + 1,)
        self._sizes = [len(group) for group in texts]
        self._pictures = np.zeros((len(self._ids), len(texts)), np.float32)  # (V, P) mean of unit vectors
        for picture, group in enumerate(texts):
            for text in group:
                ids, weights = self._vector(text)
                if length := np.linalg.norm(weights):
                    self._pictures[ids, picture] += weights / length / len(group)

    def _vector(self, text: Words) -> tuple[list[int], np.ndarray]:
        """The different words that are known, and their counts times ln(P / pictures with the word)."""
        counts = Counter(word for word in text if word in self._ids)
        ids = [self._ids[word] for word in counts]
        return ids, np.array([*counts.values()], np.float32) * self._weights[ids]

    def share_behind(self, caption: Words, picture: int, itself: bool = False) -> float:
        """The share of other pictures to whose captions a caption is less like than to its own picture's, those equal by half.

        Likeness is the mean cosine of tf-idf vectors of words. `itself`: it is one of the picture's, and not compared
        with itself. NaN where there is no other picture.
        """
        ids, weights = self._vector(caption)
        likeness = weights @ self._pictures[ids]  # (P,)
        if itself and self._sizes[picture] > 1:
            size = self._sizes[picture]
            likeness[picture] = (size * likeness[picture] - np.linalg.norm(weights)) / (size - 1)
        return share_behind(likeness, picture)


def share_behind(likeness: np.ndarray, picture: int) -> float:
    """The share of pictures whose likeness (P,) is less than that of one of them, the others that are equal by half."""
    if len(likeness) < 2:
        return math.nan
    own = likeness[picture]
    less, equal = (likeness < own - SAME).sum(), (np.abs(likeness - own) <= SAME).sum() - 1
    return float(less + equal / 2) / (len(likeness) - 1)


def strange(found: float | np.ndarray) -> np.ndarray:
    """Of shares of pictures behind the own one: 2 where most pictures are before it, 1 where half are, else 0.

    Captions of other pictures have most before theirs in one of two cases, others never, so that the mean is the share
    of captions that may as well be of other pictures.
    """
    return np.where(np.isnan(found), np.nan, 2.0 * (found < 0.5) + (found == 0.5))


def means(values: np.ndarray, owners: Sequence[int] | np.ndarray, pictures: int) -> np.ndarray:
    """The mean of each picture's values (P,), `owners` their pictures, without those that are NaN; NaN without any."""
    defined = ~np.isnan(values)
    owners = np.array(owners, int)[defined]
    with np.errstate(invalid="ignore"):
        return np.bincount(owners, values[defined], pictures) / np.bincount(owners, minlength=pictures)
