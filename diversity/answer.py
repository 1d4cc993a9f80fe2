"""The sentences that open a report: which captioner, which mix, what cannot be told apart and what is not known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from diversity.compare import Difference, Estimate
from diversity.measures import PERCENT, Measure
from diversity.mixes import Mixes

STUDENT = "No figure here is shown to predict a student's accuracy."
SHOWN = 3  # captioners or pairs whose figures a sentence gives
FEW = 30   # pictures; intervals of fewer are too narrow


def answer(*, labels: Mapping[str, str], references: str | None, pictures: int,
           intervals: Mapping[str, Mapping[str, Estimate]], differences: Sequence[Difference], front: Sequence[str],
           fidelity: str, spread: str | None, mixes: Mixes | None, measures: Mapping[str, Measure]) -> tuple[str, ...]:
    """Three to eight sentences in plain text.

    `labels` has the name to print of each row, human one included; intervals[row][score]; `fidelity` and `spread` are names of
    scores, spread None with one caption a picture; `measures` has the label and format of each score. What is called clear is
    `Difference.sign`.
    """
    axes = tuple(measures[score] for score in (fidelity, spread) if score)
    evidence = _Evidence(labels, [name for name in labels if name != references], intervals, axes, _both_ways(differences))
    found = (*_front(evidence, front, pictures), _noise(evidence), _apart(evidence, front, len(differences)),
             _mix(evidence, mixes, measures), _human(evidence, references, front), _unknown(axes[0], pictures), STUDENT)
    return tuple(sentence for sentence in found if sentence)


@dataclass(frozen=True)
class _Evidence:
    """What the sentences are made of."""

    labels: Mapping[str, str]
    captioners: Sequence[str]
    intervals: Mapping[str, Mapping[str, Estimate]]
    axes: tuple[Measure, ...]                                  # fidelity, then spread where there is one
    differences: Mapping[tuple[str, str, str], Difference]     # (score, first, second), in both orders

    def names(self, columns: Sequence[str]) -> str:
        *others, last = [self.labels[column] for column in columns]
        return f"{', '.join(others)} and {last}" if others else last

    def better(self, measure: Measure, column: str, other: str) -> int:
        """1 where the column is clearly better, -1 where the other is, 0 where that cannot be told."""
        difference = self.differences.get((measure.score, column, other))
        up = -1 if measure.better == "lower" else 1
        return up * difference.sign if difference else 0

    def levels(self, column: str) -> str:
        """The column's fidelity and spread in figures, e.g. "CLIPScore 0.712 (0.702 to 0.722) and Div-2 0.6 (0.5 to 0.7)"."""
        intervals = self.intervals[column]
        found = [(measure, intervals[measure.score]) for measure in self.axes if measure.score in intervals]
        return " and ".join(f"{measure.label} {measure.written(mean)}{_range(measure.written(low), measure.written(high))}"
                            for measure, (mean, low, high) in found)

    def change(self, measure: Measure, column: str, other: str) -> str:
        """How far the column is from the other, "" where that is not known."""
        difference = self.differences.get((measure.score, column, other))
        return f"{measure.label} {_change(measure, difference.estimate)}" if difference else ""


def _both_ways(differences: Sequence[Difference]) -> dict[tuple[str, str, str], Difference]:
    found = {}
    for difference in differences:
        score, first, second, estimate, *p = difference
        found[score, first, second] = difference
        found[score, second, first] = Difference(score, second, first, -estimate, *p)
    return found


def _change(measure: Measure, estimate: Estimate) -> str:
    """A difference in words, e.g. "0.012 lower (0.030 lower to 0.006 higher)"."""
    def amount(value: float) -> str:
        return measure.written(abs(value)).replace(PERCENT, " points")

    def side(value: float) -> str:
        return f"{amount(value)} {'lower' if value < 0 else 'higher'}"

    mean, low, high = estimate
    text = "no different" if amount(mean) == amount(0) else side(mean)
    if low < 0 < high:
        return f"{text} ({side(low)} to {side(high)})"
    return text + _range(*map(amount, sorted((low, high), key=abs)))


def _range(low: str, high: str) -> str:
    """An interval in brackets, its unit once; "" where it has no width."""
    return f" ({low.split()[0]} to {high})" if low != high else ""


# --- the sentences -------------------------------------------------------------------------------------------------


def _front(evidence: _Evidence, front: Sequence[str], pictures: int) -> Sequence[str]:
    """Which captioners no other beats, and their figures."""
    fidelity, *spread = evidence.axes
    count = len(evidence.captioners)
    figures = "; ".join(f"{evidence.labels[column]} has {evidence.levels(column) or 'no figures'}" for column in front[:SHOWN])
    figures += f", over {pictures} pictures; 95 % intervals in brackets." if pictures > 1 else ", over 1 picture."
    if count == 1:
        return [figures]
    if len(front) == count:
        who = "both" if count == 2 else "all"
    else:
        who = f"{'only ' if len(front) == 1 else ''}{evidence.names(front)}"
    if spread:
        return [f"Of {count} captioners {who} {'lies' if len(front) == 1 else 'lie'} on the front of fidelity ({fidelity.label}) "
                f"against spread ({spread[0].label}): no other is clearly better in one of them and no worse in the "
                "other.", figures]
    return [f"Of {count} captioners {who} {'is' if len(front) == 1 else 'are'} clearly behind no other in fidelity "
            f"({fidelity.label}); with one caption a picture there is no spread within pictures, and no mix.", figures]


def _noise(evidence: _Evidence) -> str:
    """Columns with clearly more spread than another and clearly lower fidelity, each against the most faithful such one."""
    if len(evidence.axes) < 2:
        return ""
    fidelity, spread = evidence.axes
    up = -1 if fidelity.better == "lower" else 1
    suspects = {}
    for column in evidence.captioners:
        others = [other for other in evidence.labels
                  if evidence.better(spread, column, other) > 0 and evidence.better(fidelity, column, other) < 0]
        if others:
            suspects[column] = max(others, key=lambda other: up * evidence.intervals[other][fidelity.score].mean)
    if not suspects:
        return ""
    figures = "; ".join(f"{evidence.labels[column]} against {evidence.labels[other]}: {evidence.change(spread, column, other)}, "
                        f"but {evidence.change(fidelity, column, other)}" for column, other in list(suspects.items())[:SHOWN])
    return (f"The spread of {evidence.names(list(suspects))} comes with clearly worse fidelity and can be noise, so read some "
            f"captions before you use them. {figures}.")


def _apart(evidence: _Evidence, front: Sequence[str], tested: int) -> str:
    """Which captioners cannot be told apart, and in what."""
    pairs = [(measure, difference) for measure in evidence.axes for first, second in combinations(evidence.captioners, 2)
             if (difference := evidence.differences.get((measure.score, first, second)))]
    if not pairs:
        return ""
    open_ = [(measure, difference) for measure, difference in pairs if not difference.sign]
    if not open_:
        labels = " and ".join(measure.label for measure in evidence.axes)
        return f"The captioners can all be told apart in {labels}: the 95 % interval of every difference leaves out 0."
    open_.sort(key=lambda pair: {pair[1].first, pair[1].second} <= {*front}, reverse=True)
    texts = []
    for measure, difference in open_[:SHOWN]:
        first, second = evidence.labels[difference.first], evidence.labels[difference.second]
        apart = difference.estimate.low > 0 or difference.estimate.high < 0
        texts.append(f"{first} and {second} in {measure.label}, {first} {_change(measure, difference.estimate)}"
                     + (f", which is not enough where {tested} pairs are tested at once" if apart else ""))
    more = len(open_) - len(texts)
    return "These cannot be told apart: " + "; ".join(texts) + (f"; and {more} more of {len(pairs)} pairs" if more else "") + "."


def _mix(evidence: _Evidence, mixes: Mixes | None, measures: Mapping[str, Measure]) -> str:
    """The smallest mix that adds as much as any, or that none adds."""
    if mixes is None or len(mixes.steps) < 2:
        return ""
    alone, *steps = mixes.steps
    judged, fidelity = measures[mixes.coverage_measure or mixes.spread_measure], measures[mixes.fidelity_measure]
    adding = [step for step in steps if step.adds]
    most = max(adding or steps, key=lambda step: step.gain.mean)
    step = next((step for step in adding if step.gain.mean >= most.gain.low), most)
    worth = -step.fidelity_gain if fidelity.better == "lower" else step.fidelity_gain
    change = f"{fidelity.label} {_change(fidelity, worth)}"
    gain = f"{judged.label} {_change(judged, step.gain)}"
    if adding:
        return (f"Mixing {evidence.names(step.columns)}, {alone.captions} captions a picture in turn, adds to as many of "
                f"{evidence.labels[mixes.best]} alone at no clear loss of fidelity: {gain}, {change}.")
    return (f"No mix clearly adds {judged.label} to {alone.captions} captions a picture of {evidence.labels[mixes.best]} alone "
            f"at no clear loss of fidelity; the one that adds most, {evidence.names(step.columns)}, has {gain}, {change}.")


def _human(evidence: _Evidence, references: str | None, front: Sequence[str]) -> str:
    """How far the captioners of the front are from the human captions."""
    if references is None:
        return "No human captions stand beside these, so how much spread such pictures call for is not known."
    changes = {column: " and ".join(filter(None, (evidence.change(measure, column, references) for measure in evidence.axes)))
               for column in front[:SHOWN]}
    figures = "; ".join(f"{evidence.labels[column]} {change}" for column, change in changes.items() if change)
    return f"Against the human captions: {figures}." if figures else "No picture tells how far these are from the human captions."


def _unknown(fidelity: Measure, pictures: int) -> str:
    """What stands against trusting the figures, beside what no report can tell."""
    found = []
    if fidelity.score == "degenerate":
        found.append("Fidelity here is only that captions are well formed: whether they are true of the pictures is not known.")
    elif fidelity.score != "precision":
        found.append(f"What is true of the pictures is not known here: {fidelity.label} is a stand-in for it.")
    if pictures == 1:
        found.append("One picture says nothing of others.")
    elif pictures < FEW:
        found.append(f"{pictures} pictures are few, so the true intervals are wider than those given.")
    return " ".join(found)
