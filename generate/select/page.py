"""The page of a selection: the distribution of the scores, the threshold, and how many records are kept."""

from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from diversity.page import page as diversity_page
from diversity.page.plots import COLOURS, INK, REFERENCE_COLOUR, plot, svg
from generate.select.config import SelectConfig
from generate.select.settle import FATES, KEPT, ScoreHistogram, SettledLimits
from imagetext.pages import render_page

TEMPLATE = Path(__file__).parent / "templates" / "select.html"
COLOUR_OF: dict[str, str] = dict(
    zip(FATES, (COLOURS[2], REFERENCE_COLOUR, COLOURS[3], COLOURS[4], COLOURS[1], COLOURS[7], COLOURS[5]), strict=True)
)


def render(config: SelectConfig, settled: SettledLimits, histogram: ScoreHistogram) -> str:
    """Return the HTML of the page, which loads nothing from elsewhere."""
    rows = [
        (name, meaning, COLOUR_OF[name], f"{count:,}", f"{100 * count / max(1, histogram.records):.1f} %")
        for name, meaning in _meanings(config, settled).items()
        if (count := histogram.fates[name])
    ]
    return render_page(
        TEMPLATE,
        diversity_page.TEMPLATE.parent,  # has the style of all reports
        answer=summary(config, settled, histogram)[0],
        by=config.by,
        where=config.where,
        inputs=config.input,
        columns=config.column,
        caps={"Of one caption": config.max_per_caption, "Of one class": config.max_per_class},
        threshold=None if settled.threshold is None else f"{settled.threshold.score:.6g}",
        limited=(len(settled.of_captions.names), len(settled.of_classes.names)),
        rows=rows,
        records=f"{histogram.records:,}",
        dry_run=config.dry_run,
        figure=_figure(config, settled, histogram) if histogram.counts.any() else None,
    )


def summary(config: SelectConfig, settled: SettledLimits, histogram: ScoreHistogram) -> list[str]:
    """Return lines on how many records are kept, and why the others are not; the first line is the result."""
    kept = histogram.fates[KEPT]
    share = kept / max(1, histogram.records)
    threshold = f"; the threshold of {config.by} is {settled.threshold.score:.6g}" if settled.threshold else ""
    meanings = _meanings(config, settled)
    left_out = [name for name in FATES if name != KEPT and histogram.fates[name]]
    return [
        f"{kept:,} of {histogram.records:,} records are kept ({share:.1%}){threshold}",
        *(f"  {histogram.fates[name]:,}: {meanings[name]}" for name in left_out),
    ]


def _meanings(config: SelectConfig, settled: SettledLimits) -> dict[str, str]:
    """Return each of FATES in words."""
    threshold = f" of {settled.threshold.score:.4g}" if settled.threshold else ""
    meanings = (
        "kept",
        f"below the threshold{threshold}",
        f"of a class with {config.max_per_class or 0:,} better records",
        f"of captions with {config.max_per_caption or 0:,} better records",
        f"no caption meets {config.where}" if config.where else f"no caption has {config.by}",
        "no captions, or no class",
        "cannot be used",
    )
    return dict(zip(FATES, meanings, strict=True))


def _figure(config: SelectConfig, settled: SettledLimits, histogram: ScoreHistogram) -> Markup:
    """Draw the histogram of the scores: bars stacked by the fates of the records, kept records at the bottom."""
    figure, axes = plot(5.0, 3.0)
    bottom = np.zeros(len(histogram.counts))
    for index, name in enumerate(FATES):
        counts = histogram.counts[:, index]
        axes.bar(
            histogram.edges[:-1],
            counts,
            np.diff(histogram.edges),
            bottom=bottom,
            align="edge",
            color=COLOUR_OF[name],
        )
        bottom += counts
    if settled.threshold:
        axes.axvline(settled.threshold.score, color=INK, linewidth=1.3, linestyle=(0, (4, 2)))
        right = settled.threshold.score < (histogram.edges[0] + histogram.edges[-1]) / 2
        axes.annotate(
            f"threshold {settled.threshold.score:.4g}",
            (settled.threshold.score, 1),
            xycoords=("data", "axes fraction"),
            xytext=(5 if right else -5, -2),
            textcoords="offset points",
            ha="left" if right else "right",
            va="top",
            color=INK,
            size=9,
        )
    axes.set_ylim(0, 1.12 * max(1, bottom.max()))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(f"best {config.by[:60]} of a record's captions")
    axes.set_ylabel("records")
    return svg(figure, "Distribution of the records' scores")
