"""The page of a zero-shot report: the best model, confusions, the accuracy of each class, and the surest mistakes."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from diversity.measures.measure import PERCENT
from diversity.page import page as diversity_page
from diversity.page.differences import INTERVAL, forests, interval
from diversity.page.page import thumbnail
from diversity.page.plots import COLOURS, PageColumn
from finetune.zero_shot.report import ModelResult, Supported, Unsure, ZeroShotReport, signed, support_gains
from finetune.zero_shot.scores import MEASURES, TOP1
from finetune.zero_shot.support import ALONE
from imagetext.pages import render_page

PAGE = "zero_shot.html"
TEMPLATE = Path(__file__).parents[1] / "templates" / PAGE
PAIRS = 12  # number of confusions that are shown
CLASSES = 20  # number of classes in the table before the others are folded; larger sets have no confusion matrix


def render(report: ZeroShotReport) -> str:
    """Return the whole page, which needs nothing outside of it."""
    columns = _columns(report.models, map(str, itertools.count(1)), report.verdict.winner)
    measures = [measure for measure in MEASURES if measure.score in report.models[report.best].intervals]
    classes = _classes(report)
    return render_page(
        TEMPLATE,
        diversity_page.TEMPLATE.parent,
        report=report,
        columns=columns,
        subtitle=f"{report.pictures:,} pictures of {len(report.class_sizes):,} classes",
        answer=[INTERVAL.split(sentence) for sentence in report.answer],
        measures=measures,
        headline=[
            (column, [_cell(report.models[column.name], measure) for measure in measures]) for column in columns
        ],
        chance=TOP1.written(report.chance),
        differences=forests([TOP1], report.differences, columns),
        unsure=[(column, _unsure(model.unsure)) for column in columns if (model := report.models[column.name]).unsure],
        support=[
            (column, _support(model.support)) for column in columns if (model := report.models[column.name]).support
        ],
        confusions=[(column, _pairs(report, report.models[column.name])) for column in columns],
        matrix=_matrix(report) if len(report.class_sizes) <= CLASSES else None,
        best=next(column for column in columns if column.name == report.best),
        classes=(classes[:CLASSES], classes[CLASSES:]),
        mistakes=[(column, _mistakes(report, report.models[column.name])) for column in columns],
    )


def _columns(names: Iterable[str], marks: Iterable[str], winner: str | None) -> list[PageColumn]:
    """Return the marks of models, or of columns of descriptions, on the page."""
    return [
        PageColumn(name=name, label=name, mark=mark, colour=colour, human=False, best=name == winner, suspect=False)
        for name, mark, colour in zip(names, marks, itertools.cycle(COLOURS))
    ]


def _cell(model: ModelResult, measure: Any) -> tuple[Any, str, str]:
    estimate = model.intervals[measure.score]
    return measure, measure.written(estimate.mean), interval(measure, estimate, "–")


def _unsure(unsure: Unsure) -> list[tuple[str, str, str]]:
    """Return the cells of a model, each as heading, figure and interval."""
    headings = {
        "share": "Unsure of",
        "sure": "Right where sure",
        "before": "Right where unsure",
        "after": "Reranked",
        "gain": "Difference there",
        "total": "All, reranked",
    }
    cells = []
    for name, heading in headings.items():
        estimate = getattr(unsure, name)
        if estimate is None:
            cells.append((heading, "–", ""))
        else:
            figure = signed(estimate.mean) if name == "gain" else TOP1.written(estimate.mean)
            cells.append((heading, figure, interval(TOP1, estimate, " to ")))
    return cells


def _support(support: Supported) -> dict[str, Any]:
    """Return the table of support pictures: its numbers of pictures of each class, a row for each column, differences.

    A row has the column, its figures with intervals, and what its descriptions add to the pictures.
    """
    columns = _columns(support.top1, itertools.cycle(ascii_lowercase), support.verdict.winner)
    gain_cells: dict[str, tuple[str, ...]] = {}
    for name, (gain, sign) in support_gains(support).items():
        limits = f"{interval(TOP1, gain, ' to ').removesuffix(PERCENT)}, " if gain.low < gain.high else ""
        gain_cells[name] = (signed(gain.mean), limits + ("clear" if sign else "open"))
    counts = list(support.top1[ALONE])
    rows = []
    for column, by_count in zip(columns, support.top1.values(), strict=True):
        estimates = [by_count[count] for count in counts]
        figures = [(TOP1.written(estimate.mean), interval(TOP1, estimate, "–")) for estimate in estimates]
        rows.append((column, figures, gain_cells.get(column.name, ("",))))
    return {
        "counts": counts,
        "rows": rows,
        "differences": forests([TOP1], support.differences, columns) if len(columns) > 2 else [],
    }


def _pairs(report: ZeroShotReport, model: ModelResult) -> list[dict[str, Any]]:
    """Return the commonest confusions, each with a bar for its share of the class's pictures."""
    names = report.classes.names
    return [
        {
            "class": names[pair["class"]],
            "answer": names[pair["answered"]],
            "pictures": f"{pair['pictures']:,} of {report.class_sizes[pair['class']]:,}",
            "bar": f"{100 * pair['share']:.1f}",
        }
        for pair in model.confusions[:PAIRS]
    ]


def _matrix(report: ZeroShotReport) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the confusion matrix of the best model: for each class, the number of pictures by answer."""
    model, names = report.models[report.best], report.classes.names
    wrong_counts = {(pair["class"], pair["answered"]): pair["pictures"] for pair in model.confusions}
    rows = []
    for label, pictures in enumerate(report.class_sizes):
        cells = []
        for answer in range(len(names)):
            count = wrong_counts.get((label, answer), 0)
            if answer == label:
                count = pictures - sum(wrong for (class_, _), wrong in wrong_counts.items() if class_ == label)
            shade = f"{100 * count / max(1, pictures):.1f}"
            cells.append({"count": count, "right": answer == label, "shade": shade})
        rows.append((names[label], cells))
    return rows


def _classes(report: ZeroShotReport) -> list[dict[str, Any]]:
    """Return a row for each class: the hardest for the best model first, and classes without pictures last."""
    best, names = report.models[report.best], report.classes.names

    def difficulty(index: int) -> tuple[bool, float]:
        return best.by_class[index] is None, best.by_class[index] or 0

    commonest_answer: dict[int, str] = {}
    for pair in reversed(best.confusions):
        commonest_answer[pair["class"]] = f"{names[pair['answered']]} ({pair['pictures']:,})"
    return [
        {
            "name": names[index],
            "pictures": f"{report.class_sizes[index]:,}",
            "shares": [
                (TOP1.written(model.by_class[index]), f"{100 * (model.by_class[index] or 0):.1f}")
                for model in report.models.values()
            ],
            "mistaken_for": commonest_answer.get(index, ""),
        }
        for index in sorted(range(len(names)), key=difficulty)
    ]


def _mistakes(report: ZeroShotReport, model: ModelResult) -> list[dict[str, Any]]:
    names = report.classes.names
    return [
        {
            "key": mistake.key,
            "thumbnail": thumbnail(mistake.image),
            "class": names[mistake.label],
            "answer": names[mistake.answer],
            "sure": f"{100 * mistake.probability:.0f} %",
        }
        for mistake in model.mistakes
    ]
