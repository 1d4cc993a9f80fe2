"""Prepare the differences between columns and the gains of mixes for the page: lines with a dot on a common scale."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from diversity.measures import catalogue
from diversity.measures.measure import PERCENT, Measure
from diversity.page.plots import PageColumn
from diversity.report import DiversityReport
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.mixes import MixStep

INTERVAL = re.compile(r"(\((?:95 % interval|\d)[^()]*\))")  # an interval in a sentence of the answer, printed in grey


class Span(NamedTuple):
    """An estimate in words, and as a line with a dot at positions in per cent of the common width."""

    text: str
    interval: str
    low: float  # position of the line's left end
    high: float  # position of its right end
    mean: float  # position of the dot
    zero: float  # position of 0


def interval(measure: Measure, estimate: Estimate | None, joint: str) -> str:
    """Return the interval of an estimate as text with its unit once, joined by `joint`; "" without a width."""
    if estimate is None or estimate.low == estimate.high:
        return ""
    low, high = (measure.written(value).replace("-", "−") for value in estimate[1:])
    return f"{low.removesuffix(PERCENT)}{joint}{high}"


def differences_of(
    report: DiversityReport, columns: Sequence[PageColumn]
) -> list[tuple[Measure, list[dict[str, Any]]]]:
    """Return the compared measures with their pairs of columns: fidelity and spread first, then all others."""
    scores = dict.fromkeys(
        (report.fidelity, report.spread, *(difference.measure for difference in report.differences))
    )
    return forests([catalogue.OF_SCORE[score] for score in scores if score], report.differences, columns)


def forests(
    measures: Iterable[Measure], differences: Sequence[Difference], columns: Sequence[PageColumn]
) -> list[tuple[Measure, list[dict[str, Any]]]]:
    """Return each measure in which columns were compared, with its pairs of columns on one scale."""
    forest = []
    for measure in measures:
        pairs = [difference for difference in differences if difference.measure == measure.score]
        spans = _spans(measure, [difference.estimate for difference in pairs])
        if pairs:
            rows = [_pair(measure, pair, span, columns=columns) for pair, span in zip(pairs, spans, strict=True)]
            forest.append((measure, rows))
    return forest


def _pair(measure: Measure, difference: Difference, span: Span, *, columns: Sequence[PageColumn]) -> dict[str, Any]:
    """Return a difference with its two columns, and the column that is clearly ahead; None where neither is."""
    by_name = {column.name: column for column in columns}
    first, second = by_name[difference.first], by_name[difference.second]
    ahead = {1: first, -1: second, 0: None}[measure.direction * difference.sign]
    return {
        "first": first,
        "second": second,
        "span": span,
        "ahead": ahead,
        "word": "better" if measure.better else "higher",
        "p": "p < 0.001" if difference.p_holm < 0.001 else f"p = {difference.p_holm:.3f}",
    }


def _spans(measure: Measure, estimates: Sequence[Estimate], gains: bool = False) -> list[Span]:
    """Return differences, or gains, as spans on one scale that contains 0.

    A gain is drawn to the right of 0 where it is an improvement. Its text is the change of the measure, so it is
    negative where lower is better.
    """
    turned = gains and measure.better == "lower"
    ends = [0.0, *(end for estimate in estimates for end in estimate)]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 1
    low, high = low - margin, high + margin

    def position(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    spans = []
    for estimate in estimates:
        change = -estimate if turned else estimate
        spans.append(
            Span(
                text=_signed(measure, change.mean),
                interval=interval(measure, change, " to ").removesuffix(PERCENT),
                low=position(estimate.low),
                high=position(estimate.high),
                mean=position(estimate.mean),
                zero=position(0),
            )
        )
    return spans


def _signed(measure: Measure, value: float) -> str:
    """Return a difference with its sign; the difference of two percentages is in points."""
    text = measure.written(value).replace("-", "−").replace(PERCENT, " points")
    return text if value < 0 else f"+{text}"


def mixes_of(report: DiversityReport, columns: Sequence[PageColumn]) -> dict[str, Any] | None:
    """Return the mixes with their gains in coverage, spread and fidelity, each on its own scale; None without any."""
    mixes = report.mixes
    if mixes is None or len(mixes.steps) < 2:
        return None
    by_name = {column.name: column for column in columns}
    alone, *steps = mixes.steps
    measures: list[Measure] = []
    gains_of_steps: list[list[tuple[Measure, Span | None, str]]] = [[] for _ in steps]
    for name in ("coverage", "spread", "fidelity"):
        score = getattr(mixes, f"{name}_measure")
        if not score:
            continue
        measure = catalogue.OF_SCORE[score]
        measures.append(measure)
        gains = [getattr(step, f"{name}_gain") for step in steps]
        spans = iter(_spans(measure, [gain for gain in gains if gain], gains=True))
        for step, gain, gains_of_step in zip(steps, gains, gains_of_steps, strict=True):
            mixed, unmixed = (measure.written(getattr(step, part)) for part in (name, f"alone_{name}"))
            gains_of_step.append((measure, next(spans) if gain else None, f"{mixed} against {unmixed}"))
    return {
        "best": by_name[mixes.best],
        "captions": alone.captions,
        "measures": measures,
        "steps": [
            {"columns": [by_name[name] for name in step.columns], "verdict": _verdict(step), "gains": gains_of_step}
            for step, gains_of_step in zip(steps, gains_of_steps, strict=True)
        ],
    }


def _verdict(step: MixStep) -> str:
    if step.adds:
        return "adds"
    return "no clear gain" if step.faithful else "less faithful"
