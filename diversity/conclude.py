"""Conclude from the measures of columns: intervals, differences, the verdict, and the report as a whole."""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import chain
from typing import Any

import numpy as np

from diversity.columns import labels
from diversity.examples import example_pictures
from diversity.inputs.count import Counted
from diversity.measures import catalogue
from diversity.measures.compression import COMPRESSOR
from diversity.measures.lexical import MBLEU_SMOOTHING
from diversity.measures.measure import Measure
from diversity.measures.pairs import Groups
from diversity.notes import notes_of, unscored_pictures
from diversity.report import DiversityReport
from diversity.sampled import Sampled
from diversity.verdict.answer import answer
from diversity.verdict.compare import Difference, Estimate, differences, estimates
from diversity.verdict.mixes import Mixes, mixes
from diversity.verdict.suspicions import suspect_columns
from diversity.verdict.winner import Verdict, decide, evidence_of
from diversity.words.tokens import TOKENIZER, words

QUANTILES = np.linspace(0, 1, 41)  # the quantiles of a score over pictures that a report holds


def conclude(
    counted: Counted,
    sampled: Sampled,
    rows: Mapping[str, Mapping[str, Any]],
    captions: Mapping[str, Groups],
    *,
    semantic_pictures: int,
    seed: int,
) -> DiversityReport:
    """Return the report of measured columns.

    rows: the numbers of each column. captions: those of the sample.
    """
    pictures, scores, references = counted.sample.pictures, sampled.scores, counted.references
    intervals, differences, verdict = _compare(counted, sampled, rows, captions, seed)
    fidelity, spread = catalogue.OF_SCORE[verdict.measures[0]], _spread(rows, counted.names)
    mixed = _mixes(captions, counted, sampled, fidelity=fidelity, seed=seed)
    unscored = {name: unscored_pictures(scores[name], pictures, semantic_pictures) for name in rows}
    return DiversityReport(
        rows=rows,
        references=references,
        intervals=intervals,
        distributions={name: _quantiles(of_column) for name, of_column in scores.items()},
        differences=differences,
        verdict=verdict,
        fidelity=fidelity.score,
        spread=spread and spread.score,
        mixes=mixed,
        answer=answer(
            labels=labels(rows, references),
            references=references,
            pictures=_count_ranked_pictures(scores, verdict),
            intervals=intervals,
            differences=differences,
            verdict=verdict,
            spread=spread and spread.score,
            mixes=mixed,
            measures=catalogue.OF_SCORE,
            same=_same_captions({name: captions[name] for name in counted.names}),
        ),
        notes=notes_of(
            counted, rows, sampled=sampled, unscored=unscored, fidelity=fidelity, evidence=verdict.evidence
        ),
        degenerate_examples={
            name: {reason: examples for reason, examples in accumulator.examples.items() if examples}
            for name, accumulator in counted.accumulators.items()
        },
        unscored=unscored,
        examples=example_pictures(pictures, list(rows), counted.names, sampled=sampled, fidelity=fidelity, seed=seed),
        settings=_settings(sampled, len(pictures), seed),
    )


def _compare(
    counted: Counted,
    sampled: Sampled,
    rows: Mapping[str, Mapping[str, Any]],
    captions: Mapping[str, Groups],
    seed: int,
) -> tuple[Mapping[str, Mapping[str, Estimate]], tuple[Difference, ...], Verdict]:
    """Return the intervals of all scores, the differences between every two columns, and the verdict."""
    shifts, intervals = _intervals(sampled.scores, rows, seed)
    evidence, decisive = evidence_of(counted.names, intervals)
    spread = _spread(rows, counted.names)
    headline = [measure for measure in catalogue.headline(rows.values()) if measure.score]
    compared = dict.fromkeys(measure.score for measure in (*decisive, *([spread] if spread else ()), *headline))
    differences = _differences(sampled.scores, list(compared), shifts, seed=seed)
    suspects, doubts = suspect_columns(
        sampled.scores,
        sampled.signs,
        rows,
        captions=captions,
        columns=counted.names,
        human=counted.references,
        seed=seed,
        by_agreement=evidence == "references",
    )
    verdict = decide(
        evidence,
        decisive,
        spread,
        names=counted.names,
        intervals=intervals,
        differences=differences,
        suspects=suspects,
        doubts=doubts,
    )
    return intervals, differences, verdict


def _intervals(
    scores: Mapping[str, Mapping[str, np.ndarray]], rows: Mapping[str, Mapping[str, Any]], seed: int
) -> tuple[dict[tuple[str, str], float], dict[str, dict[str, Estimate]]]:
    """Return how far each (column, score) mean of the sample is below the number in the row, and the intervals.

    Intervals are estimated on the sample, but some numbers of the rows are counted over all captions. The intervals of
    these are shifted, so that they lie around the number that the row shows.
    """
    by_score = {(name, score): values for name, of_column in scores.items() for score, values in of_column.items()}
    sampled = estimates(by_score, seed)
    shifts = {(name, score): _shift(estimate, score, rows[name]) for (name, score), estimate in sampled.items()}
    intervals: dict[str, dict[str, Estimate]] = {name: {} for name in scores}
    for (name, score), estimate in sampled.items():
        intervals[name][score] = _possible(estimate.shifted(shifts[name, score]), score)
    return shifts, intervals


def _differences(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    measures: Sequence[str],
    shifts: Mapping[tuple[str, str], float],
    *,
    seed: int,
) -> tuple[Difference, ...]:
    """Return the differences between every two columns in the sample, shifted to those of the rows' numbers."""
    shifted = []
    for difference in differences(scores, measures, seed):
        shift = shifts[difference.first, difference.measure] - shifts[difference.second, difference.measure]
        shifted.append(difference._replace(estimate=difference.estimate.shifted(shift)))
    return tuple(shifted)


def _same_captions(captions: Mapping[str, Groups]) -> list[list[str]]:
    """Return the groups of several columns that have the same captions, word for word, in the same order."""
    groups: list[list[str]] = []
    for name, column in captions.items():
        for group in groups:
            pairs = zip(chain.from_iterable(column), chain.from_iterable(captions[group[0]]), strict=True)
            if all(caption == other or words(caption) == words(other) for caption, other in pairs):
                group.append(name)
                break
        else:
            groups.append([name])
    return [group for group in groups if len(group) > 1]


def _quantiles(scores: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Return the quantiles of each score that some pictures have; the page plots them."""
    return {
        score: np.nanquantile(values, QUANTILES).tolist()
        for score, values in scores.items()
        if not np.isnan(values).all()
    }


def _count_ranked_pictures(scores: Mapping[str, Mapping[str, np.ndarray]], verdict: Verdict) -> int:
    """Return how many pictures have the score that ranks the captioners."""
    ranking = verdict.measures[0]
    return max(int((~np.isnan(of_column[ranking])).sum()) for of_column in scores.values() if ranking in of_column)


def _shift(estimate: Estimate, score: str, row: Mapping[str, Any]) -> float:
    """Return how far the row's number, which may be counted over all pictures, is above the mean of the sample."""
    number = catalogue.OF_SCORE[score].value(row)
    return 0.0 if number is None else number - estimate.mean


def _possible(estimate: Estimate, score: str) -> Estimate:
    """Return the estimate with its interval cut at 0 and 100 % if the score is a share.

    The interval of a ratio of two sums can reach beyond these limits.
    """
    if catalogue.OF_SCORE[score].unit != "percent":
        return estimate
    return estimate._replace(low=max(estimate.low, 0.0), high=min(estimate.high, 1.0))


def _spread(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Measure | None:
    """Return the measure that stands for spread within a picture; None where each picture has one caption."""
    for measure in (catalogue.SELF_CIDER, catalogue.DIV[1]):
        if all(measure.value(rows[name]) is not None for name in names):
            return measure
    return None


def _mixes(
    captions: Mapping[str, Groups], counted: Counted, sampled: Sampled, *, fidelity: Measure, seed: int
) -> Mixes | None:
    """Measure what mixes of captioners add, on the pictures whose captions have scores for fidelity."""
    if len(counted.names) < 2:
        return None
    caption_scores = {name: sampled.caption_scores[name][fidelity.score] for name in counted.names}
    scored = min(map(len, caption_scores.values()))
    pictures = counted.sample.pictures[:scored]
    return mixes(
        {name: captions[name][:scored] for name in counted.names},
        caption_scores,
        fidelity,
        keys=[picture.key for picture in pictures],
        seed=seed,
        references=[picture.references for picture in pictures] if counted.references else None,
    )


def _settings(sampled: Sampled, pictures: int, seed: int) -> dict[str, Any]:
    """Return the settings and versions that the numbers of the report depend on."""
    versions = {"python": platform.python_version()}
    for name in ("capsmith", "numpy", "torch", "open_clip_torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "seed": seed,
        "sample_pictures": pictures,
        "tokenizer": TOKENIZER,
        "mbleu_smoothing": MBLEU_SMOOTHING,
        "compressor": COMPRESSOR,
        **sampled.settings,
        "versions": versions,
    }
