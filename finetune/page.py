"""The page of a training run: curves of losses and scores, and a captioner's captions of some pictures over time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from diversity.measures.measure import Measure
from diversity.page.page import thumbnail
from diversity.page.plots import COLOURS, REFERENCE_COLOUR, plot, svg
from diversity.words.degenerate import REASONS, degenerate_reasons
from finetune.checkpoints import LOG, VALIDATION_LOG
from finetune.validation import CAPTION_LOSS, CONTRASTIVE_LOSS, SCORES, evenly_spaced
from imagetext.outputs import write_file
from imagetext.pages import render_page

PAGE = "training.html"
TEMPLATE = Path(__file__).parent / "templates" / PAGE
TRAINING_COLOUR, HELD_OUT_COLOUR = COLOURS[0], COLOURS[1]
POINTS = 300  # largest number of points of a training curve; each is the mean of several steps if need be
SMOOTHED = 0.05  # share of the curve's length that is averaged for the bold line
TIMES_SHOWN = 8  # number of validations whose captions are shown
LETTERS = 400  # characters of a text that are shown; a click shows the rest
TICKS = 5
STEPS = (1, 2, 2.5, 5, 10)  # allowed distances between numbers on the vertical axis, times a power of ten
LOG_FROM = 100  # the gradient norm's axis is logarithmic if its maximum is more than this many times its minimum
BEFORE = "before training"

LEARNING_RATE = Measure(
    ("learning_rate",), "Learning rate", "The highest rate of the optimizer's parameter groups, at each step."
)
GRADIENT_NORM = Measure(
    ("gradient_norm",),
    "Gradient norm",
    "Norm of the gradients of all weights, before clipping. A lasting rise points to a learning rate that is too "
    "high.",
)
MEASURES = (CAPTION_LOSS, CONTRASTIVE_LOSS, *SCORES)  # those of captioners

Rows = Sequence[Mapping[str, Any]]


def write_training_page(
    folder: Path,
    *,
    name: str,
    pictures: Mapping[str, bytes] | None = None,
    references: Mapping[str, Sequence[str]] | None = None,
    measures: Sequence[Measure] = MEASURES,
    newest: Mapping[str, Any] | None = None,
    title: str = "Fine-tuning",
    sample_kind: str = "captions",
) -> None:
    """Write `training.html` from the folder's `train.jsonl` and `validation.jsonl`; the page needs no other file.

    Each line of both logs is a row with `step` and `samples`, the number of samples seen. Training rows have losses,
    and may have `learning_rate` and `gradient_norm`. Validation rows have losses and scores, and may have `human`
    (scores of the human captions), `chance` (scores without looking at the pictures), `samples_shown` (key ->
    captions) and `warning`.

    measures: the losses and scores to show. newest: a validation row that is not in the log yet.
    pictures, references: encoded pictures and human captions by key, shown beside the captions.
    sample_kind: what `samples` counts. Raises ValueError for a line that is not such a row.
    """
    training, validations = _read(folder / LOG), [*_read(folder / VALIDATION_LOG), *([newest] if newest else [])]
    colours = {"training": TRAINING_COLOUR, "held out": HELD_OUT_COLOUR}
    if sample_kind == "captions":
        colours["human"] = REFERENCE_COLOUR
    if validations and "chance" in validations[-1]:
        colours["without a look"] = REFERENCE_COLOUR
    curves = [
        curve
        for measure in (*measures, LEARNING_RATE, GRADIENT_NORM)
        for curve in _curves(measure, training, validations, sample_kind=sample_kind)
    ]
    page = render_page(
        TEMPLATE,
        title=f"{title} {name}",
        sample_kind=sample_kind,
        subtitle=_subtitle(training, validations, sample_kind),
        warning=validations[-1].get("warning", "") if validations else "",
        curves=curves,
        measures=list(dict.fromkeys(measure for measure, *_ in curves)),
        shortened=_shortened,
        table=_table(validations, measures),
        colours=colours,
        gallery=_gallery(validations, pictures or {}, references or {}),
        reasons=REASONS,
    )
    write_file(folder / PAGE, page)


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log, [] if there is no such file; an incomplete last line is left out."""
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"]), "samples": int(row["samples"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number}: not an object with numbers step and samples: {line[:80]!r}"
            ) from error
    return rows


def _subtitle(training: Rows, validations: Rows, sample_kind: str) -> str:
    last = max((*training[-1:], *validations[-1:]), key=lambda row: row["step"], default={"samples": 0, "step": 0})
    text = f"{_count(last['samples'])} {sample_kind} seen in {_count(last['step'])} steps"
    if validations:
        text += f", {len(validations)} validations on {_count(validations[-1].get('pictures', 0))} held-out pictures"
    return text


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _table(validations: Rows, measures: Sequence[Measure]) -> tuple[list[Measure], list[tuple[str, list[str]]]]:
    """Return the measures (columns) and rows of the first table: first and last validation, and human captions."""
    if not validations:
        return [], []
    last = validations[-1]
    rows = {f"{_count(row['samples'])} seen" if row["samples"] else BEFORE: row for row in (validations[0], last)}
    if last.get("human"):
        rows["Human captions"] = last["human"]
    columns = [measure for measure in measures if measure.path[0] in last]
    return columns, [(label, [measure.text(row) for measure in columns]) for label, row in rows.items()]


# --- curves --------------------------------------------------------------------------------------------------------


def _curves(
    measure: Measure, training: Rows, validations: Rows, *, sample_kind: str
) -> list[tuple[Measure, str, str, Markup]]:
    """Return the plots of a measure, each as the measure, a label suffix, the last value, and the plot.

    Training and validation share a plot. The contrastive loss has two, because it depends on the batch size, which
    differs between them. There is no plot if no row has the measure.
    """
    if measure is CONTRASTIVE_LOSS and _has(measure, training) and _has(measure, validations):
        trained = _curve(measure, training, [], sample_kind=sample_kind, suffix=", training")
        held_out = _curve(measure, [], validations, sample_kind=sample_kind, suffix=", held out")
        return [(measure, ", training", *trained), (measure, ", held out", *held_out)]
    if _has(measure, training) or _has(measure, validations):
        return [(measure, "", *_curve(measure, training, validations, sample_kind=sample_kind))]
    return []


def _has(measure: Measure, rows: Rows) -> bool:
    return len(_series(measure, rows)[0]) > 0


def _curve(
    measure: Measure, training: Rows, validations: Rows, *, sample_kind: str, suffix: str = ""
) -> tuple[str, Markup]:
    """Return the last value and the plot of a measure that some row has; `suffix` is added to its label."""
    trained, held_out = _series(measure, training), _series(measure, validations)
    figure, axes = plot(3.9, 2.2)
    if len(trained[0]):
        samples, values = _binned(*trained)
        if measure is not LEARNING_RATE:  # it is smooth already, and smoothing would change its warm-up
            axes.plot(samples, values, color=TRAINING_COLOUR, alpha=0.3, linewidth=0.9)
            values = _smoothed(values)
        axes.plot(samples, values, color=TRAINING_COLOUR, linewidth=1.8)
    if len(held_out[0]):
        axes.plot(*held_out, color=HELD_OUT_COLOUR, linewidth=1.8, marker="o", markersize=4.5)
    last_row = validations[-1] if validations else {}
    reference = {**last_row.get("human", {}), **last_row.get("chance", {})}.get(measure.path[0])
    if reference is not None:
        axes.axhline(reference, color=REFERENCE_COLOUR, linewidth=1.5, linestyle=(0, (4, 2)))
    axes.margins(x=0.02, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(TICKS))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _scale(axes, measure, trained[1])
    axes.set_xlabel(f"{sample_kind} seen")
    last = (held_out if len(held_out[0]) else trained)[1][-1]
    text = f"{last:.2g}" if measure is LEARNING_RATE else measure.written(last)
    return text, svg(figure, measure.label + suffix)


def _scale(axes: Axes, measure: Measure, trained: np.ndarray) -> None:
    """Put few numbers on the vertical axis, each in full; use a log scale for a gradient norm with outliers."""
    if measure is GRADIENT_NORM and 0 < LOG_FROM * trained.min() < trained.max():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    if measure in (LEARNING_RATE, GRADIENT_NORM):
        axes.set_ylim(0)
    if axes.dataLim.height < 1e-12 > abs(axes.dataLim.y1):  # zeros, up to rounding, give the axis no scale
        axes.set_ylim(0, 0.1)
    axes.yaxis.set_major_locator(MaxNLocator(TICKS, steps=STEPS))
    times, unit = (100, " %") if measure.unit == "percent" else (1, "")
    axes.yaxis.set_major_formatter(lambda value, _: f"{times * value:g}{unit}")


def _series(measure: Measure, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of samples seen and the measure's value, for the rows that have the measure."""
    points = [(row["samples"], row[measure.path[0]]) for row in rows if row.get(measure.path[0]) is not None]
    samples, values = np.array(points, float).reshape(-1, 2).T
    return samples, values


def _binned(samples: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means over equally many steps, so that the curve of a long run has few points."""
    bins = min(POINTS, len(samples))
    binned_samples, binned_values = (
        np.array([part.mean() for part in np.array_split(numbers, bins)]) for numbers in (samples, values)
    )
    return binned_samples, binned_values


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Return a centred moving average; near the ends the window is shorter."""
    reach = int(len(values) * SMOOTHED / 2)
    sums = np.concatenate([[0], np.cumsum(values)])
    indices = np.arange(len(values))
    start, end = np.maximum(indices - reach, 0), np.minimum(indices + reach + 1, len(values))
    return (sums[end] - sums[start]) / (end - start)


# --- captions over time --------------------------------------------------------------------------------------------


def _gallery(
    validations: Rows, pictures: Mapping[str, bytes], references: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return, for each example picture, its thumbnail, human captions, and the captioner's captions over time."""
    if not validations:
        return []
    rows = [validations[index] for index in evenly_spaced(len(validations), TIMES_SHOWN)]
    return [
        {
            "key": key,
            "thumbnail": thumbnail(pictures.get(key)),
            "references": list(references.get(key, ()))[:3],
            "times": _captions_over_time(rows, key),
        }
        for key in validations[-1].get("samples_shown", {})
    ]


def _captions_over_time(rows: Rows, key: str) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Return, for each row that has captions of the picture, the samples seen and the captions with their faults."""
    times = []
    for row in rows:
        captions = row.get("samples_shown", {}).get(key)
        if captions:
            label = _count(row["samples"]) if row["samples"] else "before"
            times.append((label, [(caption, degenerate_reasons(caption)) for caption in captions]))
    return times


def _shortened(text: str) -> tuple[str, str]:
    """Return the beginning of a long text, cut at a blank if possible, and the rest, which is "" for a short text."""
    if len(text) <= LETTERS:
        return text, ""
    cut = text.rfind(" ", LETTERS // 2, LETTERS) + 1 or LETTERS
    return text[:cut].rstrip(), text[cut:]
