"""Count how often each of very many hashed things occurs, in memory that does not grow with their number.

For up to `cap` different things all counts are exact. Above that, two summaries remain:

- a sample of the things with complete counts: all things whose hash is below 2^(64 - level), where level is the
  smallest one with at most `cap` things in the sample (adaptive sampling: Wegman; Flajolet 1990). The sample depends
  on the things alone, not on their order, nor on how they were split and merged;
- the commonest things, whatever their hashes (Misra and Gries 1982, merged as in Agarwal et al. 2013, "Mergeable
  Summaries"): all things that occur more often than total / (cap / 16) are among them.

K: things in the sample   M: commonest things
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np

CAP = 1 << 20  # 16 MB of hashes and counts
RANKS = 40  # points of a rank-frequency plot
SURE = 8  # the count of a common thing is used if it may be too low by an eighth of it at most


class Estimated(NamedTuple):
    """A number and its standard error, 0 where the number is exact."""

    value: float
    error: float


class Commonest(NamedTuple):
    """Things that occur often, with bounds of their counts.

    The count of each is between `low` and `excess + absent`, and the count of any other thing is at most `absent`.
    """

    hashes: np.ndarray  # (M,) uint64, ascending
    low: np.ndarray  # (M,) int64
    excess: np.ndarray  # (M,) int64, the counters of Misra and Gries
    absent: int

    def merged(self, other: "Commonest", size: int) -> "Commonest":
        """Return the commonest things of both, at most `size`."""
        hashes, low, excess = _add_up(*map(np.concatenate, zip(self[:3], other[:3])))
        absent = self.absent + other.absent
        if len(hashes) > size:
            least = np.partition(excess, -size - 1)[-size - 1]
            large = excess > least
            hashes, low, excess, absent = hashes[large], low[large], excess[large] - least, absent + int(least)
        return Commonest(hashes, low, excess, absent=absent)


class HashCounts:
    """Counts of hashes: exact for up to `cap` different hashes (`level` 0), estimates with standard errors above."""

    def __init__(self, cap: int = CAP) -> None:
        self.cap = cap
        self.level = 0
        self.total = 0  # sum of all counts
        self.hashes, self.counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)  # (K,) the sample, hashes ascending
        self.commonest: Commonest | None = None  # None while level is 0
        self._waiting: list[np.ndarray] = []  # hashes that are not counted yet
        self._waiting_size = 0

    def add(self, hashes: np.ndarray) -> None:
        """Count each of the hashes (N,) once."""
        self.total += len(hashes)
        self._waiting_size += len(hashes)
        self._waiting.append(hashes)
        if self._waiting_size > self.cap:
            self.compact()

    def merge(self, other: "HashCounts") -> None:
        """Add what `other` counted; raise `ValueError` unless both have the same cap."""
        if other.cap != self.cap:
            raise ValueError(f"caps of {self.cap} and {other.cap} hashes do not merge")
        self.compact()
        other.compact()
        self.total += other.total
        self._fold(other.hashes, other.counts, other.level, commonest=other.commonest)

    def compact(self) -> Self:
        """Count the waiting hashes; needed before `level`, `hashes`, `counts` and `commonest` are read."""
        if self._waiting:
            hashes, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
            self._waiting, self._waiting_size = [], 0
            self._fold(hashes, counts, 0, commonest=None)
        return self

    def _fold(self, hashes: np.ndarray, counts: np.ndarray, level: int, *, commonest: Commonest | None) -> None:
        """Add the counts of ascending hashes: all counts at level 0, and above it a sample's with `commonest`."""
        if self.level or level:
            mine = self.commonest or _all_common(self.hashes, self.counts)
            self.commonest = mine.merged(commonest or _all_common(hashes, counts), self.cap // 16)
        self.level = max(self.level, level)
        mine, theirs = _below(self.level, self.hashes), _below(self.level, hashes)
        self.hashes, self.counts = _add_up(
            np.concatenate([self.hashes[:mine], hashes[:theirs]]),
            np.concatenate([self.counts[:mine], counts[:theirs]]),
        )
        if len(self.hashes) > self.cap:
            if not self.level:
                nothing = _all_common(np.zeros(0, np.uint64), np.zeros(0, np.int64))
                self.commonest = _all_common(self.hashes, self.counts).merged(nothing, self.cap // 16)
            while (size := _below(self.level, self.hashes)) > self.cap:
                self.level += 1
            self.hashes, self.counts = self.hashes[:size].copy(), self.counts[:size].copy()

    def distinct(self) -> Estimated:
        """Return the number of different things: those of the sample times 2^level."""
        size = len(self.compact().hashes)
        return Estimated(size * 2.0**self.level, (size * (1 - 0.5**self.level)) ** 0.5 * 2.0**self.level)

    def sum_of(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimated:
        """Return the sum over all different things of a function of their counts.

        The commonest things contribute by their own counts, and the sample stands for all other things.
        """
        low, high, others = self._strata()
        at_low, at_high = function(low), function(high)
        total_of_others = self.total - (low + high).sum() / 2
        sum_of_others = _estimated(function(others), others, self.level, total=total_of_others)
        return Estimated(
            float((at_low + at_high).sum() / 2) + sum_of_others.value,
            float(np.abs(at_high - at_low).sum() / 2) + sum_of_others.error,
        )

    def entropy(self) -> Estimated | None:
        """Return the entropy of the things in bits, -Σ p log₂ p with p = count / total; None where there are none."""
        if not self.total:
            return None
        estimate = self.sum_of(lambda counts: counts * np.log2(np.maximum(counts, 1)))
        return Estimated(
            max(0.0, float(np.log2(self.total)) - estimate.value / self.total), estimate.error / self.total
        )

    def lacking_in(self, other: "HashCounts") -> Estimated:
        """Return how much of the total is counts of things that `other` does not have."""
        level = max(self.compact().level, other.compact().level)
        hashes, other_hashes = (counts.hashes[: _below(level, counts.hashes)] for counts in (self, other))
        counts = self.counts[: len(hashes)].astype(float)
        counts_lacking = counts * ~np.isin(hashes, other_hashes, assume_unique=True)
        estimate = _estimated(counts_lacking, counts, level, total=self.total)
        return Estimated(min(max(estimate.value, 0.0), self.total), estimate.error)

    def most(self) -> tuple[int, Estimated]:
        """Return the hash of the thing that occurs most often, and how often; 0 times where there are no things."""
        hashes, low, high = self.compact().hashes, self.counts, self.counts
        if self.commonest is not None:
            common = self.commonest
            hashes = np.concatenate([hashes, common.hashes])
            low = np.concatenate([low, common.low])
            high = np.concatenate([high, common.excess + common.absent])
        if not len(hashes):
            return 0, Estimated(0.0, 0.0)
        first = int((low + high).argmax())
        return int(hashes[first]), Estimated(float(low[first] + high[first]) / 2, float(high[first] - low[first]) / 2)

    def rank_frequency(self) -> list[tuple[int, int]]:
        """Return some ranks, evenly spaced on a log scale, with their counts; the thing of rank 1 is the commonest."""
        low, high, others = self._strata()
        counts = np.concatenate([(low + high) / 2, others])
        order = np.argsort(-counts, kind="stable")
        if not len(order):
            return []
        ranks_of_count = np.where(order < len(low), 1.0, 2.0**self.level)  # how many ranks each count stands for
        last_rank = np.cumsum(ranks_of_count)  # the last rank that each count stands for
        ranks = np.unique(np.geomspace(1, last_rank[-1], RANKS).round())
        counts_of_ranks = counts[order[np.searchsorted(last_rank, ranks)]].tolist()
        return [(int(rank), round(count)) for rank, count in zip(ranks, counts_of_ranks)]

    def _strata(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the lowest and highest counts of common things, and the counts of the sample's other things."""
        counts = self.compact().counts.astype(float)
        if self.commonest is None:
            return counts[:0], counts[:0], counts
        low, high = self.commonest.low, self.commonest.excess + self.commonest.absent
        sure = SURE * (high - low) <= low
        others = ~np.isin(self.hashes, self.commonest.hashes[sure], assume_unique=True)
        return low[sure].astype(float), high[sure].astype(float), counts[others]


def _all_common(hashes: np.ndarray, counts: np.ndarray) -> Commonest:
    """Return exact counts as `Commonest`, with all things among the commonest ones."""
    return Commonest(hashes, counts, counts, absent=0)


def _below(level: int, hashes: np.ndarray) -> int:
    """Return how many of the ascending hashes are below 2^(64 - level)."""
    return int(np.searchsorted(hashes, np.uint64(1 << 64 - level))) if level else len(hashes)


def _add_up(hashes: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the different hashes in ascending order, and for each the sums of its values."""
    if not len(hashes):
        return hashes, *values
    order = np.argsort(hashes, kind="stable")  # fast for ascending hashes appended to ascending hashes
    hashes = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
    return hashes[starts], *(np.add.reduceat(value[order], starts) for value in values)


def _estimated(values: np.ndarray, counts: np.ndarray, level: int, *, total: float) -> Estimated:
    """Estimate the sum of values over all things from the values and counts of a sample (K,).

    `total` is the sum of the counts over all things. The part of the values that is proportional to the counts is
    known from this total, so only their deviations from it are scaled up (regression estimator; Cochran 1977,
    "Sampling Techniques").
    """
    if not level:
        return Estimated(float(values.sum()), 0.0)
    slope = (values @ counts) / (counts @ counts) if len(counts) else 0.0
    deviations = values - slope * counts
    return Estimated(
        float(slope * total + deviations.sum() * 2.0**level),
        float(((1 - 0.5**level) * (deviations**2).sum()) ** 0.5 * 2.0**level),
    )
