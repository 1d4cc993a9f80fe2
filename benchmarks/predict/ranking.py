"""How well figures rank columns by their students' scores, within groups and over all, with intervals and tests.

C: columns, S: seeds, R: resamples
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.evidence.tau import Estimate, kendall_tau

RESAMPLES = 2_000
PERMUTATIONS = 10_000


class Ranks(NamedTuple):
    """How a figure ranks columns: tau-b within groups with a one-sided p-value, tau-b over all columns, and the latter
    minus that of length, with a p-value.
    """

    within: Estimate
    p_within: float
    overall: Estimate
    above: Estimate
    p_above: float


def rank(figures: Mapping[str, Sequence[float]], scores: np.ndarray, groups: Sequence[int]) -> dict[str, Ranks]:
    """How each figure (C,) ranks the mean over seeds of the students' scores (C, S). "length" is one of the figures.

    Higher figures count as better. Intervals are 95 % percentiles of a bootstrap of the columns within each group and
    of each column's seeds. All figures see the same resamples, so that differences are paired. `p_within` comes from
    permutations of the figure within each group. `p_above` is the share of resamples in which the figure is not above
    length.
    """
    groups, scores = np.asarray(groups), np.asarray(scores, float)
    resamples = [*resampled(scores, groups)]

    def taus(figure: Sequence[float], groups: np.ndarray | None) -> tuple[float, np.ndarray]:
        figure = np.asarray(figure, float)
        of_resamples = []
        for columns, means in resamples:
            of_columns = None if groups is None else groups[columns]
            of_resamples.append(kendall_tau(figure[columns], means, of_columns))
        return kendall_tau(figure, scores.mean(axis=1), groups), np.array(of_resamples)  # (R,)

    length, length_resampled = taus(figures["length"], None)
    ranks = {}
    for name, figure in figures.items():
        within, overall = taus(figure, groups), taus(figure, None)
        above = overall[1] - length_resampled
        ranks[name] = Ranks(
            within=_estimate(*within),
            p_within=permutation_p(figure, scores.mean(axis=1), groups),
            overall=_estimate(*overall),
            above=_estimate(overall[0] - length, above),
            p_above=float((1 + (above <= 0).sum()) / (1 + len(above))),
        )
    return ranks


def resampled(scores: np.ndarray, groups: np.ndarray, seed: int = 0) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Resamples: columns (C,) drawn with replacement within groups, and their mean scores over seeds drawn in the same
    way.
    """
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(RESAMPLES):
        columns = np.concatenate([random.choice(of_group, len(of_group)) for of_group in members])
        seeds = random.integers(scores.shape[1], size=scores.shape)
        yield columns, np.take_along_axis(scores, seeds, axis=1).mean(axis=1)[columns]


def permutation_p(figure: Sequence[float], means: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """The share of random permutations of the figure within groups whose tau within groups is at least as high."""
    random, figure = np.random.default_rng(seed), np.asarray(figure, float)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    tau, higher = kendall_tau(figure, means, groups), 0
    if np.isnan(tau):
        return 1.0
    for _ in range(PERMUTATIONS):
        dealt = figure.copy()
        for of_group in members:
            dealt[of_group] = random.permutation(figure[of_group])
        higher += kendall_tau(dealt, means, groups) >= tau - 1e-12
    return (1 + higher) / (1 + PERMUTATIONS)


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """The p-values of several tests, corrected for multiple testing (Holm 1979)."""
    highest, corrected = 0.0, {}
    for rank, name in enumerate(sorted(values, key=lambda name: values[name])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[name]))
        corrected[name] = highest
    return corrected


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    """The value with its 95 % interval, from the resamples that are not NaN."""
    resampled = resampled[~np.isnan(resampled)]
    return Estimate(value, *(np.quantile(resampled, (0.025, 0.975)).tolist() if len(resampled) else (np.nan, np.nan)))
