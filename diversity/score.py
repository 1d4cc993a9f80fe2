"""Make a report of caption columns from the counts over all captions and the measures on a sample of pictures.

P: pictures of the sample
"""

import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import numpy as np

from diversity.columns import HUMAN, labels
from diversity.examples import example_pictures
from diversity.inputs.count import EXAMPLE_IMAGES, Counted, count_captions
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
from diversity.words.tokens import TOKENIZER, words
from imagetext.shown import Progress

SEMANTIC_PICTURES = 1000  # pictures of the sample that embedding models measure, unless the caller says otherwise
QUANTILES = np.linspace(0, 1, 41)  # the quantiles of a score over pictures that a report holds


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
    """Measure columns of captions, `{"name": [[caption, ...] per picture]}`, and compare them with human references.

    All sequences hold one entry per picture, in the same order. Columns are compared on the pictures for which all
    columns and the references have captions. Of each picture equally many captions of each column are compared: as
    many as its shortest column has, at most `columns.MOST_CAPTIONS`, chosen by the seed.

    scenes: descriptions of built-in pictures, whose facts are then checked. truncated: which captions a length limit
    cut. keys: names of the pictures in the examples. images: encoded pictures for the examples and for `clip`.
    embedder: a name for `diversity.measures.embedders.load_embedder`, or "none". clip: an open_clip model that
    compares captions with pictures. semantic_pictures: number of sampled pictures that these models measure.

    Raises `ValueError` that names every column that does not fit.
    """
    columns = dict(captions)
    if references is not None:
        columns[references_name] = references
    _check_columns(
        columns,
        captions,
        references=references,
        references_name=references_name,
        truncated=truncated or {},
        per_picture={"scenes": scenes, "keys": keys, "images": images},
    )
    counted = count_captions(
        columns,
        references_name if references is not None else None,
        truncated=truncated,
        scenes=scenes,
        keys=keys,
        images=images,
        seed=seed,
        keep_images=max(EXAMPLE_IMAGES, semantic_pictures if clip else 0),
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
    """Measure counted columns in every way that their inputs allow, and return the report."""
    pictures, captioners, references = counted.sample.pictures, counted.names, counted.references
    captions = {name: [picture.captions[name] for picture in pictures] for name in counted.accumulators}
    texts = {name: [caption for group in groups for caption in group] for name, groups in captions.items()}
    with ThreadPoolExecutor(1) as beside:  # compression does not hold Python's lock
        compressing = {name: beside.submit(compression_ratio, column, seed) for name, column in texts.items()}
        sampled = sample_scores(
            pictures,
            captioners,
            references,
            embedder=embedder,
            clip=clip,
            device=device,
            semantic_pictures=semantic_pictures,
        )
        ratios = {name: column.result() for name, column in compressing.items()}
    rows = _rows(counted, sampled, captions, texts=texts, ratios=ratios, seed=seed)
    scores = {name: sampled.scores[name] for name in rows}
    shifts, intervals = _intervals(scores, rows, seed)
    evidence, decisive = evidence_of(captioners, intervals)
    fidelity, spread = decisive[0], _spread(rows, captioners)
    headline = [measure for measure in catalogue.headline(rows.values()) if measure.score]
    compared = dict.fromkeys(measure.score for measure in (*decisive, *([spread] if spread else ()), *headline))
    differences = _differences(scores, list(compared), shifts, seed=seed)
    suspects, doubts = suspect_columns(
        scores,
        sampled.signs,
        rows,
        captions=captions,
        columns=captioners,
        human=references,
        seed=seed,
        by_agreement=evidence == "references",
    )
    verdict = decide(
        evidence,
        decisive,
        spread,
        names=captioners,
        intervals=intervals,
        differences=differences,
        suspects=suspects,
        doubts=doubts,
    )
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
            same=_same_captions({name: texts[name] for name in captioners}),
        ),
        notes=notes_of(counted, rows, sampled=sampled, unscored=unscored, fidelity=fidelity, evidence=evidence),
        degenerate_examples={
            name: {reason: examples for reason, examples in accumulator.examples.items() if examples}
            for name, accumulator in counted.accumulators.items()
        },
        unscored=unscored,
        examples=example_pictures(pictures, list(rows), captioners, sampled=sampled, fidelity=fidelity, seed=seed),
        settings=_settings(sampled, len(pictures), seed),
    )


def _rows(
    counted: Counted,
    sampled: Sampled,
    captions: Mapping[str, Groups],
    *,
    texts: Mapping[str, Sequence[str]],
    ratios: Mapping[str, float | None],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return the numbers of each column, over all its captions and over the captions of the sample.

    texts: the captions of the sample in one list. ratios: their `compression_ratio`.
    """
    rows = {}
    at_equal_length = equal_tokens(captions, seed, ratios=ratios)
    human = counted.accumulators[counted.references] if counted.references is not None else None
    for name in Progress(counted.accumulators, desc="measuring the sample", unit="column", delay=2):
        accumulator = counted.accumulators[name]
        rows[name] = {
            **accumulator.result(),
            "frames": frames(texts[name]),
            "compression": ratios[name],
            "equal_tokens": at_equal_length[name],
            **sampled.rows[name],
            "novelty": novelty(accumulator, human) if human and human is not accumulator else None,
        }
    return rows


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


def _same_captions(texts: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the groups of several columns that have the same captions, word for word, in the same order."""
    groups: list[list[str]] = []
    for name, column in texts.items():
        for group in groups:
            pairs = zip(column, texts[group[0]], strict=True)
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


def _check_columns(
    columns: Mapping[str, Groups],
    captions: Mapping[str, Groups],
    *,
    references: Groups | None,
    references_name: str,
    truncated: Mapping[str, Any],
    per_picture: Mapping[str, Sequence | None],
) -> None:
    """Raise `ValueError` with every problem of the arguments of `score_captions`."""
    problems = [] if captions else ["no column of captions"]
    if references is not None and references_name in captions:
        problems.append(f"{references_name!r} is the name of a column and of the references")
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
