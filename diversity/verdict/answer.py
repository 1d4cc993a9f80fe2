"""The sentences that open a report: which captioner is best, which are suspect, which mix, and what is not known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from diversity.measures.measure import PERCENT, Measure
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.mixes import Mixes
from diversity.verdict.winner import Verdict

STUDENT = "No figure here is shown to predict a student's accuracy."
SHOWN = 3  # captioners or pairs whose figures a sentence gives
REASONS = 2  # why a captioner is suspect
FEW = 30  # pictures; intervals of fewer are too narrow


BY = {
    "facts": "the facts that their captions state",
    "clip": "CLIP's view of captions and pictures",
    "references": "agreement with the human captions",
}


def answer(
    *,
    labels: Mapping[str, str],
    references: str | None,
    pictures: int,
    intervals: Mapping[str, Mapping[str, Estimate]],
    differences: Sequence[Difference],
    verdict: Verdict,
    spread: str | None,
    mixes: Mixes | None,
    measures: Mapping[str, Measure],
) -> tuple[str, ...]:
    """Three to eight sentences in plain text, the verdict first.

    `labels` has the name to print of each row, human one included; `pictures` are those by which fidelity is known;
    intervals[row][score]; `spread` is the name of a score, None with one caption a picture; `measures` has the label
    and format of each score. What is called clear is `Difference.sign`.
    """
    axes = tuple(measures[score] for score in (verdict.measures[0], spread) if score)
    captioners = [name for name in labels if name != references]
    decisive = tuple(measures[score] for score in verdict.measures)
    evidence = _Evidence(labels, captioners, intervals, axes, decisive, _both_ways(differences), verdict)
    sentences = (
        _best(evidence),
        _suspects(evidence),
        _figures(evidence, pictures),
        _noise(evidence),
        _apart(evidence, len(differences)),
        _mix(evidence, mixes, measures),
        _human(evidence, references),
        _unknown(evidence, pictures),
        STUDENT,
    )
    return tuple(sentence for sentence in sentences if sentence)


@dataclass(frozen=True)
class _Evidence:
    """What the sentences are made of."""

    labels: Mapping[str, str]
    captioners: Sequence[str]
    intervals: Mapping[str, Mapping[str, Estimate]]
    axes: tuple[Measure, ...]  # fidelity, then spread where there is one
    decisive: tuple[Measure, ...]  # all measures of fidelity that the verdict goes by
    differences: Mapping[tuple[str, str, str], Difference]  # (score, first, second), in both orders
    verdict: Verdict

    @property
    def first(self) -> Sequence[str]:
        """The captioners whose figures are given: the best that are not suspect."""
        return (self.verdict.ranking or self.captioners)[:SHOWN]

    def names(self, columns: Sequence[str]) -> str:
        return _and([self.labels[column] for column in columns])

    def better(self, measure: Measure, column: str, other: str) -> int:
        """1 where the column is clearly better, -1 where the other is, 0 where that cannot be told."""
        difference = self.differences.get((measure.score, column, other))
        up = -1 if measure.better == "lower" else 1
        return up * difference.sign if difference else 0

    def levels(self, column: str) -> str:
        """The column's fidelity and spread in figures, e.g. "CLIPScore 0.712 (0.702 to 0.722) and Div-2 0.6 (0.5 to 0.7)"."""
        intervals = self.intervals[column]
        known = [(measure, intervals[measure.score]) for measure in self.axes if measure.score in intervals]
        return " and ".join(
            f"{measure.label} {measure.written(mean)}{_range(measure.written(low), measure.written(high))}"
            for measure, (mean, low, high) in known
        )

    def change(self, measure: Measure, column: str, other: str) -> str:
        """How far the column is from the other, "" where that is not known."""
        difference = self.differences.get((measure.score, column, other))
        return f"{measure.label} {_change(measure, difference.estimate)}" if difference else ""


def _and(texts: Sequence[str]) -> str:
    *others, last = texts
    return f"{', '.join(others)} and {last}" if others else last


def _both_ways(differences: Sequence[Difference]) -> dict[tuple[str, str, str], Difference]:
    by_columns = {}
    for difference in differences:
        score, first, second, estimate, *p = difference
        by_columns[score, first, second] = difference
        by_columns[score, second, first] = Difference(score, second, first, -estimate, *p)
    return by_columns


def _change(measure: Measure, estimate: Estimate) -> str:
    """A difference in words, e.g. "0.012 lower (0.030 lower to 0.006 higher)"."""

    def amount(value: float) -> str:
        return measure.written(abs(value)).replace(PERCENT, " points")

    def side(value: float) -> str:
        return f"{amount(value)} {'lower' if value < 0 else 'higher'}"

    mean, low, high = estimate
    text = "the same" if amount(mean) == amount(0) else side(mean)
    if low < 0 < high:
        return f"{text} ({side(low)} to {side(high)})"
    return text + _range(*map(amount, sorted((low, high), key=abs)))


def _range(low: str, high: str) -> str:
    """An interval in brackets, its unit once; "" where it has no width."""
    return f" ({low.split()[0]} to {high})" if low != high else ""


# --- the sentences -------------------------------------------------------------------------------------------------


def _ahead_in(evidence: _Evidence, winner: str, behind: Sequence[str]) -> str:
    """The measures in which the winner is ahead of all of these, else those in which it is ahead of some."""
    ahead = {
        measure.label: [evidence.better(measure, winner, other) > 0 for other in behind]
        for measure in evidence.decisive
    }
    of_all = [label for label, of_each in ahead.items() if all(of_each)]
    return _and(of_all) if of_all else " or ".join(label for label, of_each in ahead.items() if any(of_each))


def _best(evidence: _Evidence) -> str:
    """Which captioner is best, or why none is named."""
    verdict, count = evidence.verdict, len(evidence.captioners)
    if count == 1:
        return ""
    if verdict.evidence == "form":
        return (
            "No captioner is named best: nothing here shows whether captions are true of their pictures. Add human captions "
            "(--references) or a CLIP model that knows such pictures (--clip) to find out which is."
        )
    if verdict.winner:
        behind = [name for name in evidence.captioners if name not in (verdict.winner, *verdict.only_repeat)]
        others = "the other" if count == 2 else "every other" if len(behind) == count - 1 else "the others"
        why = [f"it is clearly ahead of {others} in {_ahead_in(evidence, verdict.winner, behind)}"] if behind else []
        if verdict.only_repeat:
            why.append(f"it is as good as {evidence.names(verdict.only_repeat)} and more varied")
        return f"{evidence.labels[verdict.winner]} is the best of {count} captioners by {BY[verdict.evidence]}: {_and(why)}."
    if not verdict.ranking:
        return f"No captioner is named best: {'both' if count == 2 else 'all'} are suspect."
    leader = verdict.ranking[0]
    if leader in verdict.doubts and not verdict.not_behind:
        return (
            f"No captioner is clearly best by {BY[verdict.evidence]}: {evidence.labels[leader]} is ahead, but these "
            f"pictures leave it in doubt whether {verdict.doubts[leader][0].words}."
        )
    names = [
        f"{evidence.labels[other]}{' (suspect)' if other in verdict.suspects else ''}" for other in verdict.not_behind
    ]
    among = " of those that are not suspect" if verdict.suspects else ""
    return (
        f"No captioner is clearly best by {BY[verdict.evidence]}: {evidence.labels[leader]} has the highest "
        f"{evidence.axes[0].label}{among}, but is not clearly ahead of {_and(names)}."
    )


def _suspects(evidence: _Evidence) -> str:
    """Which captioners are suspect, and why."""
    suspects = [
        f"{evidence.labels[column]}, since {', and '.join(reason.words for reason in reasons[:REASONS])}"
        for column, reasons in evidence.verdict.suspects.items()
    ]
    return f"Suspect, and so never named best: {'; '.join(suspects)}." if suspects else ""


def _figures(evidence: _Evidence, pictures: int) -> str:
    """The figures of the first captioners."""
    figures = "; ".join(
        f"{evidence.labels[column]} has {evidence.levels(column) or 'no figures'}" for column in evidence.first
    )
    return (
        f"{figures}, over {pictures} pictures; 95 % intervals in brackets."
        if pictures > 1
        else f"{figures}, over 1 picture."
    )


def _noise(evidence: _Evidence) -> str:
    """Columns with clearly more spread than another and clearly lower fidelity, each against the most faithful such one."""
    if len(evidence.axes) < 2:
        return ""
    fidelity, spread = evidence.axes
    up = -1 if fidelity.better == "lower" else 1
    suspects = {}
    for column in evidence.verdict.ranking:
        others = [
            other
            for other in evidence.labels
            if evidence.better(spread, column, other) > 0 and evidence.better(fidelity, column, other) < 0
        ]
        if others:
            suspects[column] = max(others, key=lambda other: up * evidence.intervals[other][fidelity.score].mean)
    if not suspects:
        return ""
    figures = "; ".join(
        f"{evidence.labels[column]} against {evidence.labels[other]}: {evidence.change(spread, column, other)}, "
        f"but {evidence.change(fidelity, column, other)}"
        for column, other in list(suspects.items())[:SHOWN]
    )
    return (
        f"The spread of {evidence.names(list(suspects))} comes with clearly worse fidelity and can be noise, so read some "
        f"captions before you use them. {figures}."
    )


def _apart(evidence: _Evidence, tested: int) -> str:
    """Which captioners cannot be told apart, and in what."""
    pairs = [
        (measure, difference)
        for measure in evidence.axes
        for first, second in combinations(evidence.captioners, 2)
        if (difference := evidence.differences.get((measure.score, first, second)))
    ]
    if not pairs:
        return ""
    open_ = [(measure, difference) for measure, difference in pairs if not difference.sign]
    if not open_:
        labels = " and ".join(measure.label for measure in evidence.axes)
        return f"The captioners can all be told apart in {labels}: the 95 % interval of every difference leaves out 0."
    open_.sort(key=lambda pair: {pair[1].first, pair[1].second} <= {*evidence.verdict.ranking}, reverse=True)
    texts = []
    for measure, difference in open_[:SHOWN]:
        first, second = evidence.labels[difference.first], evidence.labels[difference.second]
        apart = difference.estimate.low > 0 or difference.estimate.high < 0
        texts.append(
            f"{first} and {second} in {measure.label}, where that of {first} is {_change(measure, difference.estimate)}"
            + (f", which is not enough where {tested} pairs are tested at once" if apart else "")
        )
    more = len(open_) - len(texts)
    return (
        "These cannot be told apart: "
        + "; ".join(texts)
        + (f"; and {more} more of {len(pairs)} pairs" if more else "")
        + "."
    )


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
        return (
            f"Mixing {evidence.names(step.columns)}, {alone.captions} captions a picture in turn, adds to as many of "
            f"{evidence.labels[mixes.best]} alone at no clear loss of fidelity: {gain}, {change}."
        )
    return (
        f"No mix clearly adds {judged.label} without a clear loss of fidelity, compared with {alone.captions} captions "
        f"a picture of {evidence.labels[mixes.best]} alone; the one that adds most, {evidence.names(step.columns)}, "
        f"has {gain}, {change}."
    )


def _human(evidence: _Evidence, references: str | None) -> str:
    """How far the first captioners are from the human captions."""
    if references is None:
        return "No human captions stand beside these, so how much spread such pictures call for is not known."
    changes = {
        column: " and ".join(filter(None, (evidence.change(measure, column, references) for measure in evidence.axes)))
        for column in evidence.first
    }
    figures = "; ".join(f"{evidence.labels[column]} {change}" for column, change in changes.items() if change)
    return (
        f"Against the human captions: {figures}."
        if figures
        else (
            "No picture tells how far these are from the human captions: that takes two human captions or more of a picture."
        )
    )


def _unknown(evidence: _Evidence, pictures: int) -> str:
    """What stands against trusting the figures, beside what no report can tell."""
    sentences = []
    if evidence.verdict.evidence == "form":
        sentences.append(
            "Only that captions are well formed is known here: whether they are true of the pictures is not."
        )
    elif evidence.verdict.evidence != "facts":
        sentences.append(
            f"What is true of the pictures is not known here: {evidence.axes[0].label} is a stand-in for it."
        )
    if pictures == 1:
        sentences.append("One picture says nothing of others.")
    elif pictures < FEW:
        sentences.append(f"{pictures} pictures are few, so the true intervals are wider than those given.")
    return " ".join(sentences)
