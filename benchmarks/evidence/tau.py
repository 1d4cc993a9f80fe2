"""Statistics for few seeds and points: means with errors, paired differences, and rank correlation with its interval.

P: points, S: seeds
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

T_975 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}  # 97.5 % quantiles of Student's t
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds and its standard error, which is NaN for a single seed."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The mean difference between runs with the same seeds, with its 95 % t-interval."""
    value, error = mean_and_error(np.subtract(ours, theirs))
    reach = T_975[len(ours) - 1] * error if len(ours) > 1 else math.nan
    return Estimate(value, value - reach, value + reach)


def kendall_tau(first: Sequence[float], second: Sequence[float], groups: Sequence[int] | None = None) -> float:
    """Kendall's tau-b of two rankings of the same points, from -1 to 1; NaN if all points tie in one (Kendall 1945).

    groups: the group of each point; only points of the same group are compared
    """
    a, b = (np.sign(np.subtract.outer(values, values)) for values in (first, second))  # (P, P)
    if groups is not None:
        a = a * np.equal.outer(groups, groups)
        b = b * np.equal.outer(groups, groups)
    untied = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / untied) if untied else math.nan


def tau_with_interval(
    figure: Sequence[float], gains: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Tau-b of a figure (P,) with the mean over seeds of gains (P, S), with its 95 % interval.

    The interval is a percentile bootstrap of points, and of each point's seeds. Resamples in which all points tie are
    left out.
    """
    figure, gains = np.asarray(figure, float), np.asarray(gains, float)
    points, seeds = gains.shape
    random = np.random.default_rng(seed)
    taus = []
    for _ in range(resamples):
        of_seeds = np.take_along_axis(gains, random.integers(seeds, size=gains.shape), axis=1).mean(axis=1)  # (P,)
        chosen = random.integers(points, size=points)  # a point that is drawn twice ties with itself in both rankings
        taus.append(kendall_tau(figure[chosen], of_seeds[chosen]))
    low, high = np.nanquantile(taus, (0.025, 0.975))
    return Estimate(kendall_tau(figure, gains.mean(axis=1)), float(low), float(high))
