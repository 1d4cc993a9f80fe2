"""Measures of a column of captions as sums that parts of a set add up: `update`, `merge`, `result`.

A state is no larger for more captions: what was counted of many different things is `HashCounts`. Merged in any order or
split, states give what one pass gives: counts exactly, means to rounding, and what is estimated within its stated error.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import islice
from typing import Any

import numpy as np

from diversity.measures.fidelity import FactCounts
from diversity.measures.hash_counts import CAP, Estimated, HashCounts
from diversity.measures.lexical import caption_hashes, first_in_picture, ngram_hashes, within_picture
from diversity.words.degenerate import REASONS, degenerate_reasons
from diversity.words.suspects import suspects
from diversity.words.tokens import Tokens, encode
from imagetext.hashes import name_hash

CHARACTERS_AT_ONCE = 1 << 20  # bounds the memory of a batch
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
EXAMPLES = 5  # degenerate captions kept of each reason
ORDERS = (1, 2, 3, 4)  # of n-grams
MEANS = ("length", "div_1", "div_2", "mbleu_4", "duplicates", "degenerate")  # over pictures


class CaptionAccumulator:
    """Every measure of one column: spread, lengths, duplicates, degenerate captions, facts.

    Up to `cap` different n-grams of an order, or captions, what is counted of them is exact; see `HashCounts`.
    """

    def __init__(self, cap: int = CAP) -> None:
        self.pictures = self.captions = self.unique = 0
        self.lengths = Counter()  # words -> captions
        self.ngrams = {n: HashCounts(cap) for n in ORDERS}
        self.stands_for = HashCounts(cap)  # caption -> pictures it stands for
        self.within = {name: [0.0, 0] for name in MEANS}  # sum over pictures, pictures where it is defined
        self.reasons = Counter()  # (reason, captions of its picture) -> captions
        self.examples: dict[str, list[str]] = {reason: [] for reason in REASONS}
        self.facts = FactCounts()

    def update(
        self,
        captions: Iterable[Sequence[str]],
        truncated: Iterable[Sequence[bool]] | None = None,
        scenes: Iterable[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Counts the captions of some pictures.

        `truncated` marks, in the same nesting, those that a length limit cut; `scenes` holds each picture's description
        where it is a built-in one. Raises `ValueError` where these do not fit the captions.
        """
        given = [column for column in (captions, truncated, scenes) if column is not None]
        for rows in _batches(zip(*given, strict=True)):
            groups, *others = map(list, zip(*rows))
            marks = others.pop(0) if truncated is not None else [[False] * len(group) for group in groups]
            if list(map(len, marks)) != list(map(len, groups)):
                raise ValueError("truncated: not one mark for each caption")
            tokens = encode(groups)
            self._count_words(tokens)
            flat = [caption for group in groups for caption in group]
            self._count_degenerate(flat, [mark for group in marks for mark in group], tokens)
            for group, scene in zip(groups, others[0] if others else ()):
                if scene is not None:
                    self.facts.update(group, scene)

    def _count_words(self, tokens: Tokens) -> None:
        self.pictures += tokens.pictures
        self.captions += len(tokens.lengths)
        self.lengths.update(dict(zip(*(found.tolist() for found in np.unique(tokens.lengths, return_counts=True)))))
        for n, seen in self.ngrams.items():
            seen.add(ngram_hashes(tokens, n)[0])
        unique, _ = first_in_picture(tokens)
        self.unique += len(unique)
        self.stands_for.add(unique)
        for name, values in within_picture(tokens).items():
            self._add(name, values)

    def _add(self, name: str, values: np.ndarray) -> None:
        """Adds the scores of some pictures, NaN where undefined."""
        defined = values[~np.isnan(values)]
        self.within[name][0] += float(defined.sum())
        self.within[name][1] += len(defined)

    def _count_degenerate(self, captions: Sequence[str], truncated: Sequence[bool], tokens: Tokens) -> None:
        captions_with: dict[str, list[str]] = {reason: [] for reason in REASONS}
        share = 1 / np.maximum(tokens.counts, 1)[tokens.picture_of_caption]  # (C,) of its picture's captions
        degenerate = np.where(tokens.counts > 0, 0, np.nan)  # (P,)
        for number in np.flatnonzero(suspects(captions, tokens) | np.array(truncated, bool)).tolist():
            reasons = degenerate_reasons(captions[number], truncated[number])
            degenerate[tokens.picture_of_caption[number]] += share[number] * bool(reasons)
            for reason in reasons:
                captions_with[reason].append(captions[number])
                self.reasons[reason, round(1 / share[number])] += 1
        self._add("degenerate", degenerate)
        for reason, of_reason in captions_with.items():
            self._keep_examples(reason, of_reason)

    def _keep_examples(self, reason: str, captions: Sequence[str]) -> None:
        """Keeps a few, the same ones in whatever order they came."""
        self.examples[reason] = nsmallest(EXAMPLES, {*self.examples[reason], *captions}, key=_shuffled)

    def merge(self, other: "CaptionAccumulator") -> None:
        """Adds the captions that `other` counted; raises `ValueError` unless both have one cap."""
        for n, seen in self.ngrams.items():
            seen.merge(other.ngrams[n])
        self.stands_for.merge(other.stands_for)
        self.pictures += other.pictures
        self.captions += other.captions
        self.unique += other.unique
        self.lengths.update(other.lengths)
        for name, (total, count) in other.within.items():
            self.within[name][0] += total
            self.within[name][1] += count
        self.reasons.update(other.reasons)
        for reason, captions in other.examples.items():
            self._keep_examples(reason, captions)
        self.facts.merge(other.facts)

    def result(self) -> dict[str, Any]:
        """All measures by name; `diversity.measures.catalogue` says what each is. None where one is undefined.

        `sketched` has the standard error of each measure that is an estimate; all others are exact. `entropy_n` is in bits;
        `rank_frequency` has some ranks of words and how often the word of each rank was seen.
        """
        words = self.ngrams[1].total
        estimates = self._counted()
        return {
            "pictures": self.pictures,
            "captions": self.captions,
            "words": words,
            "length_quantiles": {f"{q:g}": quantile(self.lengths, q) for q in QUANTILES},
            "length_histogram": {length: self.lengths[length] for length in sorted(self.lengths)},
            **{name: estimate and estimate.value for name, estimate in estimates.items()},
            "vocabulary": round(self.ngrams[1].distinct().value),
            "rank_frequency": self.ngrams[1].rank_frequency(),
            **{
                "length_mean" if name == "length" else name: _ratio(total, count)
                for name, (total, count) in self.within.items()
            },
            "degenerate_reasons": {
                reason: _ratio(self._share_with(reason), self.within["degenerate"][1]) for reason in REASONS
            },
            "facts": self.facts.result(),
            "sketched": {name: estimate.error for name, estimate in estimates.items() if estimate and estimate.error},
        }

    def _share_with(self, reason: str) -> float:
        """The share of each picture's captions that have the reason, summed over pictures, in one order whatever was merged."""
        return sum(
            captions / of_picture for (name, of_picture), captions in sorted(self.reasons.items()) if name == reason
        )

    def _counted(self) -> dict[str, Estimated | None]:
        """Measures of `HashCounts`: exact while there are few different things, else estimates.

        hapax = words seen once ÷ different words. self_repetition = 4-grams that recur in the set ÷ 4-grams, 0 where each
        stands once, 1 where none does; after Salkar et al. 2022, who take the mean over texts of ln(1 + Σ other texts that
        have a 4-gram of it), which takes a second pass.
        """
        one, four = self.ngrams[1], self.ngrams[4]
        return {
            "vocabulary": one.distinct(),
            **{f"distinct_{n}": _share(seen.distinct(), seen.total) for n, seen in self.ngrams.items()},
            **{f"entropy_{n}": seen.entropy() for n, seen in self.ngrams.items()},
            "hapax": _share(one.sum_of(_once), one.distinct().value),
            "self_repetition": _share(four.sum_of(_repeated), four.total),
            "shared": _share(self.stands_for.sum_of(_repeated), self.unique),
            "most_shared": _share(self.stands_for.most()[1], self.pictures),
        }

    def most_shared_hash(self) -> int | None:
        """`caption_hashes` of the caption that stands for the most pictures, None where none stands for two."""
        caption, pictures = self.stands_for.most()
        return caption if pictures.value > 1 else None


def novelty(mine: CaptionAccumulator, references: CaptionAccumulator) -> dict[str, Any]:
    """What the references lack: shares of the 4-grams, and of the captions, repeats within a picture left out.

    In [0, 1], None where there is nothing to divide by. `sketched` has the standard errors of those that are estimates.
    """
    shares = {
        "ngrams_4": _share(mine.ngrams[4].lacking_in(references.ngrams[4]), mine.ngrams[4].total),
        "captions": _share(mine.stands_for.lacking_in(references.stands_for), mine.unique),
    }
    return {
        **{name: estimate and estimate.value for name, estimate in shares.items()},
        "sketched": {name: estimate.error for name, estimate in shares.items() if estimate and estimate.error},
    }


def find_caption(captions: Iterable[Sequence[str]], wanted: int) -> str | None:
    """The first caption whose hash is `wanted`."""
    for rows in _batches(zip(captions)):
        batch = [group for (group,) in rows]
        places = np.flatnonzero(caption_hashes(encode(batch)) == np.uint64(wanted))
        if len(places):
            return next(islice((caption for group in batch for caption in group), int(places[0]), None))
    return None


def quantile(histogram: Mapping[int, int], q: float) -> int | None:
    """The smallest value that at least a share q of the counted ones do not exceed; None of nothing."""
    needed, seen = q * sum(histogram.values()), 0
    for value in sorted(histogram):
        seen += histogram[value]
        if seen >= needed:
            return value
    return None


def _batches(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Rows whose first parts are the captions of a picture, some at a time."""
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += 1 + sum(map(len, row[0]))
        if size >= CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _once(counts: np.ndarray) -> np.ndarray:
    return 1.0 * (counts == 1)


def _repeated(counts: np.ndarray) -> np.ndarray:
    return counts * (counts > 1)


def _shuffled(caption: str) -> tuple[int, str]:
    return name_hash(caption, "example"), caption


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _share(part: Estimated, whole: float) -> Estimated | None:
    """A share of a whole, at most 1: an estimated part can come out larger."""
    return Estimated(min(1.0, part.value / whole), part.error / whole) if whole else None
