"""What a reader must know before the numbers of a report, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diversity.columns import Picture, labels
from diversity.inputs.count import Counted
from diversity.measures import catalogue
from diversity.measures.accumulate import find_caption
from diversity.measures.measure import Measure
from diversity.sampled import Sampled

COLLAPSE = 0.05  # of the pictures under one caption is worth a warning, from
COLLAPSE_PICTURES = 10


def notes_of(
    counted: Counted,
    rows: Mapping[str, Mapping[str, Any]],
    sampled: Sampled,
    unscored: Mapping[str, Mapping[str, Sequence[str]]],
    fidelity: Measure,
    evidence: str,
) -> tuple[str, ...]:
    """All notes: of what was counted, of the sample, and of pictures and models that say nothing."""
    notes = list(counted.notes)
    if counted.references is None:
        notes.append("No human captions to compare with. Noise looks diverse: read spread with care.")
    notes += _collapsed(counted, rows)
    if estimated := {name: error for row in rows.values() for name, error in row["sketched"].items()}:
        notes.append(
            "Estimated from a sample of all n-grams, as there are too many to keep: "
            + ", ".join(f"{name} ± {error:.1g}" for name, error in estimated.items())
            + " (standard errors)."
        )
    sample = len(counted.sample.pictures)
    if sample < counted.pictures:
        notes.append(
            f"Intervals, self-CIDEr, mixes and examples are of a seeded sample of {sample:,} of the "
            f"{counted.pictures:,} pictures."
        )
    notes += [*sampled.notes, *_without_score(unscored, fidelity, labels(rows, counted.references))]
    if evidence not in ("facts", "clip") and "clip_score" in sampled.scores[counted.names[0]]:
        notes.append(
            f"{sampled.settings['clip']} finds no column's pictures by their captions, so its CLIPScore decides nothing."
        )
    return tuple(notes)


def unscored_pictures(scores: Mapping[str, np.ndarray], pictures: Sequence[Picture]) -> dict[str, tuple[str, ...]]:
    """The keys of the pictures without a score, of each score that some pictures have.

    Pictures behind the last one that has it are left out: a model scored the first pictures only.
    """
    unscored = {}
    for score, values in scores.items():
        scored = np.flatnonzero(~np.isnan(values))
        if len(scored) and (without := np.flatnonzero(np.isnan(values[: scored[-1]])).tolist()):
            unscored[score] = tuple(pictures[number].key for number in without)
    return unscored


def _collapsed(counted: Counted, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which columns have one caption for many pictures."""
    notes = []
    for name, row in rows.items():
        share = catalogue.MOST_SHARED.value(row) or 0
        commonest = counted.accumulators[name].most_shared_hash()
        if commonest is None or share < COLLAPSE or share * row["pictures"] < COLLAPSE_PICTURES:
            continue
        caption = find_caption([picture.captions[name] for picture in counted.sample.pictures], commonest)
        notes.append(
            f"{labels(rows)[name]}: one caption stands for {100 * share:.0f} % of the pictures"
            + (f": “{caption}”" if caption else "")
        )
    return notes


def _without_score(
    unscored: Mapping[str, Mapping[str, Sequence[str]]], fidelity: Measure, names: Mapping[str, str]
) -> list[str]:
    """Which pictures count nothing towards the fidelity, or the words covered, of a column."""
    return [
        f"{names[column]}: pictures without {measure.label}, which count nothing there: {len(keys):,}, "
        f"as {', '.join(keys[:3])}."
        for column, scores in unscored.items()
        for measure in dict.fromkeys((fidelity, catalogue.WORD_COVERAGE))
        if (keys := scores.get(measure.score))
    ]
