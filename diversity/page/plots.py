"""Draw the plots of a report's page as inline SVG; each caption column has its own number and colour."""

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

# The colours of captioners, which are visible on light and on dark pages.
COLOURS = (
    "#3f7fd6",
    "#d8722f",
    "#3d9b78",
    "#a965b8",
    "#b58a1e",
    "#cf5763",
    "#3d97aa",
    "#8a7d5a",
)
REFERENCE_COLOUR = "#8b9099"
INK = "#010203"  # a placeholder for the colour of the page's text, which light and dark pages set
GRID = 200  # points of a drawn density
BADGE, RING = 10.5, 16  # diameters in points

Drawing = tuple[str, str, Figure]  # title, words and figure of a Plot
Curves = Sequence[tuple["PageColumn", np.ndarray, np.ndarray]]


class PageColumn(NamedTuple):
    """A caption column, or a model, as a page shows it."""

    name: str
    label: str
    mark: str  # a number, or H for the human captions
    colour: str
    human: bool
    best: bool
    suspect: bool


class Plot(NamedTuple):
    """A plot with a title, and with words that tell the reader what to look for."""

    title: str
    words: str
    svg: Markup


def columns_of(report: DiversityReport) -> list[PageColumn]:
    """Return the columns in the order of the report's rows; captioners are numbered, and human captions are H."""
    marks, colours = itertools.count(1), itertools.cycle(COLOURS)
    columns = []
    for name in report.rows:
        human = name == report.references
        columns.append(
            PageColumn(
                name=name,
                label=report.labels[name],
                mark="H" if human else str(next(marks)),
                colour=REFERENCE_COLOUR if human else next(colours),
                human=human,
                best=not human and name == report.verdict.winner,
                suspect=not human and name in report.verdict.suspects,
            )
        )
    return columns


def plots(report: DiversityReport, columns: Sequence[PageColumn]) -> list[Plot]:
    """Return the plots for which the report has the numbers."""
    drawings = (
        _spread_and_fidelity(report, columns),
        _distributions(report, columns),
        _lengths(report, columns),
        _rank_frequency(report, columns),
    )
    return [Plot(title, words, svg(figure, title)) for title, words, figure in filter(None, drawings)]


def _spread_and_fidelity(report: DiversityReport, columns: Sequence[PageColumn]) -> Drawing | None:
    """Plot the spread of each column against its fidelity, with intervals."""
    measures = [catalogue.OF_SCORE[score] for score in (report.spread, report.fidelity) if score]
    estimates = {
        column: [np.multiply(_factor(measure), report.intervals[column.name][measure.score]) for measure in measures]
        for column in columns
        if all(measure.score in report.intervals[column.name] for measure in measures)
    }
    if len(measures) < 2 or not estimates:
        return None
    figure, axes = plot(4.2, 2.9)
    for column, (x, y) in estimates.items():  # each is mean, low, high
        for line_x, line_y in ((x[1:], [y[0]] * 2), ([x[0]] * 2, y[1:])):
            axes.plot(line_x, line_y, color=column.colour, alpha=0.75, linewidth=1.6, solid_capstyle="butt")
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
        _badge(axes, x[0], y[0], column=column)
    axes.margins(0.16)
    _fit_axis(axes, "x", measures[0])
    _fit_axis(axes, "y", measures[1])
    return (
        "Spread against fidelity",
        (
            "Higher is more faithful, further right is more varied; variety without fidelity may be noise. Lines are "
            "95 % intervals. A ring marks the best captioner, a cross marks suspect ones."
        ),
        figure,
    )


def _factor(measure: Measure) -> int:
    """Return the factor between a value of the measure and the number on an axis."""
    return 100 if measure.unit == "percent" else 1


def _fit_axis(axes: Axes, name: str, measure: Measure) -> None:
    """Label one axis, limit it to the measure's range, and turn it so that better is up or right."""
    low, high = getattr(axes, f"get_{name}lim")()
    limits = max(low, 0), min(high, 100) if measure.unit == "percent" else high
    getattr(axes, f"set_{name}lim")(limits[::-1] if measure.better == "lower" else limits)
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(MaxNLocator(5))
    axis.set_label_text(f"{measure.label}{', %' if measure.unit == 'percent' else ''}")


def _distributions(report: DiversityReport, columns: Sequence[PageColumn]) -> Drawing | None:
    """Plot the density of the pictures' spread, or else fidelity, one row for each column."""
    measure = catalogue.OF_SCORE[report.spread or report.fidelity]
    largest = 100 if measure.unit == "percent" else np.inf
    quantiles_of = {
        column: np.clip(np.multiply(_factor(measure), report.distributions[column.name][measure.score]), 0, largest)
        for column in columns
        if measure.score in report.distributions[column.name]
    }
    if not quantiles_of:
        return None
    low, high = min(map(min, quantiles_of.values())), max(map(max, quantiles_of.values()))
    width = (high - low or 1) / 40
    grid = np.linspace(max(low - 3 * width, 0), min(high + 3 * width, largest), GRID)
    figure, axes = plot(4.2, max(2.9, 0.7 + 0.36 * len(quantiles_of)))
    for row, (column, quantiles) in enumerate(quantiles_of.items()):
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
        _badge(axes, grid[0], -row + 0.2, column=column)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(0.85 - len(quantiles_of), 0.95)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{measure.label} of a picture{', %' if measure.unit == 'percent' else ''}")
    return (
        "Picture by picture",
        (
            f"How the pictures of each column are distributed over {measure.label}. The line is the median, and the "
            "middle half of the pictures is darker. Each column is drawn to its own height."
        ),
        figure,
    )


def _lengths(report: DiversityReport, columns: Sequence[PageColumn]) -> Drawing | None:
    """Plot how many captions of each column have how many words."""
    histograms = {
        column: histogram for column in columns if (histogram := report.rows[column.name]["length_histogram"])
    }
    longest = max((quantile(histogram, 0.995) or 0 for histogram in histograms.values()), default=0)
    if not longest:
        return None
    figure, axes = plot(4.2, 2.9)
    lengths, curves = np.arange(longest + 1), []
    for column, histogram in histograms.items():
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


def _rank_frequency(report: DiversityReport, columns: Sequence[PageColumn]) -> Drawing | None:
    """Plot how often the commonest, the second commonest and each further word of a column is used."""
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
            "From the commonest word on the left to the rarest. The curve of a column with few words, which uses "
            "each of them often, ends early."
        ),
        figure,
    )


def _draw(axes: Axes, curves: Curves, where: Mapping[PageColumn, np.ndarray]) -> None:
    """Draw each curve, with its mark where it is farthest from the other curves, among the points in `where`.

    No mark covers another, unless a curve has no free point.
    """
    for column, x, y in curves:
        axes.plot(x, y, color=column.colour, linewidth=1.9, linestyle=(0, (4, 2)) if column.human else "-")
    height = axes.yaxis.get_transform().transform  # from a value to its height on the axis, which may be logarithmic
    axes.autoscale_view()
    marked: list[np.ndarray] = []  # where marks stand, in points
    for column, x, y in curves:
        gaps = [
            np.abs(height(y) - height(np.interp(x, other_x, other_y)))
            for other, other_x, other_y in curves
            if other != column
        ]
        gap = np.min(gaps, axis=0) if gaps else height(y)
        places = 72 / axes.figure.dpi * axes.transData.transform(np.column_stack([x, y]))
        free = np.all([np.hypot(*(places - mark).T) > BADGE for mark in marked], axis=0) & where[column]
        farthest = int(np.where(free if free.any() else where[column], gap, -np.inf).argmax())
        marked.append(places[farthest])
        _badge(axes, x[farthest], y[farthest], column=column)


def _badge(axes: Axes, x: float, y: float, *, column: PageColumn) -> None:
    """Draw the mark of a column at a point."""
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
    """Return an empty figure and its axes, drawn with the page's ink; width and height are in inches."""
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
    """Return the figure as transparent inline SVG in the page's ink, the same bytes each time.

    The label must be unique on its page, because the ids in the SVG are made of it.
    """
    buffer = io.StringIO()
    label = label or figure.axes[0].get_xlabel()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used_ids = set(re.findall(r"#([\w.]+)", text))
    # Unused ids are removed, because several figures on a page have the same ones.
    text = re.sub(r'\bid="([^"]*)"', lambda match: match[0] if match[1] in used_ids else "", text)
    text = text.replace(INK, "currentColor")
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))
