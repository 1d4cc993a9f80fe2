"""Render a report as one HTML file with the answer, tables, plots and pictures; it loads nothing from elsewhere."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from diversity.measures import catalogue
from diversity.measures.measure import Measure
from diversity.page.differences import INTERVAL, differences_of, interval, mixes_of
from diversity.page.plots import PageColumn, columns_of, plots
from diversity.report import DiversityReport, ExamplePicture
from diversity.words.degenerate import REASONS
from imagetext.pages import render_page
from imagetext.shown import counted

THUMBNAIL = 320  # pixels of the longer side
KINDS = ("best", "worst", "random")  # kinds of example pictures in the order of the page
EXAMPLES_SHOWN = 3  # degenerate captions that are shown for each reason
TEMPLATE = Path(__file__).parent / "templates" / "report.html"

# The groups of the last table. Faults and measures at equal length have tables of their own.
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
    """A number as the table shows it, with its interval; "" where it has no interval."""

    column: PageColumn
    text: str
    interval: str


def render(report: DiversityReport) -> str:
    """Return the whole page.

    Every text from data is escaped, and the content security policy of the page forbids requests and other scripts.
    """
    columns = columns_of(report)
    first = next(iter(report.rows.values()))
    return render_page(
        TEMPLATE,
        report=report,
        columns=columns,
        fidelity=catalogue.OF_SCORE[report.fidelity],
        reasons=REASONS,
        answer=[INTERVAL.split(sentence) for sentence in report.answer],
        subtitle=f"{counted(first['pictures'], 'picture')}, {counted(first['captions'], 'caption')} of each column",
        headline=_table(report, columns, report.headline),
        spans=[(kind, len(list(group))) for kind, group in groupby(map(_kind, report.headline))],
        plots=plots(report, columns),
        differences=differences_of(report, columns),
        mixes=mixes_of(report, columns),
        examples=[
            _picture(example, columns)
            for example in sorted(report.examples, key=lambda example: KINDS.index(example.why))
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
    report: DiversityReport, columns: Sequence[PageColumn], measures: Iterable[Measure]
) -> list[tuple[Measure, list[Cell]]]:
    """Return the measures that some column has, each with a cell for every column."""
    measured = set(report.measured)
    table = []
    for measure in measures:
        if measure not in measured:
            continue
        cells = []
        for column in columns:
            estimate = report.intervals[column.name].get(measure.score)
            cells.append(Cell(column, measure.text(report.rows[column.name]), interval(measure, estimate, "–")))
        table.append((measure, cells))
    return table


def _kind(measure: Measure) -> str:
    """Return the heading over a measure of the first table."""
    if measure in GROUPS["Size and length"]:
        return ""
    return "Fidelity" if measure in GROUPS["Fidelity"] else "Spread"


def _picture(example: ExamplePicture, columns: Sequence[PageColumn]) -> dict[str, Any]:
    """Return what the page shows of an example picture."""
    return {
        "key": example.key,
        "why": example.why,
        "thumbnail": thumbnail(example.image),
        "columns": [(column, example.captions[column.name]) for column in columns],
    }


def _fault_examples(
    report: DiversityReport, columns: Sequence[PageColumn]
) -> list[tuple[PageColumn, str, list[tuple]]]:
    """Return each column with its share of degenerate captions, and with some captions for each reason."""
    rows = []
    for column in columns:
        examples = report.degenerate_examples.get(column.name, {})
        by_reason = [(reason, examples[reason][:EXAMPLES_SHOWN]) for reason in REASONS if examples.get(reason)]
        rows.append((column, catalogue.DEGENERATE.text(report.rows[column.name]), by_reason))
    return rows


def _frames(
    report: DiversityReport, columns: Sequence[PageColumn]
) -> list[tuple[PageColumn, list[tuple[str, list[dict[str, str]]]]]]:
    """Return the templates and openings of each column, with their shares and with bars on one scale."""
    frames_of = {column: frames for column in columns if (frames := report.rows[column.name].get("frames"))}
    shares = [row[1] for frames in frames_of.values() for rows in frames.values() for row in rows]
    largest = max(shares, default=1)

    def frame(text: str, share: float, example: str = "") -> dict[str, str]:
        return {
            "text": text,
            "share": f"{100 * share:.1f} %",
            "bar": f"{100 * share / largest:.1f}",
            "example": example,
        }

    return [
        (column, [(kind, [frame(*row) for row in frames[kind]]) for kind in ("templates", "openings")])
        for column, frames in frames_of.items()
    ]


def _kinds(report: DiversityReport, columns: Sequence[PageColumn]) -> list[tuple[str, list[dict[str, str]]]]:
    """Return for each kind of fact and each column the share of stated facts that are true and the share found."""
    facts = [(column, (report.rows[column.name].get("facts") or {}).get("kinds", {})) for column in columns]
    table = []
    for kind in dict.fromkeys(kind for _, kinds in facts for kind in kinds):
        cells = []
        for column, kinds in facts:
            scores = kinds.get(kind, {"precision": None, "recall": None, "stated": 0, "key": 0})
            for name, share, number in (
                ("true", scores["precision"], f"of {scores['stated']} stated"),
                ("found", scores["recall"], f"of {scores['key']}"),
            ):
                cells.append(
                    {
                        "name": name,
                        "column": column,
                        "text": catalogue.PRECISION.written(share),
                        "of": number,
                        "bar": f"{100 * (share or 0):.1f}",
                    }
                )
        table.append((kind, cells))
    return table


def thumbnail(image: bytes | None) -> str | None:
    """Return a small JPEG as a data URI; None where there is no picture or where it does not decode."""
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
