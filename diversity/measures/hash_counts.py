"""How often each of very many hashed things was seen, in memory that is flat in their number.

Up to `cap` different things all is exact. Above it two summaries remain:

- a sample of the things, those whose hash is below 2^(64 - level), with complete counts; level is the smallest at which
  at most `cap` remain (adaptive sampling: Wegman; Flajolet 1990). It is a function of what was seen alone, whatever the
  order, and however it was split and merged;
- the commonest things (Misra and Gries 1982, merged as in Agarwal et al. 2013, "Mergeable Summaries"): all that were seen
  more often than total / (cap / 16) are there, whatever their hashes.

K: things of the sample   M: commonest things
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np

CAP = 1 << 20  # 16 MB of hashes and counts
RANKS = 40  # points of a rank-frequency plot
SURE = 8  # a common thing counts as known where what its count may lack is at most an eighth of it


class Estimated(NamedTuple):
    """A number and its standard error, 0 where the number is exact."""

    value: float
    error: float


class Commonest(NamedTuple):
    """Things seen often: the count of each is from `low` to `excess + absent`; any other was seen at most `absent` times."""

    hashes: np.ndarray  # (M,) uint64, rising
    low: np.ndarray  # (M,) int64
    excess: np.ndarray  # (M,) int64, Misra and Gries' counters
    absent: int

    def merged(self, other: "Commonest", size: int) -> "Commonest":
        """The commonest things of both, at most `size`."""
        hashes, low, excess = _add_up(*map(np.concatenate, zip(self[:3], other[:3])))
        absent = self.absent + other.absent
        if len(hashes) > size:
            least = np.partition(excess, -size - 1)[-size - 1]
            kept = excess > least
            hashes, low, excess, absent = hashes[kept], low[kept], excess[kept] - least, absent + int(least)
        return Commonest(hashes, low, excess, absent)


class HashCounts:
    """Counts of hashes: `add`, `merge`; exact up to `cap` different ones (`level` 0), estimates with their errors above."""

    def __init__(self, cap: int = CAP) -> None:
        self.cap = cap
        self.level = 0
        self.total = 0  # of all counts
        self.hashes, self.counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)  # (K,) hashes rise
        self.commonest: Commonest | None = None  # where level > 0
        self._waiting: list[np.ndarray] = []
        self._size = 0  # of what waits

    def add(self, hashes: np.ndarray) -> None:
        """Counts each of the hashes (N,) once more."""
        self.total += len(hashes)
        self._size += len(hashes)
        self._waiting.append(hashes)
        if self._size > self.cap:
            self.compact()

    def merge(self, other: "HashCounts") -> None:
        """Adds what `other` counted; raises `ValueError` unless both have one cap."""
        if other.cap != self.cap:
            raise ValueError(f"caps of {self.cap} and {other.cap} hashes do not merge")
        self.compact()
        other.compact()
        self.total += other.total
        self._fold(other.hashes, other.counts, other.level, other.commonest)

    def compact(self) -> Self:
        """Counts what waits; needed before `level`, `hashes`, `counts` and `commonest` are read."""
        if self._waiting:
            hashes, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
            self._waiting, self._size = [], 0
            self._fold(hashes, counts, 0, None)
        return self

    def _fold(self, hashes: np.ndarray, counts: np.ndarray, level: int, commonest: Commonest | None) -> None:
        """Adds a state: as many counts of rising hashes, all of them or, above level 0, a sample with the commonest."""
        if self.level or level:
            mine = self.commonest or Commonest(self.hashes, self.counts, self.counts, 0)
            self.commonest = mine.merged(commonest or Commonest(hashes, counts, counts, 0), self.cap // 16)
        self.level = max(self.level, level)
        mine, theirs = _below(self.level, self.hashes), _below(self.level, hashes)
        self.hashes, self.counts = _add_up(
            np.concatenate([self.hashes[:mine], hashes[:theirs]]),
            np.concatenate([self.counts[:mine], counts[:theirs]]),
        )
        if len(self.hashes) > self.cap:
            if not self.level:
                nothing = Commonest(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64), 0)
                self.commonest = Commonest(self.hashes, self.counts, self.counts, 0).merged(nothing, self.cap // 16)
            while (kept := _below(self.level, self.hashes)) > self.cap:
                self.level += 1
            self.hashes, self.counts = self.hashes[:kept].copy(), self.counts[:kept].copy()

    def distinct(self) -> Estimated:
        """How many different things there are: those of the sample times 2^level."""
        kept = len(self.compact().hashes)
        return Estimated(kept * 2.0**self.level, (kept * (1 - 0.5**self.level)) ** 0.5 * 2.0**self.level)

    def sum_of(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimated:
        """The sum over all different things of a function of their counts.

        The commonest things count with their own counts, the sample stands for the rest.
        """
        low, high, light = self._strata()
        at_low, at_high = function(low), function(high)
        rest = _estimated(function(light), light, self.level, self.total - (low + high).sum() / 2)
        return Estimated(
            float((at_low + at_high).sum() / 2) + rest.value, float(np.abs(at_high - at_low).sum() / 2) + rest.error
        )

    def entropy(self) -> Estimated | None:
        """Entropy of the things in bits, -Σ p log₂ p with p = count / total; None of nothing."""
        if not self.total:
            return None
        estimate = self.sum_of(lambda counts: counts * np.log2(np.maximum(counts, 1)))
        return Estimated(
            max(0.0, float(np.log2(self.total)) - estimate.value / self.total), estimate.error / self.total
        )

    def lacking_in(self, other: "HashCounts") -> Estimated:
        """How many of all counts are of things that `other` never saw."""
        level = max(self.compact().level, other.compact().level)
        hashes, theirs = (counts.hashes[: _below(level, counts.hashes)] for counts in (self, other))
        counts = self.counts[: len(hashes)].astype(float)
        estimate = _estimated(counts * ~np.isin(hashes, theirs, assume_unique=True), counts, level, self.total)
        return Estimated(min(max(estimate.value, 0.0), self.total), estimate.error)

    def most(self) -> tuple[int, Estimated]:
        """The hash of the thing that was seen most often, and how often; 0 times of nothing."""
        hashes, low, high = self.compact().hashes, self.counts, self.counts
        if self.commonest is not None:
            common = self.commonest
            hashes, low, high = (
                np.concatenate(pair)
                for pair in ((hashes, common.hashes), (low, common.low), (high, common.excess + common.absent))
            )
        if not len(hashes):
            return 0, Estimated(0.0, 0.0)
        first = int((low + high).argmax())
        return int(hashes[first]), Estimated(float(low[first] + high[first]) / 2, float(high[first] - low[first]) / 2)

    def rank_frequency(self) -> list[tuple[int, int]]:
        """Some ranks, evenly spaced on a log scale, and how often the thing of each rank was seen; rank 1 the commonest."""
        low, high, light = self._strata()
        counts = np.concatenate([(low + high) / 2, light])
        order = np.argsort(-counts, kind="stable")
        if not len(order):
            return []
        stands_for = np.where(order < len(low), 1.0, 2.0**self.level)  # ranks
        last = np.cumsum(stands_for)  # the last rank that each of them stands for
        ranks = np.unique(np.geomspace(1, last[-1], RANKS).round())
        shown = counts[order[np.searchsorted(last, ranks)]].tolist()
        return [(int(rank), round(count)) for rank, count in zip(ranks, shown)]

    def _strata(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Least and greatest counts of common things, and the counts of the sample's other things, all as floats."""
        counts = self.compact().counts.astype(float)
        if self.commonest is None:
            return counts[:0], counts[:0], counts
        low, high = self.commonest.low, self.commonest.excess + self.commonest.absent
        known = SURE * (high - low) <= low
        light = ~np.isin(self.hashes, self.commonest.hashes[known], assume_unique=True)
        return low[known].astype(float), high[known].astype(float), counts[light]


def _below(level: int, hashes: np.ndarray) -> int:
    """How many of the rising hashes are below 2^(64 - level)."""
    return int(np.searchsorted(hashes, np.uint64(1 << 64 - level))) if level else len(hashes)


def _add_up(hashes: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """The different hashes, rising, and of each the sums of its values."""
    if not len(hashes):
        return hashes, *values
    order = np.argsort(hashes, kind="stable")  # quick where rising hashes were appended to rising hashes
    hashes = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
    return hashes[starts], *(np.add.reduceat(value[order], starts) for value in values)


def _estimated(values: np.ndarray, counts: np.ndarray, level: int, total: float) -> Estimated:
    """The sum of values over all things, from those of a sample (K,), whose counts sum to `total` over all things.

    What follows the counts is known from their total, so only what departs from them is scaled up (regression estimator;
    Cochran 1977, "Sampling Techniques").
    """
    if not level:
        return Estimated(float(values.sum()), 0.0)
    slope = (values @ counts) / (counts @ counts) if len(counts) else 0.0
    departures = values - slope * counts
    return Estimated(
        float(slope * total + departures.sum() * 2.0**level),
        float(((1 - 0.5**level) * (departures**2).sum()) ** 0.5 * 2.0**level),
    )
