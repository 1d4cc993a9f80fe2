"""Decide which captioner is best, if the evidence shows it.

The evidence is the first of these that is available: facts that are true; CLIPScore, where the CLIP model can tell the
pictures apart; agreement with the human captions. Without any of these only the form of captions is known, and no
captioner is named best.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diversity.measures import catalogue
from diversity.measures.measure import Measure
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.suspicions import Suspicion

EVIDENCE: Mapping[str, tuple[Measure, ...]] = {  # the first measure of each ranks the captioners
    "facts": (catalogue.PRECISION, catalogue.RECALL),
    "clip": (catalogue.CLIP_SCORE, catalogue.FOUND_CLIP),
    "references": (catalogue.CIDER, catalogue.FOUND_WORDS, catalogue.FOUND_MEANING),
    "form": (catalogue.DEGENERATE,),
}
CAN_TELL = 0.6  # share of the other pictures that CLIP must find less near to a caption than its own, for some column
# CIDEr-D gives captions little that are much longer than the human ones, however true. So it puts no column ahead of
# one whose captions are longer by half and by ten words, at which CIDEr-D keeps a quarter.
LONGER, WORDS_MORE = 1.5, 10
AS_FAITHFUL = 0.2  # share of a score that a winner may lose against a column that repeats a single caption


class Verdict(NamedTuple):
    """The decision about the captioners; the winner is ahead of every other one, not suspect, and not in doubt."""

    evidence: str  # a key of EVIDENCE
    measures: tuple[str, ...]  # scores that decide; the first of them ranks the captioners
    winner: str | None
    ranking: tuple[str, ...]  # captioners that are not suspect, best first; neighbours need not differ clearly
    not_behind: tuple[str, ...]  # captioners that the first of the ranking is not ahead of
    only_repeat: tuple[str, ...]  # captioners that it is ahead of only because they repeat one caption
    suspects: Mapping[str, tuple[Suspicion, ...]]
    # captioners that more pictures may show to be suspect: they do not win
    doubts: Mapping[str, tuple[Suspicion, ...]] = {}
    longer: tuple[str, ...] = ()  # those of `not_behind` that are behind only in CIDEr-D, which punishes their length

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as a dictionary of plain values."""
        plain = {
            name: {column: [reason._asdict() for reason in reasons] for column, reasons in getattr(self, name).items()}
            for name in ("suspects", "doubts")
        }
        return {**self._asdict(), **plain}


def evidence_of(
    names: Sequence[str], intervals: Mapping[str, Mapping[str, Estimate]]
) -> tuple[str, tuple[Measure, ...]]:
    """Return the best evidence that is available for all columns, and its measures that all columns have."""
    for evidence, measures in EVIDENCE.items():
        measured = tuple(measure for measure in measures if all(measure.score in intervals[name] for name in names))
        if measures[0] in measured and (evidence != "clip" or can_tell(intervals)):
            return evidence, measured
    return "form", EVIDENCE["form"]


def can_tell(intervals: Mapping[str, Mapping[str, Estimate]]) -> bool:
    """Return whether CLIP finds the pictures of some column by their captions, so that its scores mean something."""
    estimates = [scores["found_clip"] for scores in intervals.values() if "found_clip" in scores]
    return any(estimate.low > CAN_TELL for estimate in estimates)


def decide(
    evidence: str,
    decisive: Sequence[Measure],
    spread: Measure | None,
    names: Sequence[str],
    intervals: Mapping[str, Mapping[str, Estimate]],
    differences: Sequence[Difference],
    suspects: Mapping[str, tuple[Suspicion, ...]],
    doubts: Mapping[str, tuple[Suspicion, ...]] = {},
) -> Verdict:
    """Decide about `names`: the best one that is not suspect wins if it is ahead of every other and not in doubt.

    A column is ahead of another one if it is clearly better in one of the decisive measures (`Difference.sign`), and
    if in none of them its interval of the difference is below 0. It is also ahead of a column that is suspect of
    repeating a single caption if it is clearly more varied, and if it certainly loses no more than a fifth of the
    first measure. CIDEr-D alone puts it ahead of no column with much longer captions, unless this one is suspect.
    """
    first = decisive[0]
    ranking = sorted(
        (name for name in names if name not in suspects and first.score in intervals[name]),
        key=lambda name: -first.direction * intervals[name][first.score].mean,
    )
    leader = ranking[0] if ranking else None

    def only_repeats(other: str) -> bool:
        """Return whether the leader is ahead of a column that repeats a single caption, by its spread."""
        repeats = any(reason.kind == "repeated" for reason in suspects.get(other, ()))
        if leader is None or spread is None or not repeats:
            return False
        gain = _gain(leader, other, first, differences=differences)
        if gain is None or gain.estimate.low <= -AS_FAITHFUL * abs(intervals[other][first.score].mean):
            return False
        return _is_ahead(leader, other, [spread], differences=differences)

    not_beaten, longer = [], []
    for other in names:
        if leader is None or other == leader:
            continue
        if not _is_ahead(leader, other, decisive, differences=differences):
            not_beaten.append(other)
        elif first is catalogue.CIDER and other not in suspects and _is_longer(intervals[other], intervals[leader]):
            if not _is_ahead(leader, other, decisive[1:], differences=differences):
                longer.append(other)
    only_repeat = tuple(other for other in not_beaten if only_repeats(other))
    not_behind = (*(other for other in not_beaten if other not in only_repeat), *longer)
    wins = len(names) > 1 and evidence != "form" and not not_behind and leader not in doubts
    return Verdict(
        evidence=evidence,
        measures=tuple(measure.score for measure in decisive),
        winner=leader if wins else None,
        ranking=tuple(ranking),
        not_behind=not_behind,
        only_repeat=only_repeat,
        suspects=suspects,
        doubts=doubts,
        longer=tuple(longer),
    )


def _is_longer(intervals: Mapping[str, Estimate], others: Mapping[str, Estimate]) -> bool:
    """Return whether a column has much longer captions than another one, by the intervals of both."""
    length, other_length = intervals.get(catalogue.LENGTH.score), others.get(catalogue.LENGTH.score)
    if length is None or other_length is None:
        return False
    return length.mean >= max(LONGER * other_length.mean, other_length.mean + WORDS_MORE)


def _is_ahead(name: str, other: str, decisive: Sequence[Measure], *, differences: Sequence[Difference]) -> bool:
    """Return whether a column is clearly better than another in some measure, and has no interval below 0 in any."""
    gains = [gain for measure in decisive if (gain := _gain(name, other, measure, differences=differences))]
    return any(gain.sign > 0 for gain in gains) and all(gain.estimate.high >= 0 for gain in gains)


def _gain(name: str, other: str, measure: Measure, *, differences: Sequence[Difference]) -> Difference | None:
    """Return the difference between two columns, positive where the first is better; None where it is not known."""
    for difference in differences:
        if difference.measure == measure.score and {difference.first, difference.second} == {name, other}:
            turned = (difference.first == other) != (measure.better == "lower")
            return difference._replace(estimate=-difference.estimate) if turned else difference
    return None
