"""Measure a caption column by sums that parts of a set can add up: `update`, `merge`, `result`.

The size of a state does not grow with the number of captions, because n-grams and captions are counted by
`HashCounts`. States of parts that are merged in any order give the result of one pass: counts and means exactly, and
estimates within their stated errors.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
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
EXAMPLES = 5  # degenerate captions that are kept for each reason
ORDERS = (1, 2, 3, 4)  # lengths of n-grams
FRACTION_BITS = 60  # means are summed as whole multiples of 2^-60, because the sum of floats depends on their order
MEANS = ("length", "div_1", "div_2", "mbleu_4", "duplicates", "degenerate")  # measures that are means over pictures


class CaptionAccumulator:
    """All measures of one column that can be counted: spread, lengths, duplicates, degenerate captions, facts.

    The counts are exact for up to `cap` different captions and n-grams of each length, and estimates above; see
    `HashCounts`.
    """

    def __init__(self, cap: int = CAP) -> None:
        self.pictures = self.captions = self.unique = 0
        self.lengths = Counter()  # number of words -> number of captions
        self.ngrams = {n: HashCounts(cap) for n in ORDERS}
        self.stands_for = HashCounts(cap)  # caption -> number of pictures that have it
        # sum over pictures in units of 2^-FRACTION_BITS, and number of pictures where it is defined
        self.within = {name: [0, 0] for name in MEANS}
        self.reasons = Counter()  # (reason, number of captions of the picture) -> number of captions with the reason
        self.examples: dict[str, list[str]] = {reason: [] for reason in REASONS}
        self.facts = FactCounts()

    def update(
        self,
        captions: Iterable[Sequence[str]],
        truncated: Iterable[Sequence[bool]] | None = None,
        scenes: Iterable[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Count the captions of some pictures.

        truncated: whether a length limit cut each caption, nested as the captions are. scenes: the descriptions of
        built-in pictures, None for other pictures. Raises `ValueError` where these do not fit the captions.
        """
        inputs = [sequence for sequence in (captions, truncated, scenes) if sequence is not None]
        for rows in _batches(zip(*inputs, strict=True)):
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
        lengths, captions = np.unique(tokens.lengths, return_counts=True)
        self.lengths.update(dict(zip(lengths.tolist(), captions.tolist())))
        for n, counts in self.ngrams.items():
            counts.add(ngram_hashes(tokens, n)[0])
        unique, _ = first_in_picture(tokens)
        self.unique += len(unique)
        self.stands_for.add(unique)
        for name, values in within_picture(tokens).items():
            self._add(name, values)

    def _add(self, name: str, values: np.ndarray) -> None:
        """Add the scores of some pictures, NaN where undefined, to the sum of a measure."""
        defined = values[~np.isnan(values)]
        self.within[name][0] += sum(map(int, np.rint(np.ldexp(defined, FRACTION_BITS)).tolist()))
        self.within[name][1] += len(defined)

    def _count_degenerate(self, captions: Sequence[str], truncated: Sequence[bool], tokens: Tokens) -> None:
        captions_with: dict[str, list[str]] = {reason: [] for reason in REASONS}
        # (C,) what a caption is of its picture's captions
        share = 1 / np.maximum(tokens.counts, 1)[tokens.picture_of_caption]
        degenerate = np.where(tokens.counts > 0, 0, np.nan)  # (P,)
        for number in np.flatnonzero(suspects(captions, tokens) | np.array(truncated, bool)).tolist():
            reasons = degenerate_reasons(captions[number], truncated[number])
            degenerate[tokens.picture_of_caption[number]] += share[number] * bool(reasons)
            for reason in reasons:
                captions_with[reason].append(captions[number])
                self.reasons[reason, round(1 / share[number])] += 1
        self._add("degenerate", degenerate)
        for reason, examples in captions_with.items():
            self._keep_examples(reason, examples)

    def _keep_examples(self, reason: str, captions: Sequence[str]) -> None:
        """Keep a few captions, the same ones in whatever order they come."""
        self.examples[reason] = nsmallest(EXAMPLES, {*self.examples[reason], *captions}, key=_shuffled)

    def merge(self, other: "CaptionAccumulator") -> None:
        """Add the captions that `other` counted; raise `ValueError` unless both have the same cap."""
        for n, counts in self.ngrams.items():
            counts.merge(other.ngrams[n])
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
        """Return all measures by name, None where undefined; `diversity.measures.catalogue` defines each of them.

        `sketched` has the standard errors of the measures that are estimates; all others are exact. `entropy_n` is in
        bits. `rank_frequency` has some ranks of words, and how often the word of each rank occurs.
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
                "length_mean" if name == "length" else name: _ratio(total, count << FRACTION_BITS)
                for name, (total, count) in self.within.items()
            },
            "degenerate_reasons": {
                reason: _ratio(self._share_with(reason), self.within["degenerate"][1]) for reason in REASONS
            },
            "facts": self.facts.result(),
            "sketched": {name: estimate.error for name, estimate in estimates.items() if estimate and estimate.error},
        }

    def _share_with(self, reason: str) -> float:
        """Return the share of each picture's captions that have the reason, summed over pictures.

        The terms are sorted, so that the rounding of the sum does not depend on the order of merging.
        """
        terms = sorted(self.reasons.items())
        return sum(captions / of_picture for (name, of_picture), captions in terms if name == reason)

    def _counted(self) -> dict[str, Estimated | None]:
        """Return the measures that `HashCounts` gives, which are exact while there are few different n-grams.

        hapax = words that occur once ÷ different words. self_repetition = 4-grams that recur in the set ÷ 4-grams: 0
        where each occurs once, 1 where none does. This is after Salkar et al. 2022, who take the mean over texts of
        ln(1 + Σ other texts that share a 4-gram), which needs a second pass.
        """
        words, four_grams = self.ngrams[1], self.ngrams[4]
        return {
            "vocabulary": words.distinct(),
            **{f"distinct_{n}": _share(counts.distinct(), counts.total) for n, counts in self.ngrams.items()},
            **{f"entropy_{n}": counts.entropy() for n, counts in self.ngrams.items()},
            "hapax": _share(words.sum_of(_once), words.distinct().value),
            "self_repetition": _share(four_grams.sum_of(_repeated), four_grams.total),
            "shared": _share(self.stands_for.sum_of(_repeated), self.unique),
            "most_shared": _share(self.stands_for.most()[1], self.pictures),
        }

    def most_shared_hash(self) -> int | None:
        """Return the `caption_hashes` of the caption that most pictures have; None if no two pictures share one."""
        caption, pictures = self.stands_for.most()
        return caption if pictures.value > 1 else None


def novelty(column: CaptionAccumulator, references: CaptionAccumulator) -> dict[str, Any]:
    """Return the shares of a column's 4-grams and captions that the references do not have.

    Repeats of a caption within a picture count once. In [0, 1], None where there is nothing to divide by. `sketched`
    has the standard errors of the shares that are estimates.
    """
    shares = {
        "ngrams_4": _share(column.ngrams[4].lacking_in(references.ngrams[4]), column.ngrams[4].total),
        "captions": _share(column.stands_for.lacking_in(references.stands_for), column.unique),
    }
    return {
        **{name: estimate and estimate.value for name, estimate in shares.items()},
        "sketched": {name: estimate.error for name, estimate in shares.items() if estimate and estimate.error},
    }


def find_caption(captions: Iterable[Sequence[str]], caption_hash: int) -> str | None:
    """Return the first caption with this hash, as in `caption_hashes`; None where there is none."""
    for rows in _batches(zip(captions)):
        batch = [caption for (group,) in rows for caption in group]
        matches = np.flatnonzero(caption_hashes(encode([batch])) == np.uint64(caption_hash))
        if len(matches):
            return batch[int(matches[0])]
    return None


def quantile(histogram: Mapping[int, int], q: float) -> int | None:
    """Return the smallest value with at least a share q of the counts not above it; None of an empty histogram."""
    needed, cumulated = q * sum(histogram.values()), 0
    for value in sorted(histogram):
        cumulated += histogram[value]
        if cumulated >= needed:
            return value
    return None


def _batches(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Yield rows in batches; the first part of each row is the captions of a picture."""
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


def _ratio(part: float, total: float) -> float | None:
    return part / total if total else None


def _share(part: Estimated, total: float) -> Estimated | None:
    """Return part ÷ total, cut at 1, because an estimated part can be larger than the total."""
    return Estimated(min(1.0, part.value / total), part.error / total) if total else None
