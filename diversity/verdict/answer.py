"""Write the sentences that open a report: the best captioner, suspect ones, the best mix, and what is not known."""

import re
from collections.abc import Mapping, Sequence, Set
from itertools import combinations

from diversity.measures.measure import PERCENT, Measure
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.evidence import MAX_LISTED, Evidence, change_in_words, in_both_directions, listed
from diversity.verdict.mixes import Mixes
from diversity.verdict.winner import Verdict

STUDENT = "No figure here is shown to predict a student's accuracy."
MAX_REASONS = 2  # reasons that the answer gives for a suspect captioner
_SHARE = re.compile(rf"(\d+)(?={PERCENT})")  # in a reason
FEW = 30  # intervals of fewer pictures than this are too narrow

EVIDENCE_WORDS = {
    "facts": "the facts that their captions state",
    "clip": "how well CLIP matches their captions to the pictures",
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
    same: Sequence[Sequence[str]] = (),
) -> tuple[str, ...]:
    """Return three to eight sentences of plain text, the verdict first.

    labels: the printed name of each row, the human one included. pictures: how many pictures fidelity is known for.
    intervals[row][score]. spread: the name of a score, None where each picture has one caption. measures: the label
    and format of each score. same: groups of captioners with the same captions, word for word. A difference is called
    clear where `Difference.sign` is not 0.
    """
    axes = tuple(measures[score] for score in (verdict.measures[0], spread) if score)
    captioners = [name for name in labels if name != references]
    evidence = Evidence(
        labels=labels,
        captioners=captioners,
        intervals=intervals,
        axes=axes,
        decisive=tuple(measures[score] for score in verdict.measures),
        differences=in_both_directions(differences),
        verdict=verdict,
        same=same,
    )
    less_faithful = _less_faithful(evidence)
    compared = {column for column, other in list(less_faithful.items())[:MAX_LISTED] if other == references}
    sentences = (
        _best(evidence),
        _suspects(evidence),
        _figures(evidence, pictures),
        _noise(evidence, less_faithful),
        _not_told_apart(evidence, len(differences)),
        _mix(evidence, mixes, measures),
        _compared_with_people(evidence, references, compared, pictures),
        _unknown(evidence, pictures),
        STUDENT,
    )
    return tuple(sentence for sentence in sentences if sentence)


def _ahead_in(evidence: Evidence, winner: str, others: Sequence[str]) -> str:
    """Name the measures in which the winner is ahead of all others, or else those in which it is ahead of some."""
    ahead_of_all, ahead_of_some = [], []
    for measure in evidence.decisive:
        ahead = [evidence.better(measure, winner, other) > 0 for other in others]
        if all(ahead):
            ahead_of_all.append(measure.label)
        if any(ahead):
            ahead_of_some.append(measure.label)
    return listed(ahead_of_all) if ahead_of_all else " or ".join(ahead_of_some)


def _best(evidence: Evidence) -> str:
    """Name the best captioner, or say why none is named."""
    verdict, count = evidence.verdict, len(evidence.captioners)
    if count == 1:
        return ""
    if evidence.are_same(*evidence.captioners):
        names = evidence.names(evidence.captioners)
        return f"No captioner is named best: {names} have the same captions, word for word."
    if verdict.evidence == "form":
        return (
            "No captioner is named best: nothing here shows whether captions are true of their pictures. To find "
            "out, add human captions (--references) or a CLIP model that knows such pictures (--clip)."
        )
    if verdict.winner:
        return _winner(evidence, verdict.winner)
    if not verdict.ranking:
        other_pictures = verdict.evidence == "references" and all(
            {reason.kind for reason in reasons} & {"other_pictures", "other_words"}
            for reasons in verdict.suspects.values()
        )
        unless = ", or the human captions do not describe these pictures" if other_pictures else ""
        return f"No captioner is named best: {'both' if count == 2 else 'all'} are suspect{unless}."
    return _no_winner(evidence, verdict.ranking[0])


def _winner(evidence: Evidence, winner: str) -> str:
    """Name the best captioner, and say what it is better in."""
    verdict, count = evidence.verdict, len(evidence.captioners)
    behind = [name for name in evidence.captioners if name not in (winner, *verdict.only_repeat)]
    if count == 2:
        others = "the other"
    else:
        others = "every other" if len(behind) == count - 1 else "the others"
    reasons = []
    if behind:
        reasons.append(f"it is clearly ahead of {others} in {_ahead_in(evidence, winner, behind)}")
    if verdict.only_repeat:
        reasons.append(f"it is as good as {evidence.names(verdict.only_repeat)} and more varied")
    return (
        f"{evidence.labels[winner]} is the best of {count} captioners by {EVIDENCE_WORDS[verdict.evidence]}: "
        f"{listed(reasons)}."
    )


def _no_winner(evidence: Evidence, leader: str) -> str:
    """Say why the first captioner of the ranking is not named best."""
    verdict = evidence.verdict
    if leader in verdict.doubts and not verdict.not_behind:
        return (
            f"No captioner is clearly best by {EVIDENCE_WORDS[verdict.evidence]}: {evidence.labels[leader]} is ahead, "
            f"but these pictures are too few to rule out that {verdict.doubts[leader][0].words}."
        )

    def name(other: str) -> str:
        remarks = {
            "suspect": other in verdict.suspects,
            "the same captions": evidence.are_same(leader, other),
            f"much longer captions, which {evidence.axes[0].label} punishes": other in verdict.longer,
        }
        return evidence.labels[other] + "".join(f" ({remark})" for remark, holds in remarks.items() if holds)

    undecided, better, better_in = [], [], {}
    for other in verdict.not_behind:
        labels = [measure.label for measure in evidence.decisive if evidence.better(measure, other, leader) > 0]
        better_in |= dict.fromkeys(labels)
        (better if labels else undecided).append(name(other))
    reasons = []
    if undecided:
        reasons.append(f"is not clearly ahead of {listed(undecided)}")
    if better:
        are = "is" if len(better) == 1 else "are"
        reasons.append(f"{listed(better)} {are} clearly better in {' or '.join(better_in)}")
    among = " of those that are not suspect" if verdict.suspects else ""
    return (
        f"No captioner is clearly best by {EVIDENCE_WORDS[verdict.evidence]}: {evidence.labels[leader]} has the "
        f"highest {evidence.axes[0].label}{among}, but {', and '.join(reasons)}."
    )


def _suspects(evidence: Evidence) -> str:
    """Say which captioners are suspect, and why; captioners whose reasons differ only in shares are named together."""
    groups: dict[tuple[str, ...], tuple[list[str], list[list[str]]]] = {}  # words between shares -> columns and shares
    for column, reasons in evidence.verdict.suspects.items():
        words = _SHARE.split(", and ".join(reason.words for reason in reasons[:MAX_REASONS]))
        columns, shares = groups.setdefault(tuple(words[::2]), ([], []))
        columns.append(column)
        shares.append(words[1::2])
    suspects = []
    for (first, *others), (columns, shares) in groups.items():
        lowest_to_highest = [
            " to ".join(dict.fromkeys((min(values, key=int), max(values, key=int)))) for values in zip(*shares)
        ]
        words = first + "".join(map("".join, zip(lowest_to_highest, others)))
        suspects.append(f"{evidence.names(columns)}, {'each ' if len(columns) > 1 else ''}because {words}")
    return f"Suspect, and therefore never named best: {'; '.join(suspects)}." if suspects else ""


def _figures(evidence: Evidence, pictures: int) -> str:
    """Give the figures of the first captioners."""
    figures = "; ".join(
        f"{evidence.labels[column]} has {evidence.levels(column) or 'no figures'}" for column in evidence.first
    )
    if pictures == 1:
        return f"{figures}, over 1 picture."
    return f"{figures}, over {pictures} pictures; 95 % intervals in brackets."


def _less_faithful(evidence: Evidence) -> dict[str, str]:
    """The captioners with clearly more spread and clearly lower fidelity than other columns.

    Each has the most faithful of these other columns.
    """
    compared_with: dict[str, str] = {}
    if len(evidence.axes) < 2:
        return compared_with
    fidelity, spread = evidence.axes
    for column in evidence.verdict.ranking:
        others = [
            other
            for other in evidence.labels
            if evidence.better(spread, column, other) > 0 and evidence.better(fidelity, column, other) < 0
        ]
        if others:
            means = {other: evidence.intervals[other][fidelity.score].mean for other in others}
            compared_with[column] = max(others, key=lambda other: fidelity.direction * means[other])
    return compared_with


def _noise(evidence: Evidence, compared_with: Mapping[str, str]) -> str:
    """Warn of captioners whose spread comes with lower fidelity."""
    if not compared_with:
        return ""
    fidelity, spread = evidence.axes
    figures = "; ".join(
        f"{evidence.labels[column]} against {evidence.labels[other]}: {evidence.change(spread, column, other)}, "
        f"but {evidence.change(fidelity, column, other)}"
        for column, other in list(compared_with.items())[:MAX_LISTED]
    )
    return (
        f"The spread of {evidence.names(list(compared_with))} comes with clearly worse fidelity and can be noise, so "
        f"read some captions before you use them. {figures}."
    )


def _not_told_apart(evidence: Evidence, tested: int) -> str:
    """Say which captioners cannot be told apart, and in which measure; `tested` pairs were tested."""
    pairs = [
        (measure, difference)
        for measure in evidence.axes
        for first, second in combinations(evidence.captioners, 2)
        if (difference := evidence.differences.get((measure.score, first, second)))
    ]
    if not pairs:
        return ""
    undecided = [(measure, difference) for measure, difference in pairs if not difference.sign]
    if not undecided:
        labels = " and ".join(measure.label for measure in evidence.axes)
        return f"The captioners can all be told apart in {labels}: no 95 % interval of a difference contains 0."
    undecided.sort(key=lambda pair: {pair[1].first, pair[1].second} <= {*evidence.verdict.ranking}, reverse=True)
    texts = []
    for measure, difference in undecided[:MAX_LISTED]:
        first, second = evidence.labels[difference.first], evidence.labels[difference.second]
        text = f"{first} and {second} in {measure.label}, where "
        if evidence.are_same(difference.first, difference.second):
            text += "both have the same captions"
        else:
            text += f"{first} is {change_in_words(measure, difference.estimate)}"
        if difference.estimate.low > 0 or difference.estimate.high < 0:
            text += f", which is not enough where {tested} pairs are tested at once"
        texts.append(text)
    if more := len(undecided) - len(texts):
        texts.append(f"and {more} more of {len(pairs)} pairs")
    return f"These cannot be told apart: {'; '.join(texts)}."


def _mix(evidence: Evidence, mixes: Mixes | None, measures: Mapping[str, Measure]) -> str:
    """Name the smallest mix that adds as much as any mix, or say that no mix adds anything."""
    if mixes is None or len(mixes.steps) < 2:
        return ""
    alone, *steps = mixes.steps
    judged, fidelity = measures[mixes.coverage_measure or mixes.spread_measure], measures[mixes.fidelity_measure]
    adding = [step for step in steps if step.adds]
    most = max(adding or steps, key=lambda step: step.gain.mean)
    step = next((step for step in adding if step.gain.mean >= most.gain.low), most)
    worth = -step.fidelity_gain if fidelity.better == "lower" else step.fidelity_gain
    change = f"{fidelity.label} {change_in_words(fidelity, worth)}"
    gain = f"{judged.label} {change_in_words(judged, step.gain)}"
    if adding:
        return (
            f"Mixing {evidence.names(step.columns)}, {alone.captions} captions a picture in turn, adds something over "
            f"as many of {evidence.labels[mixes.best]} alone, without a clear loss of fidelity: {gain}, {change}."
        )
    return (
        f"No mix clearly adds {judged.label} without a clear loss of fidelity, compared with {alone.captions} "
        f"captions a picture of {evidence.labels[mixes.best]} alone; the mix that adds most, "
        f"{evidence.names(step.columns)}, has {gain}, {change}."
    )


def _compared_with_people(evidence: Evidence, references: str | None, compared: Set[str], pictures: int) -> str:
    """Say how far the first captioners are from the human captions, except those compared with them before.

    A figure is given if at least half of the pictures have it.
    """
    if references is None:
        return "No human captions are compared, so it is not known how much spread such pictures call for."
    columns = [column for column in evidence.first if column not in compared]
    if not columns:
        return ""
    figures, telling = [], 0
    for column in columns:
        changes = []
        for measure in evidence.axes:
            difference = evidence.differences.get((measure.score, column, references))
            if difference is None:
                continue
            telling = max(telling, difference.pictures)
            if 2 * difference.pictures >= pictures:
                changes.append(evidence.change(measure, column, references))
        if changes:
            figures.append(f"{evidence.labels[column]} {' and '.join(changes)}")
    if not figures:
        few = f"Only {telling} of {pictures} pictures" if telling else "No picture"
        return (
            f"{few} can tell how far these captioners are from the human captions: that needs at least two human "
            "captions of a picture."
        )
    return f"Against the human captions: {'; '.join(figures)}."


def _unknown(evidence: Evidence, pictures: int) -> str:
    """Say why the figures of this report may mislead; `STUDENT` says what no report can tell."""
    sentences = []
    if evidence.verdict.evidence == "form":
        sentences.append(
            "It is known here whether captions are well formed, but not whether they are true of the pictures."
        )
    elif evidence.verdict.evidence != "facts":
        sentences.append(
            f"What is true of the pictures is not known here: {evidence.axes[0].label} is a stand-in for it."
        )
    if pictures == 1:
        sentences.append("One picture says nothing of others.")
    elif pictures < FEW:
        sentences.append(
            f"{pictures} pictures are few, so the true intervals are wider than the intervals given here."
        )
    return " ".join(sentences)
