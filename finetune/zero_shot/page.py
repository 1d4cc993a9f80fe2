"""The page of zero-shot answers: who is best, what is taken for what, each class, and the surest mistakes."""

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
from finetune.zero_shot.report import ModelResult, Supported, Unsure, ZeroShotReport, signed
from finetune.zero_shot.scores import MEASURES, TOP1
from finetune.zero_shot.support import ALONE
from imagetext.pages import render_page

PAGE = "zero_shot.html"
TEMPLATE = Path(__file__).parents[1] / "templates" / PAGE
PAIRS = 12  # of classes taken for one another
CLASSES = 20  # of the table's classes, the hardest, before the others are folded; and of a matrix of all


def render(report: ZeroShotReport) -> str:
    """The whole page, which asks for nothing outside it."""
    columns = _columns(report.models, map(str, itertools.count(1)), report.verdict.winner)
    measures = [measure for measure in MEASURES if measure.score in report.models[report.best].intervals]
    classes = _classes(report)
    return render_page(
        TEMPLATE,
        diversity_page.TEMPLATE.parent,
        report=report,
        columns=columns,
        subtitle=f"{report.pictures:,} pictures of {len(report.asked):,} classes",
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
        matrix=_matrix(report) if len(report.asked) <= CLASSES else None,
        best=next(column for column in columns if column.name == report.best),
        classes=(classes[:CLASSES], classes[CLASSES:]),
        mistakes=[(column, _mistakes(report, report.models[column.name])) for column in columns],
    )


def _columns(names: Iterable[str], marks: Iterable[str], winner: str | None) -> list[PageColumn]:
    """What stands on the page for models, or for columns of captions."""
    return [
        PageColumn(name, name, mark, colour, False, name == winner, False)
        for name, mark, colour in zip(names, marks, itertools.cycle(COLOURS))
    ]


def _cell(model: ModelResult, measure: Any) -> tuple[Any, str, str]:
    estimate = model.intervals[measure.score]
    return measure, measure.written(estimate.mean), interval(measure, estimate, "–")


def _unsure(unsure: Unsure) -> list[tuple[str, str, str]]:
    """The cells of a model: heading, figure, interval."""
    headings = {
        "share": "Unsure of",
        "sure": "Right where sure",
        "before": "Right where unsure",
        "after": "Ranked anew",
        "gain": "Difference there",
        "total": "All, ranked anew",
    }
    return [
        (heading, "–", "")
        if (estimate := getattr(unsure, name)) is None
        else (heading, (signed if name == "gain" else TOP1.written)(estimate.mean), interval(TOP1, estimate, " to "))
        for name, heading in headings.items()
    ]


def _support(support: Supported) -> dict[str, Any]:
    """Pictures a class; for each kind of descriptions its figures with them, and how it differs from none; and all differences."""
    columns = _columns(support.top1, itertools.cycle(ascii_lowercase), support.verdict.winner)
    differing: dict[str, tuple[str, ...]] = {}
    for one in support.differences:
        if ALONE in (one.first, one.second):
            turned = one.first == ALONE
            gain = -one.estimate if turned else one.estimate
            within = f"{interval(TOP1, gain, ' to ').removesuffix(PERCENT)}, " if gain.low < gain.high else ""
            differing[one.second if turned else one.first] = (
                signed(gain.mean),
                within + ("clear" if one.sign else "open"),
            )
    counts = list(support.top1[ALONE])
    rows = [
        (
            column,
            [(TOP1.written(of[count].mean), interval(TOP1, of[count], "–")) for count in counts],
            differing.get(column.name, ("",)),
        )
        for column, of in zip(columns, support.top1.values(), strict=True)
    ]
    return {
        "counts": counts,
        "rows": rows,
        "differences": forests([TOP1], support.differences, columns) if len(columns) > 2 else [],
    }


def _pairs(report: ZeroShotReport, model: ModelResult) -> list[dict[str, Any]]:
    """The commonest confusions, with bars of the share of the class's pictures."""
    names = report.classes.names
    return [
        {
            "is": names[pair["class"]],
            "said": names[pair["answered"]],
            "of": f"{pair['pictures']:,} of {report.asked[pair['class']]:,}",
            "bar": f"{100 * pair['share']:.1f}",
        }
        for pair in model.confusions[:PAIRS]
    ]


def _matrix(report: ZeroShotReport) -> list[tuple[str, list[dict[str, Any]]]]:
    """Of the best model, for each class how many of its pictures were taken for which."""
    model, names = report.models[report.best], report.classes.names
    taken = {(pair["class"], pair["answered"]): pair["pictures"] for pair in model.confusions}
    rows = []
    for one, pictures in enumerate(report.asked):
        wrong = sum(count for (label, _), count in taken.items() if label == one)
        counts = [pictures - wrong if one == other else taken.get((one, other), 0) for other in range(len(names))]
        rows.append(
            (
                names[one],
                [
                    {"count": count, "right": one == other, "shade": f"{100 * count / max(1, pictures):.1f}"}
                    for other, count in enumerate(counts)
                ],
            )
        )
    return rows


def _classes(report: ZeroShotReport) -> list[dict[str, Any]]:
    """A row for each class, the hardest first for the best model, those without pictures last."""
    best = report.models[report.best]
    order = sorted(range(len(report.asked)), key=lambda one: (best.by_class[one] is None, best.by_class[one] or 0))
    taken_for: dict[int, str] = {}
    for pair in reversed(best.confusions):
        taken_for[pair["class"]] = f"{report.classes.names[pair['answered']]} ({pair['pictures']:,})"
    return [
        {
            "name": report.classes.names[one],
            "pictures": f"{report.asked[one]:,}",
            "shares": [
                (TOP1.written(model.by_class[one]), f"{100 * (model.by_class[one] or 0):.1f}")
                for model in report.models.values()
            ],
            "taken_for": taken_for.get(one, ""),
        }
        for one in order
    ]


def _mistakes(report: ZeroShotReport, model: ModelResult) -> list[dict[str, Any]]:
    names = report.classes.names
    return [
        {
            "key": mistake.key,
            "thumbnail": thumbnail(mistake.image),
            "is": names[mistake.label],
            "said": names[mistake.answer],
            "sure": f"{100 * mistake.probability:.0f} %",
        }
        for mistake in model.mistakes
    ]
