"""The page of a report: the answer, tables, plots and pictures in one file that asks for nothing outside it."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from diversity.measures import catalogue
from diversity.measures.catalogue import Measure
from diversity.page.plots import Column, columns_of, plots
from diversity.report import DiversityReport, Example
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.mixes import MixStep
from diversity.words.degenerate import REASONS
from imagetext.pages import render_page

THUMBNAIL = 320  # pixels of the longer side
SHOWN = ("best", "worst", "random")
EXAMPLES_SHOWN = 3  # degenerate captions of each reason
INTERVAL = re.compile(r"(\((?:95 % interval|\d)[^()]*\))")  # in the answer's sentences, where it is set back
TEMPLATE = Path(__file__).parent / "templates" / "report.html"

# The last table. Faults, and what is measured at equal length, have tables of their own.
GROUPS: Mapping[str, tuple[Measure, ...]] = {
    "Size and length": (catalogue.PICTURES, catalogue.CAPTIONS, catalogue.WORDS, catalogue.LENGTH, *catalogue.LENGTHS),
    "Spread within a picture": (
        *catalogue.DIV,
        catalogue.MBLEU,
        catalogue.SELF_CIDER,
        catalogue.DUPLICATES,
        catalogue.NEAR_DUPLICATES,
    ),
    "Spread over the set": (
        catalogue.VOCABULARY,
        *catalogue.DISTINCT,
        *catalogue.ENTROPY,
        catalogue.SELF_REPETITION,
        catalogue.HAPAX,
        catalogue.COMPRESSION,
        *catalogue.NOVELTY,
        catalogue.SHARED,
        catalogue.MOST_SHARED,
    ),
    "Meaning": (
        catalogue.COSINE_DISTANCE,
        *catalogue.VENDI,
        catalogue.SET_COSINE_DISTANCE,
        *catalogue.SET_VENDI,
        catalogue.CONSISTENCY,
    ),
    "Coverage": (catalogue.WORD_COVERAGE, catalogue.COVERAGE, catalogue.IMAGE_COVERAGE),
    "Fidelity": (
        catalogue.CLIP_SCORE,
        catalogue.REF_CLIP_SCORE,
        catalogue.FOUND_CLIP,
        *catalogue.RECALLS,
        catalogue.CIDER,
        catalogue.FOUND_WORDS,
        catalogue.FOUND_MEANING,
        catalogue.BLEU,
        catalogue.ROUGE,
        catalogue.METEOR,
        catalogue.DEGENERATE,
        catalogue.PRECISION,
        catalogue.RECALL,
        catalogue.STATED,
    ),
}


class Cell(NamedTuple):
    """A number as a table shows it, and its interval, "" where there is none."""

    column: Column
    text: str
    interval: str


class Span(NamedTuple):
    """An estimate drawn as a line with a dot, in per cent of the width that its neighbours share, and in words."""

    text: str
    interval: str
    low: float
    high: float
    mean: float
    zero: float


def render(report: DiversityReport) -> str:
    """The whole page; every text from data is escaped, and the page's own policy forbids it requests and other scripts."""
    columns = columns_of(report)
    first = next(iter(report.rows.values()))
    return render_page(
        TEMPLATE,
        report=report,
        columns=columns,
        fidelity=catalogue.OF_SCORE[report.fidelity],
        reasons=REASONS,
        answer=[INTERVAL.split(sentence) for sentence in report.answer],
        subtitle=f"{catalogue.PICTURES.text(first)} pictures, {catalogue.CAPTIONS.text(first)} captions of each column",
        headline=_table(report, columns, report.headline),
        spans=[(kind, len(list(of_kind))) for kind, of_kind in groupby(map(_kind, report.headline))],
        plots=plots(report, columns),
        differences=_differences(report, columns),
        mixes=_mixes(report, columns),
        examples=[
            _picture(example, columns)
            for example in sorted(report.examples, key=lambda example: SHOWN.index(example.why))
        ],
        faults=_table(report, columns, catalogue.DEGENERATE_REASONS),
        fault_examples=_fault_examples(report, columns),
        across=len(columns) if len(columns) < 5 else (len(columns) + 1) // 2,
        frames=_frames(report, columns),
        kinds=_kinds(report, columns),
        equal=_table(report, columns, (catalogue.EQUAL_WORDS, *catalogue.EQUAL_TOKENS)),
        groups=[(name, table) for name, group in GROUPS.items() if (table := _table(report, columns, group))],
    )


def _table(
    report: DiversityReport, columns: Sequence[Column], chosen: Iterable[Measure]
) -> list[tuple[Measure, list[Cell]]]:
    """Each measure that some column has, with a cell of every column."""
    measured = set(report.measured)
    return [
        (
            measure,
            [
                Cell(
                    column,
                    measure.text(report.rows[column.name]),
                    interval(measure, report.intervals[column.name].get(measure.score), "–"),
                )
                for column in columns
            ],
        )
        for measure in chosen
        if measure in measured
    ]


def _kind(measure: Measure) -> str:
    """The heading over a measure of the first table."""
    return "" if measure in GROUPS["Size and length"] else "Fidelity" if measure in GROUPS["Fidelity"] else "Spread"


def interval(measure: Measure, estimate: Estimate | None, joint: str) -> str:
    """The interval of a mean or a gain in the measure's format, its unit once; "" where it has no width."""
    if estimate is None or estimate.low == estimate.high:
        return ""
    low, high = (measure.written(value).replace("-", "−") for value in estimate[1:])
    return f"{low.removesuffix(catalogue.PERCENT)}{joint}{high}"


# --- differences and mixes -----------------------------------------------------------------------------------------


def _differences(report: DiversityReport, columns: Sequence[Column]) -> list[tuple[Measure, list[dict[str, Any]]]]:
    """The measures of the first plot, then others, each with its pairs of columns."""
    scores = dict.fromkeys(
        (report.fidelity, report.spread, *(difference.measure for difference in report.differences))
    )
    return forests([catalogue.OF_SCORE[score] for score in scores if score], report.differences, columns)


def forests(
    measures: Iterable[Measure], differences: Sequence[Difference], columns: Sequence[Column]
) -> list[tuple[Measure, list[dict[str, Any]]]]:
    """Each measure in which columns were compared, with its pairs of columns on one scale."""
    found = []
    for measure in measures:
        pairs = [difference for difference in differences if difference.measure == measure.score]
        spans = _spans(measure, [difference.estimate for difference in pairs])
        if pairs:
            found.append(
                (measure, [_pair(measure, pair, span, columns) for pair, span in zip(pairs, spans, strict=True)])
            )
    return found


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
            interval(measure, said, " to ").removesuffix(catalogue.PERCENT),
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
    text = measure.written(value).replace("-", "−").replace(catalogue.PERCENT, " points")
    return text if value < 0 else f"+{text}"


def _mixes(report: DiversityReport, columns: Sequence[Column]) -> dict[str, Any] | None:
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
                "gains": [(measure, spans[at], levels[at]) for measure, spans, levels in gained],
            }
            for at, step in enumerate(steps)
        ],
    }


def _verdict(step: MixStep) -> str:
    return "adds" if step.adds else "less faithful" if step.fidelity_gain.high < 0 else "no clear gain"


# --- captions ------------------------------------------------------------------------------------------------------


def _picture(example: Example, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "key": example.key,
        "why": example.why,
        "thumbnail": thumbnail(example.image),
        "columns": [(column, example.captions[column.name]) for column in columns],
    }


def _fault_examples(report: DiversityReport, columns: Sequence[Column]) -> list[tuple[Column, str, list[tuple]]]:
    """Of each column its degenerate share, and some captions of each reason."""
    return [
        (
            column,
            catalogue.DEGENERATE.text(report.rows[column.name]),
            [
                (reason, captions[:EXAMPLES_SHOWN])
                for reason in REASONS
                if (captions := report.degenerate_examples.get(column.name, {}).get(reason))
            ],
        )
        for column in columns
    ]


def _frames(
    report: DiversityReport, columns: Sequence[Column]
) -> list[tuple[Column, list[tuple[str, list[dict[str, str]]]]]]:
    """Templates and openings of each column, with their shares and bars on one scale for all columns."""
    found = {column: frames for column in columns if (frames := report.rows[column.name].get("frames"))}
    most = max((share for frames in found.values() for rows in frames.values() for _, share, *_ in rows), default=1)
    return [
        (
            column,
            [
                (
                    kind,
                    [
                        {
                            "text": text,
                            "share": f"{100 * share:.1f} %",
                            "bar": f"{100 * share / most:.1f}",
                            "example": "".join(example),
                        }
                        for text, share, *example in frames[kind]
                    ],
                )
                for kind in ("templates", "openings")
            ],
        )
        for column, frames in found.items()
    ]


def _kinds(report: DiversityReport, columns: Sequence[Column]) -> list[tuple[str, list[dict[str, str]]]]:
    """Facts by kind: of each column the share that is true and the share found."""
    facts = [(column, (report.rows[column.name].get("facts") or {}).get("kinds", {})) for column in columns]
    table = []
    for kind in dict.fromkeys(kind for _, kinds in facts for kind in kinds):
        cells = []
        for column, kinds in facts:
            scores = kinds.get(kind, {"precision": None, "recall": None, "stated": 0, "key": 0})
            for name, share, of in (
                ("true", scores["precision"], f"of {scores['stated']} stated"),
                ("found", scores["recall"], f"of {scores['key']}"),
            ):
                cells.append(
                    {
                        "name": name,
                        "column": column,
                        "text": catalogue.PRECISION.written(share),
                        "of": of,
                        "bar": f"{100 * (share or 0):.1f}",
                    }
                )
        table.append((kind, cells))
    return table


def thumbnail(image: bytes | None) -> str | None:
    """A small JPEG as a data URI, None where there is no picture or it does not decode."""
    if not image:
        return None
    from imagetext.sample import decode_image

    try:
        picture = decode_image(image)
    except ValueError:
        return None
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
