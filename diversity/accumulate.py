"""Measures of a column of captions as sums that shards add up: `update`, `merge`, `result`.

A state is as large as the vocabulary and the different n-grams, not the captions; merged in any order or split, states
give what one pass gives (counts exactly, means to rounding).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from zlib import crc32

import numpy as np

from diversity.fidelity import REASONS, FactCounts, degenerate_reasons
from diversity.lexical import caption_hashes, first_in_picture, ngram_hashes, within_picture
from diversity.tokens import Tokens, encode

CAPTIONS_AT_ONCE = 16_384  # bounds the memory of a batch
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
EXAMPLES = 5               # degenerate captions kept of each reason


class HashCounts:
    """How often each of many hashed things was seen, as two arrays: 16 bytes a thing."""

    def __init__(self) -> None:
        self.hashes, self.counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, hashes: np.ndarray) -> None:
        """Counts each of the hashes (N,) once more."""
        self._add(*np.unique(hashes, return_counts=True))

    def merge(self, other: "HashCounts") -> None:
        for part in [(other.hashes, other.counts), *other._waiting]:
            self._add(*part)

    def _add(self, hashes: np.ndarray, counts: np.ndarray) -> None:
        self._waiting.append((hashes, counts))
        if sum(len(part) for part, _ in self._waiting) > len(self.hashes) + 2**20:  # so sorting costs n log n in all
            self.compact()

    def compact(self) -> "HashCounts":
        """Sorts what waits into the arrays; needed before they are read."""
        hashes, counts = zip((self.hashes, self.counts), *self._waiting)
        hashes, counts = np.concatenate(hashes), np.concatenate(counts)
        self._waiting = []
        if len(hashes):
            order = np.argsort(hashes)
            hashes, counts = hashes[order], counts[order]
            starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
            self.hashes, self.counts = hashes[starts], np.add.reduceat(counts, starts)
        return self


class CaptionAccumulator:
    """Every measure of one column: spread, lengths, duplicates, degenerate captions, facts."""

    def __init__(self) -> None:
        self.pictures = self.captions = self.unique = 0
        self.words = Counter()                                      # word -> times: vocabulary and distinct-1
        self.lengths = Counter()                                    # words -> captions
        self.ngrams = {n: HashCounts() for n in (2, 3, 4)}
        self.stands_for = HashCounts()                              # caption -> pictures it stands for
        self.within = {name: [0.0, 0] for name in ("div_1", "div_2", "mbleu_4")}  # sum over pictures, pictures
        self.degenerate = 0
        self.reasons = Counter()
        self.examples: dict[str, list[str]] = {reason: [] for reason in REASONS}
        self.facts = FactCounts()

    def update(self, captions: Iterable[Sequence[str]], truncated: Iterable[Sequence[bool]] | None = None,
               scenes: Iterable[Mapping[str, Any] | None] | None = None) -> None:
        """Counts the captions of some pictures.

        `truncated` marks, in the same nesting, those that a length limit cut; `scenes` holds each picture's description
        where it is a built-in one.
        """
        captions = list(captions)
        for batch in _batches(captions):
            self._count_words(encode(batch))
        marks = truncated if truncated is not None else ([False] * len(group) for group in captions)
        for group, group_marks in zip(captions, marks, strict=True):
            for caption, mark in zip(group, group_marks, strict=True):
                self._count_degenerate(caption, mark)
        for group, scene in zip(captions, scenes, strict=True) if scenes is not None else ():
            if scene is not None:
                self.facts.update(group, scene)

    def _count_words(self, tokens: Tokens) -> None:
        self.pictures += tokens.pictures
        self.captions += len(tokens.lengths)
        self.words.update(tokens.words)
        self.lengths.update(tokens.lengths.tolist())
        for n, seen in self.ngrams.items():
            seen.add(ngram_hashes(tokens, n)[0])
        unique, _ = first_in_picture(tokens)
        self.unique += len(unique)
        self.stands_for.add(unique)
        for name, values in within_picture(tokens).items():
            defined = values[~np.isnan(values)]
            self.within[name][0] += float(defined.sum())
            self.within[name][1] += len(defined)

    def _count_degenerate(self, caption: str, truncated: bool) -> None:
        reasons = degenerate_reasons(caption, truncated)
        self.degenerate += bool(reasons)
        self.reasons.update(reasons)
        for reason in reasons:
            self._keep_examples(reason, [caption])

    def _keep_examples(self, reason: str, captions: list[str]) -> None:
        """Keeps a few, the same ones in whatever order they came."""
        self.examples[reason] = sorted({*self.examples[reason], *captions}, key=_shuffled)[:EXAMPLES]

    def merge(self, other: "CaptionAccumulator") -> None:
        """Adds the captions that `other` counted."""
        self.pictures += other.pictures
        self.captions += other.captions
        self.unique += other.unique
        self.words.update(other.words)
        self.lengths.update(other.lengths)
        for n, seen in self.ngrams.items():
            seen.merge(other.ngrams[n])
        self.stands_for.merge(other.stands_for)
        for name, (total, count) in other.within.items():
            self.within[name][0] += total
            self.within[name][1] += count
        self.degenerate += other.degenerate
        self.reasons.update(other.reasons)
        for reason, captions in other.examples.items():
            self._keep_examples(reason, captions)
        self.facts.merge(other.facts)

    def result(self) -> dict[str, Any]:
        """All measures by name; `diversity.measures` says what each is. None where one is undefined."""
        stands_for = self.stands_for.compact().counts
        return {
            "pictures": self.pictures, "captions": self.captions, "words": self.words.total(),
            "length_mean": _ratio(self.words.total(), self.captions),
            "length_quantiles": {f"{q:g}": quantile(self.lengths, q) for q in QUANTILES},
            "length_histogram": {length: self.lengths[length] for length in sorted(self.lengths)},
            "vocabulary": len(self.words),
            "distinct_1": _ratio(len(self.words), self.words.total()),
            **{f"distinct_{n}": _ratio(len(seen.compact().hashes), int(seen.counts.sum())) for n, seen in self.ngrams.items()},
            **{name: _ratio(total, count) for name, (total, count) in self.within.items()},
            "duplicates": _ratio(self.captions - self.unique, self.captions),
            "shared": _ratio(int(stands_for[stands_for > 1].sum()), self.unique),
            "most_shared": _ratio(int(stands_for.max(initial=0)), self.pictures),
            "degenerate": _ratio(self.degenerate, self.captions),
            "degenerate_reasons": {reason: _ratio(self.reasons[reason], self.captions) for reason in REASONS},
            "facts": self.facts.result(),
        }

    def most_shared_hash(self) -> int | None:
        """`caption_hashes` of the caption that stands for the most pictures, None where none stands for two."""
        seen = self.stands_for.compact()
        return int(seen.hashes[seen.counts.argmax()]) if seen.counts.max(initial=0) > 1 else None


def find_caption(captions: Iterable[Sequence[str]], wanted: int) -> str | None:
    """The first caption whose hash is `wanted`."""
    for batch in _batches(captions):
        at = np.flatnonzero(caption_hashes(encode(batch)) == np.uint64(wanted))
        if len(at):
            return next(islice((caption for group in batch for caption in group), int(at[0]), None))
    return None


def quantile(histogram: Mapping[int, int], q: float) -> int | None:
    """The smallest value that at least a share q of the counted ones do not exceed; None of nothing."""
    needed, seen = q * sum(histogram.values()), 0
    for value in sorted(histogram):
        seen += histogram[value]
        if seen >= needed:
            return value
    return None


def _batches(captions: Iterable[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    batch, size = [], 0
    for group in captions:
        batch.append(group)
        size += len(group)
        if size >= CAPTIONS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _shuffled(caption: str) -> tuple[int, str]:
    return crc32(caption.encode("utf-8", "surrogatepass")), caption


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
