"""The page of a report: tables, plots and pictures in one file that asks for nothing outside it."""

import base64
import io
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diversity import measures
from diversity.accumulate import quantile
from diversity.fidelity import REASONS

if TYPE_CHECKING:
    from diversity.report import DiversityReport

COLOURS = ("#3f7fd6", "#dd7a3c", "#3d9b78", "#a965b8", "#c19a2b", "#cf5763", "#4aa3b5", "#8a7d5a")  # on light and on dark
REFERENCE_COLOUR = "#8b9099"
INK = "#010203"  # stands for the text's colour, which light and dark pages set
THUMBNAIL = 320  # pixels of the longer side


def render(report: "DiversityReport") -> str:
    """The whole page; every text from data is escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows = _rows(report)
    first = next(iter(report.rows.values()))
    degenerate = [(row, [(reason, measures.DEGENERATE_REASONS[at].text(report.rows[row["name"]]), captions)
                         for at, reason in enumerate(REASONS)
                         if (captions := report.degenerate_examples[row["name"]].get(reason))]) for row in rows]
    return environment.get_template("report.html").render(
        report=report, rows=rows, groups=_groups(report), kinds=_kinds(report, rows), plots=_plots(report, rows),
        subtitle=f"{measures.PICTURES.text(first)} pictures, {measures.CAPTIONS.text(first)} captions of each column",
        examples=[{"key": example.key, "thumbnail": thumbnail(example.image),
                   "columns": [(row, example.captions[row["name"]]) for row in rows]} for example in report.examples],
        degenerate=degenerate, reasons=REASONS,
        measures=[(measure, [measure.text(row) for row in report.rows.values()]) for measure in measures.ALL
                  if report.facts_known or measure.path[0] != "facts"])


def _rows(report: "DiversityReport") -> list[dict[str, Any]]:
    """Name, short label, colour and headline cells (measure, text, bar's length in per cent) of each column."""
    most = {measure: max((measure.value(row) or 0 for row in report.rows.values()), default=0) for measure in report.headline}
    rows, colours = [], itertools.cycle(COLOURS)
    for name, result in report.rows.items():
        cells = []
        for measure in report.headline:
            whole = max(most[measure], 1) if measure.unit in ("percent", "ratio") else most[measure] or 1
            cells.append((measure, measure.text(result), f"{100 * (measure.value(result) or 0) / whole:.1f}"))
        colour = REFERENCE_COLOUR if name == report.references else next(colours)
        rows.append({"name": name, "label": report.labels[name], "colour": colour, "cells": cells,
                     "degenerate": measures.DEGENERATE.text(result)})
    return rows


def _groups(report: "DiversityReport") -> list[tuple[str, int]]:
    """The headings above the first table's columns, and how many columns each spans."""
    of_fidelity = sum(measure in (measures.DEGENERATE, measures.PRECISION, measures.RECALL) for measure in report.headline)
    return [("Spread", len(report.headline) - of_fidelity), ("Fidelity", of_fidelity)]


def _kinds(report: "DiversityReport", rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, str]]]]:
    """Facts by kind: of each column the share that is true and the share found."""
    facts = [(row, (report.rows[row["name"]]["facts"] or {}).get("kinds", {})) for row in rows]
    table = []
    for kind in dict.fromkeys(kind for _, kinds in facts for kind in kinds):
        cells = []
        for row, kinds in facts:
            scores = kinds.get(kind, {"precision": None, "recall": None, "stated": 0, "key": 0})
            for share, of in ((scores["precision"], f"of {scores['stated']} stated"), (scores["recall"], f"of {scores['key']}")):
                cells.append({"text": "–" if share is None else f"{100 * share:.1f} %", "of": of, "colour": row["colour"],
                              "share": f"{100 * (share or 0):.1f}"})
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


# --- plots ---------------------------------------------------------------------------------------------------------


def _plots(report: "DiversityReport", rows: list[dict[str, Any]]) -> list[tuple[str, str, Markup]]:
    """Title, explanation and SVG of each plot; the dots in the first table are their legend."""
    return [_spread_and_fidelity(report, rows), _lengths(report, rows)]


def _spread_and_fidelity(report: "DiversityReport", rows: list[dict[str, Any]]) -> tuple[str, str, Markup]:
    figure, axes = plot()
    spread = measures.DIV[1]
    for row in rows:
        result = report.rows[row["name"]]
        good = measures.PRECISION.value(result) if report.facts_known else 1 - measures.DEGENERATE.value(result)
        if good is not None and spread.value(result) is not None:
            axes.plot(spread.value(result), 100 * good, "o", color=row["colour"], markersize=11,
                      markerfacecolor="none" if row["name"] == report.references else row["colour"], markeredgewidth=2.2, clip_on=False)
    axes.margins(0.25)
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, min(low, high - 10)), min(102, high + 2))
    axes.set_xlabel("Div-2, spread within a picture")
    axes.set_ylabel("facts true, %" if report.facts_known else "captions not degenerate, %")
    return "Spread against fidelity", "Up and to the right is better; right alone may be noise.", svg(figure)


def _lengths(report: "DiversityReport", rows: list[dict[str, Any]]) -> tuple[str, str, Markup]:
    figure, axes = plot()
    longest = max(quantile(report.rows[row["name"]]["length_histogram"], 0.995) or 0 for row in rows)
    for row in rows:
        histogram = report.rows[row["name"]]["length_histogram"]
        total = sum(histogram.values())
        lengths = range(longest + 1)
        axes.plot(lengths, [100 * histogram.get(length, 0) / total for length in lengths], color=row["colour"], linewidth=2.2,
                  linestyle=(0, (4, 2)) if row["name"] == report.references else "-")
    axes.set_xlim(0, max(longest, 1))
    axes.set_ylim(0)
    axes.set_xlabel("words per caption")
    axes.set_ylabel("captions, %")
    return "Length", "Captions of each length, punctuation left out.", svg(figure)


def plot(width: float = 4.7, height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty figure, in inches, and its axes, drawn with the page's ink."""
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=INK, alpha=0.35)
    axes.tick_params(color=INK, labelcolor=INK, labelsize=9, length=3)
    axes.xaxis.label.set(color=INK, size=9.5)
    axes.yaxis.label.set(color=INK, size=9.5)
    axes.grid(color=INK, alpha=0.1, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def svg(figure: Figure, label: str = "") -> Markup:
    """The figure as inline SVG, transparent, its ink the page's, the same bytes each time; the label is its own on a page."""
    buffer = io.StringIO()
    label = label or figure.axes[0].get_xlabel()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True)
    drawn = buffer.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg"):], flags=re.DOTALL)
    drawn = re.sub(r'\bid="(figure|axes|patch|matplotlib|xtick|ytick|line2d|text)[.\w]*"', "", drawn)  # twice on one page
    return Markup(drawn.replace(INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))
