"""The notes of a report: what a reader must know before the numbers, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diversity.columns import ComparedPicture, labels
from diversity.inputs.count import Counted
from diversity.measures import catalogue
from diversity.measures.accumulate import find_caption
from diversity.measures.measure import Measure
from diversity.sampled import Sampled

COLLAPSE = 0.05  # a note warns of a caption that stands under at least this share of the pictures
COLLAPSE_PICTURES = 10  # and under at least so many pictures


def notes_of(
    counted: Counted,
    rows: Mapping[str, Mapping[str, Any]],
    *,
    sampled: Sampled,
    unscored: Mapping[str, Mapping[str, Sequence[str]]],
    fidelity: Measure,
    evidence: str,
) -> tuple[str, ...]:
    """Return all notes: about the counted captions, the sample, missing scores and models that decide nothing."""
    notes = list(counted.notes)
    if counted.references is None:
        notes.append("There are no human captions to compare with. Noise looks diverse, so read spread with care.")
    notes += _collapse_notes(counted, rows)
    if estimated := {name: error for row in rows.values() for name, error in row["sketched"].items()}:
        notes.append(
            "These measures are estimated from a sample of all n-grams, because there are too many n-grams to keep: "
            + ", ".join(f"{name} ± {error:.1g}" for name, error in estimated.items())
            + " (standard errors)."
        )
    sample = len(counted.sample.pictures)
    if sample < counted.pictures:
        notes.append(
            f"Intervals, self-CIDEr, mixes and examples are of a seeded sample of {sample:,} of the "
            f"{counted.pictures:,} pictures."
        )
    notes += [*sampled.notes, *_missing_score_notes(unscored, fidelity, labels(rows, counted.references))]
    if evidence not in ("facts", "clip") and "clip_score" in sampled.scores[counted.names[0]]:
        notes.append(
            f"{sampled.settings['clip']} cannot find the pictures of any column by their captions, so its CLIPScore "
            "decides nothing."
        )
    return tuple(notes)


def unscored_pictures(
    scores: Mapping[str, np.ndarray], pictures: Sequence[ComparedPicture], semantic_pictures: int
) -> dict[str, tuple[str, ...]]:
    """Return for each score that some pictures have the keys of the pictures that do not have it.

    After the first `semantic_pictures`, pictures after the last scored one are left out, because some measures score
    only the first pictures of the sample.
    """
    unscored = {}
    for score, values in scores.items():
        scored = np.flatnonzero(~np.isnan(values))
        if not len(scored):
            continue
        measured = max(int(scored[-1]) + 1, semantic_pictures)
        if missing := np.flatnonzero(np.isnan(values[:measured])).tolist():
            unscored[score] = tuple(pictures[number].key for number in missing)
    return unscored


def _collapse_notes(counted: Counted, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a note for each column that has one caption for many pictures."""
    notes = []
    for name, row in rows.items():
        share = catalogue.MOST_SHARED.value(row) or 0
        commonest = counted.accumulators[name].most_shared_hash()
        if commonest is None or share < COLLAPSE or share * row["pictures"] < COLLAPSE_PICTURES:
            continue
        caption = find_caption([picture.captions[name] for picture in counted.sample.pictures], commonest)
        notes.append(
            f"{labels(rows, counted.references)[name]}: one caption stands for {100 * share:.0f} % of the pictures"
            + (f": “{caption}”" if caption else "")
        )
    return notes


def _missing_score_notes(
    unscored: Mapping[str, Mapping[str, Sequence[str]]], fidelity: Measure, names: Mapping[str, str]
) -> list[str]:
    """Return a note for each column in which some pictures have no score for fidelity or for covered words."""
    notes = []
    for column, scores in unscored.items():
        for measure in dict.fromkeys((fidelity, catalogue.WORD_COVERAGE)):
            if keys := scores.get(measure.score):
                notes.append(
                    f"{names[column]}: {len(keys):,} pictures without {measure.label} are left out of its mean, "
                    f"for example {', '.join(keys[:3])}."
                )
    return notes
