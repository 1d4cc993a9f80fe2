"""From captions to a report: what was counted of all, and what is measured on the sample of pictures.

P: pictures of the sample
"""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from diversity.columns import HUMAN, labels
from diversity.examples import example_pictures
from diversity.inputs.count import Counted, count_captions
from diversity.measures import catalogue
from diversity.measures.accumulate import novelty
from diversity.measures.compression import COMPRESSOR, compression_ratio
from diversity.measures.equal_tokens import equal_tokens
from diversity.measures.frames import frames
from diversity.measures.lexical import MBLEU_SMOOTHING
from diversity.measures.measure import Measure
from diversity.measures.pairs import Groups
from diversity.notes import notes_of, unscored_pictures
from diversity.report import DiversityReport
from diversity.sampled import Sampled, sample_scores
from diversity.verdict.answer import answer
from diversity.verdict.compare import Difference, Estimate, differences, estimates
from diversity.verdict.mixes import Mixes, mixes
from diversity.verdict.suspicions import suspect_columns
from diversity.verdict.winner import Verdict, decide, evidence_of
from diversity.words.tokens import TOKENIZER
from imagetext.shown import Progress

SEMANTIC_PICTURES = 1000
QUANTILES = np.linspace(0, 1, 41)  # of a score over the pictures


def score_captions(
    captions: Mapping[str, Groups],
    *,
    references: Groups | None = None,
    references_name: str = HUMAN,
    scenes: Sequence[Mapping[str, Any] | None] | None = None,
    truncated: Mapping[str, Sequence[Sequence[bool]]] | None = None,
    keys: Sequence[str] | None = None,
    images: Sequence[bytes | None] | None = None,
    embedder: str = "none",
    clip: str | None = None,
    device: str = "cpu",
    semantic_pictures: int = SEMANTIC_PICTURES,
    seed: int = 0,
) -> DiversityReport:
    """Measures columns of captions, `{"name": [[caption, ...] per picture]}`, against each other and human references.

    All sequences are per picture, in one order. Columns are compared on the pictures for which all of them (and the
    references) have captions, with equally many captions of a picture: its least count, chosen by the seed. `scenes`
    describe built-in pictures, whose facts are then checked; `truncated` marks captions that a length limit cut; `keys` and
    encoded `images` serve the examples, and `clip`, an open_clip model that scores captions against pictures; `embedder`: see
    `diversity.measures.embedders`. Raises `ValueError` that names every column that does not fit.
    """
    columns = {**captions, **({references_name: references} if references is not None else {})}
    _check(
        columns,
        captions,
        references_name,
        references,
        truncated or {},
        {"scenes": scenes, "keys": keys, "images": images},
    )
    counted = count_captions(
        columns,
        references_name if references is not None else None,
        truncated=truncated,
        scenes=scenes,
        keys=keys,
        images=images,
        seed=seed,
        keep_images=max(48, semantic_pictures if clip else 0),
    )
    return report(counted, embedder=embedder, clip=clip, device=device, semantic_pictures=semantic_pictures, seed=seed)


def report(
    counted: Counted,
    *,
    embedder: str = "none",
    clip: str | None = None,
    device: str = "cpu",
    semantic_pictures: int = SEMANTIC_PICTURES,
    seed: int = 0,
) -> DiversityReport:
    """All that can be measured of counted columns."""
    pictures, captioners, references = counted.sample.pictures, counted.names, counted.references
    captions = {name: [picture.captions[name] for picture in pictures] for name in counted.accumulators}
    sampled = sample_scores(
        pictures,
        captioners,
        references,
        embedder=embedder,
        clip=clip,
        device=device,
        semantic_pictures=semantic_pictures,
        seed=seed,
    )
    rows = _rows(counted, sampled, captions, seed)
    scores = {name: sampled.scores[name] for name in rows}
    shifts, intervals = _intervals(scores, rows, seed)
    evidence, decisive = evidence_of(captioners, intervals)
    fidelity, spread = decisive[0], _spread(rows, captioners)
    headline = [measure for measure in catalogue.headline(rows.values()) if measure.score]
    compared = dict.fromkeys(measure.score for measure in (*decisive, *([spread] if spread else ()), *headline))
    differences = _differences(scores, list(compared), shifts, seed)
    suspects, doubts = suspect_columns(
        scores,
        sampled.signs,
        rows,
        captions,
        captioners,
        references,
        seed,
        by_agreement=evidence == "references",
    )
    verdict = decide(evidence, decisive, spread, captioners, intervals, differences, suspects, doubts)
    mixed = _mixes(captions, counted, sampled, fidelity, seed)
    unscored = {name: unscored_pictures(scores[name], pictures) for name in rows}
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
            pictures=_judged(scores, verdict),
            intervals=intervals,
            differences=differences,
            verdict=verdict,
            spread=spread and spread.score,
            mixes=mixed,
            measures=catalogue.OF_SCORE,
        ),
        notes=notes_of(counted, rows, sampled, unscored, fidelity, evidence),
        degenerate_examples={
            name: {reason: examples for reason, examples in accumulator.examples.items() if examples}
            for name, accumulator in counted.accumulators.items()
        },
        unscored=unscored,
        examples=example_pictures(pictures, list(rows), captioners, sampled, fidelity, seed),
        settings=_settings(sampled, len(pictures), seed),
    )


def _rows(counted: Counted, sampled: Sampled, captions: Mapping[str, Groups], seed: int) -> dict[str, dict[str, Any]]:
    """The numbers of each column: of all its captions, and of those of the sample."""
    rows = {}
    at_equal_length = equal_tokens(captions, seed)
    human = counted.accumulators[counted.references] if counted.references is not None else None
    for name in Progress(counted.accumulators, desc="measuring the sample", unit="column", delay=2):
        accumulator = counted.accumulators[name]
        texts = [caption for group in captions[name] for caption in group]
        rows[name] = {
            **accumulator.result(),
            "frames": frames(texts),
            "compression": compression_ratio(texts, seed),
            "equal_tokens": at_equal_length[name],
            **sampled.rows[name],
            "novelty": novelty(accumulator, human) if human and human is not accumulator else None,
        }
    return rows


def _intervals(
    scores: Mapping[str, Mapping[str, np.ndarray]], rows: Mapping[str, Mapping[str, Any]], seed: int
) -> tuple[dict[tuple[str, str], float], dict[str, dict[str, Estimate]]]:
    """How far the mean of each (column, score) of the sample lies below the row's number; and of each column the
    estimates of its scores, shifted by that."""
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
    seed: int,
) -> tuple[Difference, ...]:
    """The differences of every two columns in the sample, shifted to those of the rows' numbers."""
    shifted = []
    for difference in differences(scores, measures, seed):
        shift = shifts[difference.first, difference.measure] - shifts[difference.second, difference.measure]
        shifted.append(difference._replace(estimate=difference.estimate.shifted(shift)))
    return tuple(shifted)


def _quantiles(scores: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Where the pictures lie in each score that some have, for the plot."""
    return {
        score: np.nanquantile(values, QUANTILES).tolist()
        for score, values in scores.items()
        if not np.isnan(values).all()
    }


def _judged(scores: Mapping[str, Mapping[str, np.ndarray]], verdict: Verdict) -> int:
    """How many pictures have the score that ranks the captioners."""
    ranking = verdict.measures[0]
    return max(int((~np.isnan(of_column[ranking])).sum()) for of_column in scores.values() if ranking in of_column)


def _shift(estimate: Estimate, score: str, row: Mapping[str, Any]) -> float:
    """How far a sample's mean is from the row's number, which is of all pictures where that is counted of all."""
    number = catalogue.OF_SCORE[score].value(row)
    return 0.0 if number is None else number - estimate.mean


def _possible(estimate: Estimate, score: str) -> Estimate:
    """The estimate, its interval ended at 0 and 100 % where the score is a share; that of a ratio may reach beyond."""
    if catalogue.OF_SCORE[score].unit != "percent":
        return estimate
    return estimate._replace(low=max(estimate.low, 0.0), high=min(estimate.high, 1.0))


def _spread(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Measure | None:
    """The best measure of spread within a picture that there is, None with one caption a picture."""
    return next(
        (
            measure
            for measure in (catalogue.SELF_CIDER, catalogue.DIV[1])
            if all(measure.value(rows[name]) is not None for name in names)
        ),
        None,
    )


def _mixes(
    captions: Mapping[str, Groups], counted: Counted, sampled: Sampled, fidelity: Measure, seed: int
) -> Mixes | None:
    """What mixes of captioners add, on the pictures whose captions have scores for fidelity."""
    if len(counted.names) < 2:
        return None
    caption_scores = {name: sampled.caption_scores[name][fidelity.score] for name in counted.names}
    scored = min(map(len, caption_scores.values()))
    pictures = counted.sample.pictures[:scored]
    return mixes(
        {name: captions[name][:scored] for name in counted.names},
        caption_scores,
        fidelity,
        [picture.key for picture in pictures],
        seed,
        [picture.references for picture in pictures] if counted.references else None,
    )


def _settings(sampled: Sampled, pictures: int, seed: int) -> dict[str, Any]:
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


def _check(
    columns: Mapping[str, Groups],
    captions: Mapping[str, Groups],
    references_name: str,
    references: Groups | None,
    truncated: Mapping[str, Any],
    per_picture: Mapping[str, Sequence | None],
) -> None:
    problems = [] if captions else ["no column of captions"]
    if references is not None and references_name in captions:
        problems.append(f"{references_name!r} is a column and the references' name")
    for name, groups in columns.items():
        for picture, group in enumerate(groups):
            if isinstance(group, str) or not all(isinstance(caption, str) for caption in group):
                problems.append(f"column {name!r}, picture {picture}: {group!r} is not a list of strings")
                break
    sizes = {f"column {name!r}": len(groups) for name, groups in columns.items()}
    sizes |= {name: len(values) for name, values in per_picture.items() if values is not None}
    if len(set(sizes.values())) > 1:
        problems.append("unequal numbers of pictures: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    for name, marks in truncated.items():
        if name not in columns:
            problems.append(f"truncated {name!r}: no such column")
        elif list(map(len, marks)) != list(map(len, columns[name])):
            problems.append(f"truncated {name!r}: not one mark for each caption")
    if problems:
        raise ValueError("; ".join(problems))
