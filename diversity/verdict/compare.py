"""How sure the mean of a score over pictures is, and which columns differ in it.

P: pictures   S: scores   R: resamples or flips in a block
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple, TypeVar

import numpy as np

LEVEL = 0.05  # of the tests; the intervals hold 1 - LEVEL
AT_ONCE = 2**22  # numbers of one block of resamples or flips: 32 MiB
Key = TypeVar("Key", bound=Hashable)


class Estimate(NamedTuple):
    """A mean over pictures with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __neg__(self) -> "Estimate":
        return Estimate(0.0 - self.mean, 0.0 - self.high, 0.0 - self.low)  # which is no -0.0

    def shifted(self, by: float) -> "Estimate":
        """The same about another mean."""
        return Estimate(self.mean + by, self.low + by, self.high + by)


class Difference(NamedTuple):
    """One score of two columns on the same pictures: first - second."""

    measure: str
    first: str
    second: str
    estimate: Estimate
    p: float  # see `differences`
    p_holm: float

    @property
    def sign(self) -> int:
        """1 where the first is certainly higher, -1 where the second is, 0 where they cannot be told apart.

        Certain: p_holm < 0.05, and the interval leaves out 0.
        """
        if self.p_holm >= LEVEL:
            return 0
        return int(self.estimate.low > 0) - int(self.estimate.high < 0)


def estimates(scores: Mapping[Key, np.ndarray], seed: int, resamples: int = 1000) -> dict[Key, Estimate]:
    """The mean of each of several scores of the same pictures, each (P,), with its 95 % interval.

    The interval is the percentile bootstrap's: as many pictures are drawn with replacement, the same ones for every score, and
    it holds the middle 95 % of their means (Efron 1979). A picture whose score is NaN counts nothing towards that score; a score
    that is NaN everywhere is left out.
    """
    scores = {key: values for key, values in scores.items() if not np.isnan(values).all()}
    if not scores:
        return {}
    values = np.column_stack(list(scores.values()))  # (P, S)
    pictures, count = values.shape
    defined = ~np.isnan(values)  # (P, S)
    origin = values[defined.argmax(axis=0), np.arange(count)]  # (S,) so that a constant's mean is exact
    parts = np.hstack([np.where(defined, values - origin, 0), defined])  # (P, 2 S): summands, and how many
    rng, means = np.random.default_rng(seed), []
    for block in _blocks(resamples, pictures):
        draws = rng.integers(pictures, size=(block, pictures))  # (R, P)
        times = np.stack([np.bincount(drawn, minlength=pictures) for drawn in draws]).astype(float)
        sums = times @ parts  # (R, 2 S)
        with np.errstate(invalid="ignore"):
            means.append(sums[:, :count] / sums[:, count:])  # NaN where none of the drawn is defined
    low, high = np.nanquantile(np.concatenate(means), [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    mean = parts[:, :count].sum(axis=0) / defined.sum(axis=0)
    table = np.stack([mean, low, high], axis=1) + origin[:, None]  # (S, 3)
    return {key: Estimate(*row) for key, row in zip(scores, table.tolist(), strict=True)}


def differences(
    scores: Mapping[str, Mapping[str, np.ndarray]], measures: Sequence[str], seed: int
) -> tuple[Difference, ...]:
    """Every two columns in each of the named scores; scores[column][measure] is (P,), the pictures the same in all.

    p is two-sided, of a paired test by sign flips: if it made no difference which of the two columns the captions of a picture
    came from, each picture's difference could as well have the other sign. p is the share of random signs whose mean is at least
    as far from 0 as the one found, that one counted among them, so never 0 (Fisher 1935; Phipson and Smyth 2010).
    p_holm corrects it for all differences returned (Holm 1979): the chance that any that is not real has a p_holm
    below 0.05 is at most 5 %. Pictures where one of the two is NaN count nothing; pairs without any other are left out.
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
    return tuple(
        Difference(*key, estimate, *of_pair)
        for (key, estimate), of_pair in zip(intervals.items(), zip(p.tolist(), holm(p).tolist()), strict=True)
    )


def _sign_flip_p(values: np.ndarray, seed: int) -> np.ndarray:
    """Two-sided p (S,) of the differences (P, S); enough flips that Holm's correction can leave its smallest below LEVEL / 2."""
    values = np.where(np.isnan(values), 0, values)
    pictures, count = values.shape
    flips = max(1999, round(2 * count / LEVEL))
    observed = np.abs(values.sum(axis=0)) - 1e-12 * np.abs(values).sum(axis=0)  # (S,) less the rounding of a sum
    beyond = np.zeros(count, int)
    rng = np.random.default_rng(seed)
    for block in _blocks(flips, pictures):
        signs = np.where(rng.random((block, pictures)) < 0.5, -1.0, 1.0)  # (R, P)
        beyond += (np.abs(signs @ values) >= observed).sum(axis=0)
    return (beyond + 1) / (flips + 1)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p (S,)."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def _blocks(rows: int, columns: int) -> Iterator[int]:
    """Sizes of blocks of the rows, none of more than AT_ONCE numbers."""
    at_once = max(1, AT_ONCE // columns)
    for first in range(0, rows, at_once):
        yield min(at_once, rows - first)
