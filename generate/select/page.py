"""The page of a selection: how worth is spread over the records, where the threshold lies, and what stays, in numbers."""

from pathlib import Path

import numpy as np
from markupsafe import Markup

from diversity.page import page as diversity_page
from diversity.page.plots import COLOURS, INK, REFERENCE_COLOUR, plot, svg
from generate.select.config import SelectConfig
from generate.select.settle import FATES, Settled, Spread
from imagetext.pages import render_page

TEMPLATE = Path(__file__).parent / "templates" / "select.html"
STYLE = diversity_page.TEMPLATE.with_suffix(".css")  # of all reports
COLOUR_OF: dict[str, str] = dict(
    zip(FATES, (COLOURS[2], REFERENCE_COLOUR, COLOURS[3], COLOURS[4], COLOURS[1], COLOURS[7], COLOURS[5]), strict=True)
)


def render(config: SelectConfig, settled: Settled, spread: Spread) -> str:
    """The whole page, which asks for nothing outside it."""
    rows = [
        (name, said, COLOUR_OF[name], f"{count:,}", f"{100 * count / max(1, spread.records):.1f} %")
        for name, said in _said(config, settled).items()
        if (count := spread.fates[name])
    ]
    return render_page(
        TEMPLATE,
        style=Markup(STYLE.read_text(encoding="utf-8")),
        answer=told(config, settled, spread)[0],
        by=config.by,
        where=config.where,
        inputs=config.input,
        columns=config.column,
        caps={"Of one caption": config.max_per_caption, "Of one class": config.max_per_class},
        threshold=None if settled.threshold is None else f"{settled.threshold.score:.6g}",
        limited=(len(settled.of_captions.names), len(settled.of_classes.names)),
        rows=rows,
        records=f"{spread.records:,}",
        dry_run=config.dry_run,
        figure=_figure(config, settled, spread),
    )


def told(config: SelectConfig, settled: Settled, spread: Spread) -> list[str]:
    """In words, what stays and by what the rest falls; the first line says it all."""
    stay, share = spread.fates[FATES[0]], spread.fates[FATES[0]] / max(1, spread.records)
    threshold = f"; the threshold of {config.by} is {settled.threshold.score:.6g}" if settled.threshold else ""
    said = _said(config, settled)
    return [
        f"{stay:,} of {spread.records:,} records stay ({share:.1%}){threshold}",
        *(f"  {spread.fates[name]:,}: {said[name]}" for name in FATES[1:] if spread.fates[name]),
    ]


def _said(config: SelectConfig, settled: Settled) -> dict[str, str]:
    """Each of FATES in words."""
    threshold = f" of {settled.threshold.score:.4g}" if settled.threshold else ""
    words = (
        "stay",
        f"below the threshold{threshold}",
        f"of a class with {config.max_per_class or 0:,} better records",
        f"of captions with {config.max_per_caption or 0:,} better records",
        f"no caption is {config.where}" if config.where else f"no caption has {config.by}",
        "no captions, or no class",
        "cannot be used",
    )
    return dict(zip(FATES, words, strict=True))


def _figure(config: SelectConfig, settled: Settled, spread: Spread) -> Markup:
    """How many records have which worth, by what becomes of them; those that stay stand on the axis."""
    figure, axes = plot(5.0, 3.0)
    below = np.zeros(len(spread.counts))
    for at, name in enumerate(FATES):
        axes.bar(
            spread.edges[:-1], spread.counts[:, at], np.diff(spread.edges), below, align="edge", color=COLOUR_OF[name]
        )
        below += spread.counts[:, at]
    if settled.threshold:
        axes.axvline(settled.threshold.score, color=INK, linewidth=1.3, linestyle=(0, (4, 2)))
        right = settled.threshold.score < (spread.edges[0] + spread.edges[-1]) / 2
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
    axes.set_ylim(0, 1.12 * max(1, below.max()))
    axes.set_xlabel(f"best {config.by[:60]} of a record's captions")
    axes.set_ylabel("records")
    return svg(figure, "How the records' worth is spread")
