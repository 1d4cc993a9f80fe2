"""Differences of columns, and what mixes of them gain, as lines with a dot on scales that neighbours share."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from diversity.measures import catalogue
from diversity.measures.measure import PERCENT, Measure
from diversity.page.plots import Column
from diversity.report import DiversityReport
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.mixes import MixStep

INTERVAL = re.compile(r"(\((?:95 % interval|\d)[^()]*\))")  # in the answer's sentences, where it is set back


class Span(NamedTuple):
    """An estimate drawn as a line with a dot, in per cent of the width that its neighbours share, and in words."""

    text: str
    interval: str
    low: float
    high: float
    mean: float
    zero: float


def interval(measure: Measure, estimate: Estimate | None, joint: str) -> str:
    """The interval of a mean or a gain in the measure's format, its unit once; "" where it has no width."""
    if estimate is None or estimate.low == estimate.high:
        return ""
    low, high = (measure.written(value).replace("-", "−") for value in estimate[1:])
    return f"{low.removesuffix(PERCENT)}{joint}{high}"


def differences_of(report: DiversityReport, columns: Sequence[Column]) -> list[tuple[Measure, list[dict[str, Any]]]]:
    """The measures of the first plot, then others, each with its pairs of columns."""
    scores = dict.fromkeys(
        (report.fidelity, report.spread, *(difference.measure for difference in report.differences))
    )
    return forests([catalogue.OF_SCORE[score] for score in scores if score], report.differences, columns)


def forests(
    measures: Iterable[Measure], differences: Sequence[Difference], columns: Sequence[Column]
) -> list[tuple[Measure, list[dict[str, Any]]]]:
    """Each measure in which columns were compared, with its pairs of columns on one scale."""
    forest = []
    for measure in measures:
        pairs = [difference for difference in differences if difference.measure == measure.score]
        spans = _spans(measure, [difference.estimate for difference in pairs])
        if pairs:
            forest.append(
                (measure, [_pair(measure, pair, span, columns) for pair, span in zip(pairs, spans, strict=True)])
            )
    return forest


def _pair(measure: Measure, difference: Difference, span: Span, columns: Sequence[Column]) -> dict[str, Any]:
    """A difference with its two columns, and the one that is clearly ahead, None where they cannot be told apart."""
    first, second = (
        next(column for column in columns if column.name == name) for name in (difference.first, difference.second)
    )
    up = -1 if measure.better == "lower" else 1
    ahead = {1: first, -1: second, 0: None}[up * difference.sign]
    return {
        "first": first,
        "second": second,
        "span": span,
        "ahead": ahead,
        "word": "better" if measure.better else "higher",
        "p": "p < 0.001" if difference.p_holm < 0.001 else f"p = {difference.p_holm:.3f}",
    }


def _spans(measure: Measure, estimates: Sequence[Estimate], gains: bool = False) -> list[Span]:
    """Differences, or gains, on one scale, which holds 0 and has air at its ends.

    A gain lies right where it is better; in words it is the change of the measure, so negative where less of it is better.
    """
    turned = gains and measure.better == "lower"
    ends = [0.0, *(end for estimate in estimates for end in estimate)]
    low, high = min(ends), max(ends)
    air = 0.06 * (high - low) or 1
    low, high = low - air, high + air

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    return [
        Span(
            _signed(measure, said.mean),
            interval(measure, said, " to ").removesuffix(PERCENT),
            place(estimate.low),
            place(estimate.high),
            place(estimate.mean),
            place(0),
        )
        for estimate in estimates
        for said in [-estimate if turned else estimate]
    ]


def _signed(measure: Measure, value: float) -> str:
    """A difference with its sign; percentages differ in points."""
    text = measure.written(value).replace("-", "−").replace(PERCENT, " points")
    return text if value < 0 else f"+{text}"


def mixes_of(report: DiversityReport, columns: Sequence[Column]) -> dict[str, Any] | None:
    """The mixes with what each gains in coverage, spread and fidelity, one scale for each of these."""
    mixes = report.mixes
    if mixes is None or len(mixes.steps) < 2:
        return None
    named = {column.name: column for column in columns}
    alone, *steps = mixes.steps
    gained: list[tuple[Measure, list[Span | None], list[str]]] = []
    for name in ("coverage", "spread", "fidelity"):
        if score := getattr(mixes, f"{name}_measure"):
            measure = catalogue.OF_SCORE[score]
            gains = [getattr(step, f"{name}_gain") for step in steps]
            spans = iter(_spans(measure, [gain for gain in gains if gain], gains=True))
            gained.append(
                (
                    measure,
                    [gain and next(spans) for gain in gains],
                    [
                        f"{measure.written(getattr(step, name))} against {measure.written(getattr(step, f'alone_{name}'))}"
                        for step in steps
                    ],
                )
            )
    return {
        "best": named[mixes.best],
        "captions": alone.captions,
        "measures": [measure for measure, _, _ in gained],
        "steps": [
            {
                "columns": [named[name] for name in step.columns],
                "verdict": _verdict(step),
                "gains": [(measure, spans[number], levels[number]) for measure, spans, levels in gained],
            }
            for number, step in enumerate(steps)
        ],
    }


def _verdict(step: MixStep) -> str:
    return "adds" if step.adds else "less faithful" if step.fidelity_gain.high < 0 else "no clear gain"
