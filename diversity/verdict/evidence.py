"""The figures and decisions that a report's first sentences are made of, and how they are put into words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diversity.measures.measure import PERCENT, Measure
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.winner import Verdict

MAX_LISTED = 3  # captioners, or pairs of captioners, whose figures a sentence lists


@dataclass(frozen=True)
class Evidence:
    """The figures and decisions that the sentences are made of."""

    labels: Mapping[str, str]
    captioners: Sequence[str]
    intervals: Mapping[str, Mapping[str, Estimate]]
    axes: tuple[Measure, ...]  # the measure of fidelity, then the measure of spread where there is one
    decisive: tuple[Measure, ...]  # all measures of fidelity that the verdict depends on
    differences: Mapping[tuple[str, str, str], Difference]  # (score, first, second), in both directions
    verdict: Verdict
    same: Sequence[Sequence[str]]  # groups of captioners with the same captions

    def are_same(self, *columns: str) -> bool:
        """Return whether captioners have the same captions."""
        return any({*columns} <= {*group} for group in self.same)

    @property
    def first(self) -> Sequence[str]:
        """The captioners whose figures are listed: the best ones that are not suspect."""
        return (self.verdict.ranking or self.captioners)[:MAX_LISTED]

    def names(self, columns: Sequence[str]) -> str:
        """Return the labels of columns as a list in words."""
        return listed([self.labels[column] for column in columns])

    def better(self, measure: Measure, column: str, other: str) -> int:
        """Return 1 where the column is clearly better, -1 where the other one is, 0 where neither is."""
        difference = self.differences.get((measure.score, column, other))
        return measure.direction * difference.sign if difference else 0

    def levels(self, column: str) -> str:
        """Return fidelity and spread, such as "CLIPScore 0.712 (0.702 to 0.722) and Div-2 0.600 (0.500 to 0.700)"."""
        intervals = self.intervals[column]
        levels = []
        for measure in self.axes:
            if measure.score in intervals:
                mean, low, high = map(measure.written, intervals[measure.score])
                levels.append(f"{measure.label} {mean}{interval_in_brackets(low, high)}")
        return " and ".join(levels)

    def change(self, measure: Measure, column: str, other: str) -> str:
        """Return in words how far the column is above or below the other one; "" where this is not known."""
        difference = self.differences.get((measure.score, column, other))
        return f"{measure.label} {change_in_words(measure, difference.estimate)}" if difference else ""


def listed(texts: Sequence[str]) -> str:
    """Join texts as "a, b and c"."""
    *others, last = texts
    return f"{', '.join(others)} and {last}" if others else last


def in_both_directions(differences: Sequence[Difference]) -> dict[tuple[str, str, str], Difference]:
    """Return each difference under (score, first, second), and its opposite under (score, second, first)."""
    by_columns = {}
    for difference in differences:
        score, first, second = difference.measure, difference.first, difference.second
        by_columns[score, first, second] = difference
        by_columns[score, second, first] = difference._replace(
            first=second, second=first, estimate=-difference.estimate
        )
    return by_columns


def change_in_words(measure: Measure, estimate: Estimate) -> str:
    """Return a difference in words, for example "0.012 lower (0.030 lower to 0.006 higher)"."""

    def amount(value: float) -> str:
        return measure.written(abs(value)).replace(PERCENT, " points")

    def direction(value: float) -> str:
        return f"{amount(value)} {'lower' if value < 0 else 'higher'}"

    mean, low, high = estimate
    text = "the same" if amount(mean) == amount(0) else direction(mean)
    if low < 0 < high:
        return f"{text} ({direction(low)} to {direction(high)})"
    return text + interval_in_brackets(*map(amount, sorted((low, high), key=abs)))


def interval_in_brackets(low: str, high: str) -> str:
    """Return an interval in brackets with its unit once; "" where it has no width."""
    return f" ({low.split()[0]} to {high})" if low != high else ""
