"""The page of results: tables between marks `<!-- NAME -->` and `<!-- /NAME -->`, and pictures beside it.

P: points, S: seeds
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.evidence.sets import BASELINES, FIGURES, OF_ONE, POINTS
from benchmarks.evidence.students import ARMS, BASE, BOTH, DISTILLED, NONE, OF_WORDS, SCALED, result_file
from benchmarks.evidence.tau import Estimate, mean_and_error, paired_difference, tau_with_interval
from captioners.rules.changes import KINDS
from diversity.measures import catalogue
from diversity.measures.measure import Measure

SCORES = ("colour", "shape", "count", "background", "classification", "retrieval", "score")
MEANS = ("score", "classification", "retrieval")
TABLES = {  # labels of the arms in each comparison; the others are compared with the first
    "reinforcement": {
        NONE: "alt text alone",
        "much_p09": "and synthetic captions",
        DISTILLED: "alt text, distilled",
        BOTH: "and synthetic captions, distilled",
    },
    "captioners": {
        "pretrained_p09": "captions of the pretrained captioner",
        "much_p09": "of the fine-tuned one",
        NONE: "no captions",
    },
    "several": {
        "one_captioner": "three captions of one captioner",
        "three_captioners": "one caption of each of three",
    },
    "scales": {
        BOTH: f"{BASE:g} and {BASE:g}",
        **{name: "{:g} and {:g}".format(*arm.scales) for name, arm in SCALED.items() if name != BOTH},
    },
}
WORDS = {  # students of texts that are made from texts; without a language model there are no rewrites
    "words_none": "alt text alone",
    "words_negatives": "alt text, and hard negatives of it",
    "words_captions": "alt text and captions",
    "words_captions_negatives": "alt text and captions, and hard negatives of these",
    "rewrites": "alt text and rewrites of it",
    "rewrites_captions": "alt text, rewrites of it and captions",
}
CHOICES = ("choice", *(f"choice_{kind}" for kind in KINDS))
BLUE, ORANGE, GREEN, GREY = "#3f7fd6", "#d8722f", "#3d9b78", "#8b9099"
COLOURS = {"pretrained": GREY, "little": ORANGE, "much": BLUE, "long": GREEN}
Runs = dict[str, list[dict[str, Any]]]


def write_page(page: Path, output: Path) -> None:
    """Write tables and pictures of all results so far.

    Raises: ValueError, if there are none, or the page lacks a mark
    """
    tables, pictures = words_tables(output), {}
    if seeds_of(output, ARMS):
        of_captions, pictures = captions_tables(output)
        tables |= of_captions
    if not tables:
        raise ValueError(f"{output}: there is no seed yet that every arm has")
    fill(page, tables, pictures)


def fill(page: Path, tables: Mapping[str, str], pictures: Mapping[str, Figure]) -> None:
    """Write each table between the marks of its name, and the pictures beside the page.

    Raises: ValueError, if the page lacks a mark
    """
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        marked = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(marked, lambda match: f"{match[1]}{table}\n{match[2]}", text, flags=re.S)
        if not count:
            raise ValueError(f"{page}: no marks <!-- {name} --> and <!-- /{name} -->")
    page.write_text(text, encoding="utf-8")
    for name, figure in pictures.items():
        figure.savefig(page.with_name(f"{page.stem}-{name}.png"), dpi=150, bbox_inches="tight")


def captions_tables(output: Path) -> tuple[dict[str, str], dict[str, Figure]]:
    """The tables and pictures of captions and distillation, by name."""
    runs = read_runs(output, ARMS)
    rows = json.loads((output / "figures.json").read_text(encoding="utf-8"))
    gains = np.array(
        [
            [[run[name] - base[name] for run, base in zip(runs[point], runs[NONE])] for point in POINTS]
            for name in MEANS
        ]
    )  # (3, P, S)
    taus = {
        figure: [tau_with_interval(direction(figure) * ranked(figure, rows), of_judge) for of_judge in gains]
        for figure in (*BASELINES, *FIGURES)
    }
    tables = {name: comparison(runs, arms) for name, arms in TABLES.items()}
    tables |= {
        "points": points_table(rows, gains),
        "tau": tau_table(taus),
        "seeds": f"{len(runs[NONE])} seeds of each arm.",
    }
    return tables, {"arms": arms_figure(runs), "points": points_figure(rows, gains[0]), "tau": tau_figure(taus)}


def words_tables(output: Path) -> dict[str, str]:
    """The tables of texts made from texts, by name: scores and held-out choices. {} if no seed has all arms."""
    arms = {arm: words for arm, words in WORDS.items() if arm in OF_WORDS or result_file(output, arm, 0).exists()}
    if not seeds_of(output, arms):
        return {}
    runs = read_runs(output, arms)
    return {
        "words": comparison(runs, arms),
        "choices": comparison(runs, arms, CHOICES, "choice"),
        "words-seeds": f"{len(runs['words_none'])} seeds of each arm.",
    }


def seeds_of(output: Path, arms: Iterable[str]) -> list[int]:
    """The seeds for which all these arms have results."""
    return [seed for seed in range(100) if all(result_file(output, arm, seed).exists() for arm in arms)]


def read_runs(output: Path, arms: Iterable[str]) -> Runs:
    """The scores of each arm for the seeds that all arms have, in the order of the seeds."""
    seeds = seeds_of(output, arms)
    return {
        arm: [json.loads(result_file(output, arm, seed).read_text(encoding="utf-8")) for seed in seeds] for arm in arms
    }


def ranked(figure: Measure, rows: dict[str, Any]) -> np.ndarray:
    """The values (P,) of a figure for all points."""
    values = [figure.value(rows[point]) for point in POINTS]
    return np.array([OF_ONE[figure] if value is None else value for value in values], float)


def direction(figure: Measure) -> int:
    return -1 if figure.better == "lower" else 1


# --- tables --------------------------------------------------------------------------------------------------------


def comparison(runs: Runs, arms: dict[str, str], scores: Sequence[str] = SCORES, compared: str = "score") -> str:
    """A table of means with standard errors, and of one score's paired difference to the first arm, in per cent."""
    first = next(iter(arms))
    lines = []
    for arm, words in arms.items():
        cells = [written(*mean_and_error([run[name] for run in runs[arm]])) for name in scores]
        difference = paired_difference(*([run[compared] for run in runs[name]] for name in (arm, first)))
        lines.append([words, *cells, "" if arm == first else interval(difference, 100, 1)])
    return markdown(["", *(name.removeprefix("choice_") for name in scores), "difference"], lines)


def points_table(rows: dict[str, Any], gains: np.ndarray) -> str:
    measures = (
        catalogue.LENGTH,
        catalogue.CIDER,
        catalogue.CLIP_SCORE,
        catalogue.SELF_CIDER,
        catalogue.PRECISION,
        catalogue.RECALL,
        catalogue.WORD_COVERAGE,
        catalogue.DEGENERATE,
    )
    best_first = np.argsort(-gains[0].mean(axis=1), kind="stable")
    names = list(POINTS)
    return markdown(
        ["captions", *(f"{measure.label} {measure.arrow}".strip() for measure in measures), "gain"],
        [
            [
                POINTS[names[index]].words,
                *(measure.text(rows[names[index]]) for measure in measures),
                written(*mean_and_error(gains[0, index])),
            ]
            for index in best_first
        ],
    )


def tau_table(taus: dict[Measure, list[Estimate]]) -> str:
    by_value = sorted(taus, key=lambda figure: -taus[figure][0].value)
    return markdown(
        ["figure", "", *(f"τ with the gain in {name}" for name in MEANS)],
        [
            [
                f"{figure.label} {figure.arrow}".strip(),
                "baseline" if figure in BASELINES else "",
                *(interval(tau, 1, 2) for tau in taus[figure]),
            ]
            for figure in by_value
        ],
    )


def written(mean: float, error: float) -> str:
    """A mean and its error as text, in per cent."""
    return f"{100 * mean:.1f}" + ("" if np.isnan(error) else f" ± {100 * error:.1f}")


def interval(estimate: Estimate, factor: float, digits: int) -> str:
    value, low, high = (f"{factor * number:+.{digits}f}" for number in estimate)
    return f"{value} [{low}, {high}]"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


# --- pictures ------------------------------------------------------------------------------------------------------


def arms_figure(runs: Runs) -> Figure:
    """A plot of the scores of all seeds and their mean, for each arm of the comparisons."""
    figure = Figure(figsize=(7.2, 4.4))
    axes = figure.add_subplot()
    labels, height = [], 0
    for number, arms in enumerate(TABLES.values()):
        for arm, words in arms.items():
            scores = [100 * run["score"] for run in runs[arm]]
            axes.plot(scores, [height] * len(scores), "o", color=GREY, markersize=4)
            axes.plot(
                np.mean(scores), height, "|", color=(BLUE, ORANGE)[number % 2], markersize=16, markeredgewidth=2.5
            )
            labels.append((height, words if arm not in SCALED or number == 0 else f"logit scales {words}"))
            height += 1
        height += 0.8
    axes.set_yticks(*zip(*labels))
    axes.invert_yaxis()
    return finish(axes, "score of the student, %: mean of zero-shot classification and retrieval")


def points_figure(rows: dict[str, Any], gains: np.ndarray) -> Figure:
    """Plots of the gain of each point against four figures; gains are (P, S)."""
    figure = Figure(figsize=(7.2, 5.4))
    measures = (catalogue.LENGTH, catalogue.CLIP_SCORE, catalogue.SELF_CIDER, catalogue.RECALL)
    for number, measure in enumerate(measures, 1):
        axes = figure.add_subplot(2, 2, number)
        for point, value, gain in zip(POINTS.values(), ranked(measure, rows), 100 * gains):
            axes.plot([value] * len(gain), gain, color=GREY, linewidth=1)
            axes.plot(
                value,
                gain.mean(),
                "s" if point.num_captions == 1 else "o",
                markersize=5,
                color=COLOURS[point.captioner],
            )
        axes.set_ylabel("gain, points of %" if number % 2 else "")
        finish(axes, measure.label)
    marks = [Line2D([], [], marker="o", linestyle="", color=colour, label=name) for name, colour in COLOURS.items()]
    square = Line2D(
        [], [], marker="s", linestyle="", color="none", markeredgecolor="black", label="one caption of a picture"
    )
    figure.tight_layout()
    figure.legend(handles=[*marks, square], ncols=5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.05))
    return figure


def tau_figure(taus: dict[Measure, list[Estimate]]) -> Figure:
    """A plot of each figure's tau with the gain in the score, with its interval."""
    figure = Figure(figsize=(7.2, 4.0))
    axes = figure.add_subplot()
    by_value = sorted(taus, key=lambda measure: -taus[measure][0].value)
    for row, measure in enumerate(by_value):
        value, low, high = taus[measure][0]
        colour = ORANGE if measure in BASELINES else BLUE
        axes.plot([low, high], [row, row], color=colour, linewidth=2)
        axes.plot(value, row, "o", color=colour)
    axes.set_yticks(range(len(by_value)), [f"{measure.label} {measure.arrow}".strip() for measure in by_value])
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    return finish(axes, "Kendall's τ with the student's gain; orange: baselines")


def finish(axes: Any, label: str) -> Figure:
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return axes.figure
