"""Estimate the means of scores over pictures with their intervals, and test in which scores columns differ.

P: pictures   S: scores   R: resamples or sign flips in a block
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import numpy as np

LEVEL = 0.05  # significance level of the tests; the level of the intervals is 1 - LEVEL
AT_ONCE = 2**22  # numbers in one block of resamples or flips: 32 MiB
Key = TypeVar("Key", bound=Hashable)


class Estimate(NamedTuple):
    """A mean over pictures with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __neg__(self) -> "Estimate":
        return Estimate(0.0 - self.mean, 0.0 - self.high, 0.0 - self.low)  # so that 0.0 does not become -0.0

    def shifted(self, shift: float) -> "Estimate":
        """Return the estimate with `shift` added to the mean and to both ends of the interval."""
        return Estimate(self.mean + shift, self.low + shift, self.high + shift)


class Difference(NamedTuple):
    """The difference, first - second, between two columns in one score on the same pictures."""

    measure: str
    first: str
    second: str
    pictures: int  # that have the score in both columns
    estimate: Estimate
    p: float  # see `differences`
    p_holm: float

    @property
    def sign(self) -> int:
        """1 where the first column is clearly higher, -1 where the second is, 0 where they cannot be told apart.

        Clearly means that p_holm < 0.05 and that the interval does not contain 0.
        """
        if self.p_holm >= LEVEL:
            return 0
        return int(self.estimate.low > 0) - int(self.estimate.high < 0)

    def as_json(self) -> dict[str, Any]:
        """Return the difference as a dictionary of plain values."""
        return {**self._asdict(), "estimate": self.estimate._asdict()}


def estimates(scores: Mapping[Key, np.ndarray], seed: int, resamples: int = 1000) -> dict[Key, Estimate]:
    """Return the mean of each score of the same pictures, each (P,), with its 95 % interval.

    This is the percentile bootstrap (Efron 1979): P pictures are drawn with replacement, the same pictures for every
    score, and the interval contains the middle 95 % of the means of these draws. NaN scores are left out of the mean;
    a score that is NaN for all pictures is left out of the result.
    """
    scores = {key: values for key, values in scores.items() if not np.isnan(values).all()}
    if not scores:
        return {}
    values = np.column_stack(list(scores.values()))  # (P, S)
    pictures, count = values.shape
    defined = ~np.isnan(values)  # (P, S)
    # (S,) subtracted, so that the mean of a constant is exact
    origin = values[defined.argmax(axis=0), np.arange(count)]
    # (P, 2 S): summands, and whether they are defined
    parts = np.hstack([np.where(defined, values - origin, 0), defined])
    rng, means = np.random.default_rng(seed), []
    for block in _blocks(resamples, pictures):
        draws = rng.integers(pictures, size=(block, pictures))  # (R, P)
        times_drawn = np.stack([np.bincount(draw, minlength=pictures) for draw in draws]).astype(float)  # (R, P)
        sums = times_drawn @ parts  # (R, 2 S)
        with np.errstate(invalid="ignore"):
            means.append(sums[:, :count] / sums[:, count:])  # NaN where no drawn picture has the score
    low, high = np.nanquantile(np.concatenate(means), [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    mean = parts[:, :count].sum(axis=0) / defined.sum(axis=0)
    table = np.stack([mean, low, high], axis=1) + origin[:, None]  # (S, 3)
    return {key: Estimate(*row) for key, row in zip(scores, table.tolist(), strict=True)}


def differences(
    scores: Mapping[str, Mapping[str, np.ndarray]], measures: Sequence[str], seed: int
) -> tuple[Difference, ...]:
    """Compare every two columns in each of the named scores; scores[column][measure] is (P,), on the same pictures.

    p is the two-sided p of a paired sign-flip test. If it made no difference which of the two columns the captions of
    a picture came from, each picture's difference could as well have the opposite sign. p is the share of random signs
    for which the mean difference is at least as far from 0 as the observed one. The observed signs count among them,
    so p is never 0 (Fisher 1935; Phipson and Smyth 2010). p_holm corrects p for all returned differences (Holm 1979):
    if no difference is real, the chance that any p_holm is below 0.05 is at most 5 %. Pictures where one of the two
    scores is NaN are left out, and so are pairs of columns without any other picture.
    """
    pairs = {
        (measure, first, second): scores[first][measure] - scores[second][measure]
        for measure in measures
        for first, second in combinations(scores, 2)
        if measure in scores[first] and measure in scores[second]
    }
    intervals = estimates(pairs, seed)
    if not intervals:
        return ()
    p = _sign_flip_p(np.column_stack([pairs[key] for key in intervals]), seed)
    p_holm = holm(p)
    return tuple(
        Difference(
            *key,
            pictures=int((~np.isnan(pairs[key])).sum()),
            estimate=estimate,
            p=float(p[index]),
            p_holm=float(p_holm[index]),
        )
        for index, (key, estimate) in enumerate(intervals.items())
    )


def _sign_flip_p(values: np.ndarray, seed: int) -> np.ndarray:
    """Return the two-sided p (S,) of the mean differences of `values` (P, S).

    There are so many flips that the smallest p can be below LEVEL / 2 after Holm's correction.
    """
    values = np.where(np.isnan(values), 0, values)
    pictures, count = values.shape
    flips = max(1999, round(2 * count / LEVEL))
    rounding = 1e-12 * np.abs(values).sum(axis=0)  # (S,)
    observed = np.abs(values.sum(axis=0)) - rounding  # (S,)
    beyond = np.zeros(count, int)  # (S,) flips whose sum is at least as far from 0
    rng = np.random.default_rng(seed)
    for block in _blocks(flips, pictures):
        signs = np.where(rng.random((block, pictures)) < 0.5, -1.0, 1.0)  # (R, P)
        beyond += (np.abs(signs @ values) >= observed).sum(axis=0)
    return (beyond + 1) / (flips + 1)


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's step-down correction of p (S,)."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def _blocks(rows: int, columns: int) -> Iterator[int]:
    """Yield sizes of blocks of rows that add up to `rows`; no block has more than AT_ONCE numbers."""
    at_once = max(1, AT_ONCE // columns)
    for first in range(0, rows, at_once):
        yield min(at_once, rows - first)
