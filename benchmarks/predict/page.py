"""The page of results: tables between marks, and a picture beside it; see `benchmarks.evidence.page`.

C: columns, S: seeds
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.evidence.page import (
    BLUE,
    GREEN,
    GREY,
    MEANS,
    ORANGE,
    fill,
    finish,
    interval,
    markdown,
    read_runs,
    written,
)
from benchmarks.evidence.tau import kendall_tau, mean_and_error
from benchmarks.predict.design import PRIMARY, WORLDS, World
from benchmarks.predict.figures import BASELINES, COMPETITORS, LABELS, read_figures, turned
from benchmarks.predict.ranking import Ranks, holm, rank


class Results(NamedTuple):
    """Results of a world's columns: all figures (C,), of which higher counts as better, groups, and gains (C, S) by
    judge.
    """

    figures: Mapping[str, np.ndarray]
    groups: np.ndarray
    gains: Mapping[str, np.ndarray]


def write_page(page: Path, output: Path) -> None:
    """Write the results so far of all worlds, and a picture of each world beside the page.

    Raises: ValueError, if no world has a seed that every column has, or the page lacks a mark
    """
    tables, pictures = {}, {}
    for world in WORLDS:
        results = read_results(output, world)
        if results is None:
            continue
        ranks = {judge: rank(results.figures, gains, results.groups) for judge, gains in results.gains.items()}
        tables |= {
            f"{world.name}-columns": columns_table(world, results),
            f"{world.name}-within": within_table(ranks, world.primary),
            f"{world.name}-seeds": f"{results.gains['score'].shape[1]} seeds of each column; two of them "
            f"rank the columns of a group with τ {agreement(results):.2f} to each other.",
            f"{world.name}-picture": f"![Gains against the primary figure]({page.stem}-{world.name}.png)",
        }
        if len(world.groups) > 1:
            tables[f"{world.name}-overall"] = overall_table(ranks["score"], world.primary)
        pictures[world.name] = points_figure(results, world.primary)
    if not tables:
        raise ValueError(f"{output}: there is no seed yet that every column of a world has")
    fill(page, tables, pictures)


def read_results(output: Path, world: World) -> Results | None:
    """Read the figures of all columns, and the gains of their students over students without captions.

    Returns None if there is no seed that every column has.
    """
    none = f"{world.name}_none"
    runs = read_runs(output, (none, *world.columns))
    if not runs[none]:
        return None
    figures = turned(read_figures(output / f"{world.name}_figures", [*world.columns]))
    sizes = [len(group) for group in world.groups.values()]
    gains = {
        judge: np.array(
            [[run[judge] - base[judge] for run, base in zip(runs[name], runs[none])] for name in world.columns]
        )
        for judge in MEANS
    }
    return Results(
        figures | {"length": np.repeat([*world.groups], sizes)},  # of the whole set, and so equal in a group
        np.repeat(np.arange(len(world.groups)), sizes),
        gains,
    )


def agreement(results: Results) -> float:
    """The mean tau within groups between the gains of two seeds, which a perfect figure could reach."""
    pairs = itertools.combinations(results.gains["score"].T, 2)
    return float(np.mean([kendall_tau(first, second, results.groups) for first, second in pairs] or [np.nan]))


# --- tables --------------------------------------------------------------------------------------------------------


def columns_table(world: World, results: Results) -> str:
    """A table of the columns, with the best of each group first."""
    names = [PRIMARY, "found_clip", *BASELINES[1:3]]
    lines, columns = [], [*world.columns.values()]
    gains = results.gains["score"]
    best_first = sorted(range(len(columns)), key=lambda index: (results.groups[index], -gains[index].mean()))
    for index in best_first:
        length = f"{results.figures['length'][index]:.1f}"
        cells = [f"{results.figures[name][index]:.2f}" for name in names]
        lines.append([columns[index].words, length, *cells, written(*mean_and_error(gains[index]))])
    return markdown(["captions", "length", *(LABELS[name] for name in names), "gain"], lines)


def competitors_of(primary: str) -> list[str]:
    """All figures that were fixed in the beginning, except the primary one of a world and the baselines."""
    return [name for name in (PRIMARY, *COMPETITORS) if name != primary]


def within_table(ranks: Mapping[str, Mapping[str, Ranks]], primary: str) -> str:
    """A table of tau within groups for each judge; the p-values of the competitors are corrected for one another."""
    score, competitors = ranks["score"], competitors_of(primary)
    corrected = holm({name: score[name].p_within for name in competitors})
    lines = []
    for name in (primary, *sorted(competitors, key=lambda name: -score[name].within.value), *BASELINES[1:]):
        p = score[name].p_within if name == primary else corrected.get(name)
        cells = [interval(ranks[judge][name].within, 1, 2) for judge in ranks]
        lines.append([LABELS[name], role(name, primary), *cells, "" if p is None else f"{p:.4f}"])
    return markdown(["figure", "", *(f"τ within groups, {judge}" for judge in ranks), "p"], lines)


def overall_table(ranks: Mapping[str, Ranks], primary: str) -> str:
    """A table of tau over all columns, and of its difference to the tau of length."""
    competitors = competitors_of(primary)
    corrected = holm({name: ranks[name].p_above for name in competitors})
    lines = []
    for name in (primary, *sorted(competitors, key=lambda name: -ranks[name].overall.value), *BASELINES):
        p = ranks[name].p_above if name == primary else corrected.get(name)
        above = "" if name == "length" else interval(ranks[name].above, 1, 2)
        lines.append(
            [
                LABELS[name],
                role(name, primary),
                interval(ranks[name].overall, 1, 2),
                above,
                "" if p is None else f"{p:.4f}",
            ]
        )
    return markdown(["figure", "", "τ over all columns", "above length's", "p"], lines)


def role(name: str, primary: str) -> str:
    return "primary" if name == primary else "baseline" if name in BASELINES else ""


# --- the picture ---------------------------------------------------------------------------------------------------


def points_figure(results: Results, primary: str) -> Figure:
    """A plot of gains against the primary figure; groups of columns have colours."""
    figure = Figure(figsize=(6.0, 4.2))
    axes = figure.add_subplot()
    gains = 100 * results.gains["score"]
    for group, colour in zip(np.unique(results.groups), (GREY, BLUE, GREEN, ORANGE)):
        members = results.groups == group
        axes.errorbar(
            results.figures[primary][members],
            gains[members].mean(axis=1),
            gains[members].std(axis=1),
            fmt="o",
            markersize=5,
            linewidth=1,
            color=colour,
            label=f"{results.figures['length'][members][0]:g} words",
        )
    axes.set_ylabel("gain of the student, points of %")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    return finish(axes, LABELS[primary])
