"""Which captioner is best, if that is shown, by what evidence, and which are suspect.

Evidence, the best that there is: facts that are true, then CLIPScore where the CLIP model can tell pictures apart,
then agreement with the human captions. Where there is none of these, captions are known by their form alone, and
nobody is named best.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diversity.measures import catalogue
from diversity.measures.measure import Measure
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.suspicions import Suspicion

EVIDENCE: Mapping[str, tuple[Measure, ...]] = {  # the first measure ranks
    "facts": (catalogue.PRECISION, catalogue.RECALL),
    "clip": (catalogue.CLIP_SCORE, catalogue.FOUND_CLIP),
    "references": (catalogue.CIDER, catalogue.FOUND_WORDS, catalogue.FOUND_MEANING),
    "form": (catalogue.DEGENERATE,),
}
CAN_TELL = 0.6  # of other pictures that a CLIP model must put behind a caption's own, for some column
AS_FAITHFUL = 0.2  # of a score, the most that a column may lose beside one that repeats a single caption


class Verdict(NamedTuple):
    """What a report says of its captioners; the winner is ahead of every other and not suspect."""

    evidence: str  # a key of EVIDENCE
    measures: tuple[str, ...]  # scores that decide, the first of them ranks
    winner: str | None
    ranking: tuple[str, ...]  # those that are not suspect, best first; not all need be apart
    not_behind: tuple[str, ...]  # those that the first of the ranking is not ahead of
    only_repeat: tuple[str, ...]  # those that it is ahead of only since they repeat one caption
    suspects: Mapping[str, tuple[Suspicion, ...]]
    doubts: Mapping[str, tuple[Suspicion, ...]] = {}  # what more pictures may show: those in doubt do not win

    def as_json(self) -> dict[str, Any]:
        plain = {
            name: {column: [reason._asdict() for reason in reasons] for column, reasons in getattr(self, name).items()}
            for name in ("suspects", "doubts")
        }
        return {**self._asdict(), **plain}


def evidence_of(
    names: Sequence[str], intervals: Mapping[str, Mapping[str, Estimate]]
) -> tuple[str, tuple[Measure, ...]]:
    """The best evidence that there is of all columns, and those of its measures that they have."""
    for evidence, of_evidence in EVIDENCE.items():
        measured = tuple(measure for measure in of_evidence if all(measure.score in intervals[name] for name in names))
        if of_evidence[0] in measured and (evidence != "clip" or can_tell(intervals)):
            return evidence, measured
    return "form", EVIDENCE["form"]


def can_tell(intervals: Mapping[str, Mapping[str, Estimate]]) -> bool:
    """Whether CLIP finds the pictures of some column's captions, so that its scores mean something."""
    return any(of_column["found_clip"].low > CAN_TELL for of_column in intervals.values() if "found_clip" in of_column)


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
    """The verdict on `names`: the first of those not suspect wins where it is ahead of every other and not in doubt.

    It is ahead of another where it is clearly better in one of the decisive measures (`Difference.sign`) and in none
    of them has an interval that lies below. Of one that is suspect of repeating a single caption it is also ahead
    where it is clearly more varied and loses, for certain, no more than a fifth of the first measure.
    """
    first = decisive[0]
    up = -1 if first.better == "lower" else 1
    ranking = sorted(
        (name for name in names if name not in suspects and first.score in intervals[name]),
        key=lambda name: -up * intervals[name][first.score].mean,
    )

    def only_repeats(name: str, other: str) -> bool:
        repeats = any(reason.kind == "repeated" for reason in suspects.get(other, ()))
        gain = _between(name, other, first, differences)
        return bool(
            repeats
            and spread
            and gain
            and gain.estimate.low > -AS_FAITHFUL * abs(intervals[other][first.score].mean)
            and _is_ahead(name, other, [spread], differences)
        )

    others = [
        other
        for other in names
        if ranking and not (other == ranking[0] or _is_ahead(ranking[0], other, decisive, differences))
    ]
    only_repeat = tuple(other for other in others if only_repeats(ranking[0], other))
    not_behind = tuple(other for other in others if other not in only_repeat)
    wins = ranking and len(names) > 1 and evidence != "form" and not not_behind and ranking[0] not in doubts
    winner = ranking[0] if wins else None
    return Verdict(
        evidence,
        tuple(measure.score for measure in decisive),
        winner,
        tuple(ranking),
        not_behind,
        only_repeat,
        suspects,
        doubts,
    )


def _is_ahead(name: str, other: str, decisive: Sequence[Measure], differences: Sequence[Difference]) -> bool:
    """Whether one column is clearly better in one of the measures, and in none of them has an interval that lies below."""
    known = [difference for measure in decisive if (difference := _between(name, other, measure, differences))]
    return any(difference.sign > 0 for difference in known) and all(
        difference.estimate.high >= 0 for difference in known
    )


def _between(name: str, other: str, measure: Measure, differences: Sequence[Difference]) -> Difference | None:
    """How much better one column is than another, so that more is better; None where that is not known."""
    for difference in differences:
        if difference.measure == measure.score and {difference.first, difference.second} == {name, other}:
            turned = (difference.first == other) != (measure.better == "lower")
            return difference._replace(estimate=-difference.estimate) if turned else difference
    return None
