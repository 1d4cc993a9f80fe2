"""The page of a training run: curves of losses and scores, and what a captioner said of some pictures as it learned."""

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
POINTS = 300  # of a training curve: means of as many steps as that takes
SMOOTHED = 0.05  # of the curve's length is averaged for the bold line
TIMES_SHOWN = 8  # validations whose captions are shown
LETTERS = 400  # of a longer text the beginning is shown, the rest at a click
TICKS = 5
STEPS = (1, 2, 2.5, 5, 10)  # between numbers on the vertical axis, times a power of ten
LOG_FROM = 100  # times its least value: from this greatest one on, a gradient norm's axis is logarithmic
BEFORE = "before training"

LEARNING_RATE = Measure(("learning_rate",), "Learning rate", "Of the optimizer's first group, at each step.")
GRADIENT_NORM = Measure(
    ("gradient_norm",),
    "Gradient norm",
    "Of all weights, before it is clipped. A rise that stays points to a learning rate too high.",
)
MEASURES = (CAPTION_LOSS, CONTRASTIVE_LOSS, *SCORES)  # of captioners

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
    seen: str = "captions",
) -> None:
    """Writes `training.html` from the `train.jsonl` and `validation.jsonl` in the folder; nothing on it is outside it.

    Both hold a row per line with `step` and `samples`, how many captions, or what `seen` says, were seen. Training rows have
    losses and perhaps `learning_rate` and `gradient_norm`; validation rows losses, scores, `human` (the human captions' scores), `chance`,
    `samples_shown` (key -> captions) and `warning`, as far as there are any. `measures` are the losses and scores that are shown.
    `newest` is a validation that is not in its log yet. `pictures` (encoded) and `references`, by key, stand beside the captions.
    Raises `ValueError` for a line that is no such row.
    """
    training, validations = _read(folder / LOG), [*_read(folder / VALIDATION_LOG), *([newest] if newest else [])]
    colours = {"training": TRAINING_COLOUR, "held out": HELD_OUT_COLOUR}
    colours |= {"human": REFERENCE_COLOUR} if seen == "captions" else {}
    colours |= {"without a look": REFERENCE_COLOUR} if validations and "chance" in validations[-1] else {}
    curves = [
        curve
        for measure in (*measures, LEARNING_RATE, GRADIENT_NORM)
        for curve in _curves(measure, training, validations, seen)
    ]
    page = render_page(
        TEMPLATE,
        title=f"{title} {name}",
        seen=seen,
        subtitle=_subtitle(training, validations, seen),
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
    """The rows of a log, none where there is no such file; a last line that a stop cut short is left out."""
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


def _subtitle(training: Rows, validations: Rows, seen: str) -> str:
    last = max((*training[-1:], *validations[-1:]), key=lambda row: row["step"], default={"samples": 0, "step": 0})
    text = f"{_count(last['samples'])} {seen} seen in {_count(last['step'])} steps"
    if validations:
        text += f", {len(validations)} validations on {_count(validations[-1].get('pictures', 0))} held-out pictures"
    return text


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _text(measure: Measure, row: Mapping[str, Any]) -> str:
    """The row's number as a table shows it, a dash where the row has none."""
    return measure.text({measure.path[0]: row.get(measure.path[0])})


def _table(validations: Rows, measures: Sequence[Measure]) -> tuple[list[Measure], list[tuple[str, list[str]]]]:
    """The measures of the first table, and its rows: the first validation, the last, the human captions."""
    if not validations:
        return [], []
    last = validations[-1]
    rows = {f"{_count(row['samples'])} seen" if row["samples"] else BEFORE: row for row in (validations[0], last)}
    rows |= {"Human captions": last["human"]} if last.get("human") else {}
    shown = [measure for measure in measures if measure.path[0] in last]
    return shown, [(label, [_text(measure, row) for measure in shown]) for label, row in rows.items()]


# --- curves --------------------------------------------------------------------------------------------------------


def _curves(
    measure: Measure, training: Rows, validations: Rows, seen_what: str
) -> list[tuple[Measure, str, str, Markup]]:
    """The measure, of which pictures its curve is where that needs telling, its last value, and the curve over what was seen.

    A contrastive loss depends on the batch, and held-out pictures come in other ones than those that are trained on: these stand
    apart. None where no row has the measure.
    """
    if measure is CONTRASTIVE_LOSS and _has(measure, training) and _has(measure, validations):
        return [
            (measure, of, *_curve(measure, *rows, seen_what, of))
            for of, rows in ((", training", (training, [])), (", held out", ([], validations)))
        ]
    if _has(measure, training) or _has(measure, validations):
        return [(measure, "", *_curve(measure, training, validations, seen_what))]
    return []


def _has(measure: Measure, rows: Rows) -> bool:
    return len(_series(measure, rows)[0]) > 0


def _curve(measure: Measure, training: Rows, validations: Rows, seen_what: str, of: str = "") -> tuple[str, Markup]:
    """The last value and the curve of a measure that some row has; `of` is told after its label."""
    trained, held_out = _series(measure, training), _series(measure, validations)
    figure, axes = plot(3.9, 2.2)
    if len(trained[0]):
        seen, values = _binned(*trained)
        if measure is not LEARNING_RATE:  # that is smooth, and its rise would be no more what it was
            axes.plot(seen, values, color=TRAINING_COLOUR, alpha=0.3, linewidth=0.9)
            values = _smoothed(values)
        axes.plot(seen, values, color=TRAINING_COLOUR, linewidth=1.8)
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
    axes.set_xlabel(f"{seen_what} seen")
    last = (held_out if len(held_out[0]) else trained)[1][-1]
    text = f"{last:.2g}" if measure is LEARNING_RATE else _text(measure, {measure.path[0]: last})
    return text, svg(figure, measure.label + of)


def _scale(axes: Axes, measure: Measure, trained: np.ndarray) -> None:
    """Few numbers on the vertical axis, each written in full; of a gradient norm with outliers, in powers of ten."""
    if measure is GRADIENT_NORM and 0 < LOG_FROM * trained.min() < trained.max():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    if measure in (LEARNING_RATE, GRADIENT_NORM):
        axes.set_ylim(0)
    axes.yaxis.set_major_locator(MaxNLocator(TICKS, steps=STEPS))
    times, unit = (100, " %") if measure.unit == "percent" else (1, "")
    axes.yaxis.set_major_formatter(lambda value, _: f"{times * value:g}{unit}")


def _series(measure: Measure, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Captions seen and the measure's value, of the rows that have it."""
    points = [(row["samples"], row[measure.path[0]]) for row in rows if row.get(measure.path[0]) is not None]
    seen, values = np.array(points, float).reshape(-1, 2).T
    return seen, values


def _binned(seen: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of equally many steps, so that a long run's curve stays small."""
    bins = min(POINTS, len(seen))
    binned_seen, binned_values = (
        np.array([part.mean() for part in np.array_split(numbers, bins)]) for numbers in (seen, values)
    )
    return binned_seen, binned_values


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Moving average, centred, over what there is of the window at the ends."""
    reach = int(len(values) * SMOOTHED / 2)
    sums = np.concatenate([[0], np.cumsum(values)])
    at = np.arange(len(values))
    start, end = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return (sums[end] - sums[start]) / (end - start)


# --- captions over time --------------------------------------------------------------------------------------------


def _gallery(
    validations: Rows, pictures: Mapping[str, bytes], references: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Of each picture shown at the last validation: thumbnail, human captions, and (captions seen, captions) over time."""
    if not validations:
        return []
    shown = [validations[at] for at in evenly_spaced(len(validations), TIMES_SHOWN)]
    return [
        {
            "key": key,
            "thumbnail": thumbnail(pictures.get(key)),
            "references": list(references.get(key, ()))[:3],
            "times": [
                (
                    _count(row["samples"]) if row["samples"] else "before",
                    [(caption, degenerate_reasons(caption)) for caption in captions],
                )
                for row in shown
                if (captions := row.get("samples_shown", {}).get(key))
            ],
        }
        for key in validations[-1].get("samples_shown", {})
    ]


def _shortened(text: str) -> tuple[str, str]:
    """The beginning of a long text, cut at a blank where there is one, and the rest, "" of a short one."""
    if len(text) <= LETTERS:
        return text, ""
    cut = text.rfind(" ", LETTERS // 2, LETTERS) + 1 or LETTERS
    return text[:cut].rstrip(), text[cut:]
