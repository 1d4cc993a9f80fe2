"""The plots of a report's page: inline SVG in the page's ink, each column of captions with its own number and colour."""

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from diversity.measures import catalogue
from diversity.measures.accumulate import quantile
from diversity.measures.measure import Measure
from diversity.report import DiversityReport

COLOURS = (
    "#3f7fd6",
    "#d8722f",
    "#3d9b78",
    "#a965b8",
    "#b58a1e",
    "#cf5763",
    "#3d97aa",
    "#8a7d5a",
)  # on light and on dark
REFERENCE_COLOUR = "#8b9099"
INK = "#010203"  # stands for the text's colour, which light and dark pages set
GRID = 200  # points of a drawn density
BADGE, RING = 10.5, 16  # points across

Drawing = tuple[str, str, Figure]  # as a Plot, before it is written
Curves = Sequence[tuple["Column", np.ndarray, np.ndarray]]


class Column(NamedTuple):
    """A column of captions as the page shows it: its label, its mark and colour, whether it is best or suspect."""

    name: str
    label: str
    mark: str
    colour: str
    human: bool
    best: bool
    suspect: bool


class Plot(NamedTuple):
    """A drawing, with what a reader should look for."""

    title: str
    words: str
    svg: Markup


def columns_of(report: DiversityReport) -> list[Column]:
    """The columns in the order of the report's rows; captioners are numbered, the human one is H."""
    marks, colours = itertools.count(1), itertools.cycle(COLOURS)
    return [
        Column(name, report.labels[name], "H", REFERENCE_COLOUR, True, False, False)
        if name == report.references
        else Column(
            name,
            report.labels[name],
            str(next(marks)),
            next(colours),
            False,
            name == report.verdict.winner,
            name in report.verdict.suspects,
        )
        for name in report.rows
    ]


def plots(report: DiversityReport, columns: Sequence[Column]) -> list[Plot]:
    """Those for which the report has the numbers."""
    drawings = (
        _spread_and_fidelity(report, columns),
        _distributions(report, columns),
        _lengths(report, columns),
        _rank_frequency(report, columns),
    )
    return [Plot(title, words, svg(figure, title)) for title, words, figure in filter(None, drawings)]


def _spread_and_fidelity(report: DiversityReport, columns: Sequence[Column]) -> Drawing | None:
    both = [catalogue.OF_SCORE[score] for score in (report.spread, report.fidelity) if score]
    places = {
        column: [np.multiply(_factor(measure), report.intervals[column.name][measure.score]) for measure in both]
        for column in columns
        if all(measure.score in report.intervals[column.name] for measure in both)
    }
    if len(both) < 2 or not places:
        return None
    figure, axes = plot(4.2, 2.9)
    for column, (x, y) in places.items():
        axes.plot(
            x[1:], [y[0]] * 2, [x[0]] * 2, y[1:], color=column.colour, alpha=0.75, linewidth=1.6, solid_capstyle="butt"
        )
        if column.best:
            axes.plot(
                x[0],
                y[0],
                "o",
                markersize=RING,
                markerfacecolor="none",
                color=column.colour,
                markeredgewidth=1.2,
                clip_on=False,
            )
        if column.suspect:
            axes.plot(x[0], y[0], "x", markersize=RING + 4, color=column.colour, markeredgewidth=1.2, clip_on=False)
        _badge(axes, x[0], y[0], column)
    axes.margins(0.16)
    _fit(axes, "x", both[0])
    _fit(axes, "y", both[1])
    return (
        "Spread against fidelity",
        (
            "Up is more faithful, right more varied; right alone may be noise. Lines are 95 % "
            "intervals. A ring: the best captioner. Crossed out: suspect."
        ),
        figure,
    )


def _factor(measure: Measure) -> int:
    return 100 if measure.unit == "percent" else 1


def _fit(axes: Axes, name: str, measure: Measure) -> None:
    """Labels one axis, ends it at the measure's bounds, and turns it so that better is up or right."""
    low, high = getattr(axes, f"get_{name}lim")()
    limits = max(low, 0), min(high, 100) if measure.unit == "percent" else high
    getattr(axes, f"set_{name}lim")(limits[::-1] if measure.better == "lower" else limits)
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(MaxNLocator(5))
    axis.set_label_text(f"{measure.label}{', %' if measure.unit == 'percent' else ''}")


def _distributions(report: DiversityReport, columns: Sequence[Column]) -> Drawing | None:
    measure = catalogue.OF_SCORE[report.spread or report.fidelity]
    most = 100 if measure.unit == "percent" else np.inf
    known = {
        column: np.clip(np.multiply(_factor(measure), report.distributions[column.name][measure.score]), 0, most)
        for column in columns
        if measure.score in report.distributions[column.name]
    }
    if not known:
        return None
    low, high = min(map(min, known.values())), max(map(max, known.values()))
    width = (high - low or 1) / 40
    grid = np.linspace(max(low - 3 * width, 0), min(high + 3 * width, most), GRID)
    figure, axes = plot(4.2, max(2.9, 0.7 + 0.36 * len(known)))
    for row, (column, quantiles) in enumerate(known.items()):
        levels = np.linspace(0, 1, len(quantiles))
        values = np.interp(np.linspace(0, 1, 1001), levels, quantiles)
        heights = np.exp(-(((grid[:, None] - values) / width) ** 2) / 2).mean(axis=1)
        top = -row + 0.78 * heights / heights.max()
        first, middle, last = np.interp((0.25, 0.5, 0.75), levels, quantiles)
        axes.fill_between(grid, -row, top, color=column.colour, alpha=0.3, linewidth=0)
        axes.fill_between(
            grid, -row, top, where=(first <= grid) & (grid <= last), color=column.colour, alpha=0.55, linewidth=0
        )
        axes.plot([middle] * 2, [-row, np.interp(middle, grid, top)], color=INK, alpha=0.8, linewidth=1.4)
        axes.plot(grid, top, color=column.colour, linewidth=1.2)
        _badge(axes, grid[0], -row + 0.2, column)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(0.85 - len(known), 0.95)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{measure.label} of a picture{', %' if measure.unit == 'percent' else ''}")
    return (
        "Picture by picture",
        (
            f"How many pictures have which {measure.label}: the line is the median, the middle half is "
            "darker. Each column is drawn to its own height."
        ),
        figure,
    )


def _lengths(report: DiversityReport, columns: Sequence[Column]) -> Drawing | None:
    counted = {column: histogram for column in columns if (histogram := report.rows[column.name]["length_histogram"])}
    longest = max((quantile(histogram, 0.995) or 0 for histogram in counted.values()), default=0)
    if not longest:
        return None
    figure, axes = plot(4.2, 2.9)
    lengths, curves = np.arange(longest + 1), []
    for column, histogram in counted.items():
        captions = np.array([histogram.get(length, 0) for length in lengths.tolist()])
        curves.append((column, lengths, 100 * captions / sum(histogram.values())))
    _draw(axes, curves, {column: shares >= 0.75 * shares.max() for column, _, shares in curves})
    axes.set_xlim(0, longest)
    axes.set_ylim(0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("words of a caption")
    axes.set_ylabel("captions, %")
    return "Length", "How many captions have how many words, punctuation left out.", figure


def _rank_frequency(report: DiversityReport, columns: Sequence[Column]) -> Drawing | None:
    curves = []
    for column in columns:
        row = report.rows[column.name]
        if pairs := row.get("rank_frequency"):
            ranks, counts = np.array(pairs, float).T
            curves.append((column, ranks, 100 * counts / row["words"]))
    if not curves:
        return None
    figure, axes = plot(4.2, 2.9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _draw(axes, curves, {column: ranks > 1 for column, ranks, _ in curves})
    for axis, unit in ((axes.xaxis, ""), (axes.yaxis, " %")):
        axis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: f"{value:.10g}{unit}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("rank of the word")
    axes.set_ylabel("share of all words")
    return (
        "Rank and frequency",
        (
            "From the commonest word, left, to the rarest. A curve that ends early has few words, and "
            "uses each of them often."
        ),
        figure,
    )


def _draw(axes: Axes, curves: Curves, where: Mapping[Column, np.ndarray]) -> None:
    """Draws each curve, with its mark where it is farthest from the others, among the points in `where`."""
    seen = axes.yaxis.get_transform().transform
    for column, x, y in curves:
        axes.plot(x, y, color=column.colour, linewidth=1.9, linestyle=(0, (4, 2)) if column.human else "-")
        others = [(other_x, other_y) for other, other_x, other_y in curves if other != column]
        gaps = [np.abs(seen(y) - seen(np.interp(x, other_x, other_y))) for other_x, other_y in others]
        gap = np.where(where[column], np.min(gaps, axis=0) if gaps else seen(y), -np.inf)
        farthest = int(gap.argmax())
        _badge(axes, x[farthest], y[farthest], column)


def _badge(axes: Axes, x: float, y: float, column: Column) -> None:
    axes.plot(x, y, "o", color=column.colour, markersize=BADGE, markeredgewidth=0, clip_on=False, zorder=5)
    axes.annotate(
        column.mark,
        (x, y),
        color="#ffffff",
        size=7,
        weight="bold",
        ha="center",
        va="center_baseline",
        zorder=6,
        annotation_clip=False,
    )


def plot(width: float = 4.7, height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty figure, in inches, and its axes, drawn with the page's ink."""
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=INK, alpha=0.35)
    axes.tick_params(which="both", color=INK, labelcolor=INK, labelsize=9, length=3)
    axes.tick_params(which="minor", length=0)
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
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w.]+)", drawn))
    drawn = re.sub(
        r'\bid="([^"]*)"', lambda found: found[0] if found[1] in used else "", drawn
    )  # others are twice on one page
    return Markup(
        drawn.replace(INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    )
