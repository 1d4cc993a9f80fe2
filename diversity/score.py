"""From captions to a report: what was counted of all, and what is measured on the sample of pictures.

P: pictures of the sample
"""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from diversity.columns import HUMAN, Picture
from diversity.inputs.count import Counted, count_captions
from diversity.measures import catalogue
from diversity.measures.accumulate import find_caption, novelty
from diversity.measures.compression import COMPRESSOR, compression_ratio
from diversity.measures.equal_tokens import equal_tokens
from diversity.measures.fidelity import count_true
from diversity.measures.frames import frames
from diversity.measures.lexical import MBLEU_SMOOTHING
from diversity.measures.pairs import Groups
from diversity.report import DiversityReport, Example, ExampleCaption, labels
from diversity.sampled import Sampled, sample_scores
from diversity.verdict.answer import answer
from diversity.verdict.compare import Estimate, differences, estimates
from diversity.verdict.mixes import mixes
from diversity.verdict.suspicions import suspect_columns
from diversity.verdict.winner import Verdict, decide, evidence_of
from diversity.words.degenerate import degenerate_reasons
from diversity.words.tokens import TOKENIZER
from imagetext.shown import Progress

SHOWN = 8  # pictures of each kind in the browser
COLLAPSE = 0.05  # of the pictures under one caption is worth a warning, from
COLLAPSE_PICTURES = 10
SEMANTIC_PICTURES = 1000
QUANTILES = np.linspace(0, 1, 41)


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
    pictures = counted.sample.pictures
    sampled = sample_scores(
        pictures,
        counted.names,
        counted.references,
        embedder=embedder,
        clip=clip,
        device=device,
        semantic_pictures=semantic_pictures,
        seed=seed,
    )
    rows = {}
    at_equal_length = equal_tokens({name: _groups(pictures, name) for name in counted.accumulators}, seed)
    for name in Progress(counted.accumulators, desc="measuring the sample", unit="column", delay=2):
        texts = [caption for group in _groups(pictures, name) for caption in group]
        compared = counted.references not in (None, name)
        rows[name] = {
            **counted.accumulators[name].result(),
            "frames": frames(texts),
            "compression": compression_ratio(texts, seed),
            "equal_tokens": at_equal_length[name],
            **sampled.rows[name],
            "novelty": novelty(counted.accumulators[name], counted.accumulators[counted.references])
            if compared
            else None,
        }

    scores = {name: sampled.scores[name] for name in rows}
    of_scores = estimates(
        {(name, score): values for name, found in scores.items() for score, values in found.items()}, seed
    )
    shifts = {(name, score): _shift(estimate, score, rows[name]) for (name, score), estimate in of_scores.items()}
    intervals = {
        name: {
            score: _possible(of_scores[name, score].shifted(shifts[name, score]), score)
            for score in found
            if (name, score) in of_scores
        }
        for name, found in scores.items()
    }
    evidence, decisive = evidence_of(counted.names, intervals)
    fidelity, spread = decisive[0], _spread(rows, counted.names)
    shown = [measure.score for measure in catalogue.headline(rows.values()) if measure.score]
    compared = dict.fromkeys([*(measure.score for measure in decisive), *([spread.score] if spread else []), *shown])
    found = tuple(
        difference._replace(
            estimate=difference.estimate.shifted(
                shifts[difference.first, difference.measure] - shifts[difference.second, difference.measure]
            )
        )
        for difference in differences(scores, list(compared), seed)
    )
    captions = {name: _groups(pictures, name) for name in rows}
    suspected, doubts = suspect_columns(
        scores,
        sampled.signs,
        rows,
        captions,
        counted.names,
        counted.references,
        seed,
        by_agreement=evidence == "references",
    )
    verdict = decide(evidence, decisive, spread, counted.names, intervals, found, suspected, doubts)
    mixed = _mixes(pictures, counted, sampled, fidelity, seed)
    unscored = {name: _unscored(scores[name], pictures) for name in rows}
    notes = (
        *_notes(counted, rows, pictures),
        *sampled.notes,
        *_no_score(unscored, fidelity, labels(rows, counted.references)),
    )
    if evidence != "clip" and "clip_score" in scores[counted.names[0]] and evidence != "facts":
        notes += (
            f"{sampled.settings['clip']} finds no column's pictures by their captions, so its CLIPScore decides nothing.",
        )
    return DiversityReport(
        rows,
        counted.references,
        intervals,
        {
            name: {
                score: np.nanquantile(values, QUANTILES).tolist()
                for score, values in of_column.items()
                if not np.isnan(values).all()
            }
            for name, of_column in scores.items()
        },
        found,
        verdict,
        fidelity.score,
        spread and spread.score,
        mixed,
        answer(
            labels=labels(rows, counted.references),
            references=counted.references,
            pictures=_judged(scores, verdict),
            intervals=intervals,
            differences=found,
            verdict=verdict,
            spread=spread and spread.score,
            mixes=mixed,
            measures=catalogue.OF_SCORE,
        ),
        notes,
        {
            name: {reason: found for reason, found in accumulator.examples.items() if found}
            for name, accumulator in counted.accumulators.items()
        },
        unscored,
        _examples(pictures, list(rows), counted.names, sampled, fidelity, seed),
        _settings(sampled, len(pictures), seed),
    )


def _unscored(scores: Mapping[str, np.ndarray], pictures: Sequence[Picture]) -> dict[str, tuple[str, ...]]:
    """Of each score that some pictures have, the keys of those without it, but for pictures behind the last that was scored."""
    found = {}
    for score, values in scores.items():
        there = np.flatnonzero(~np.isnan(values))
        if len(there) and (without := np.flatnonzero(np.isnan(values[: there[-1]])).tolist()):
            found[score] = tuple(pictures[at].key for at in without)
    return found


def _no_score(
    unscored: Mapping[str, Mapping[str, Sequence[str]]], fidelity: catalogue.Measure, names: Mapping[str, str]
) -> list[str]:
    """Which pictures count nothing towards the fidelity, or the words covered, of a column."""
    return [
        f"{names[column]}: pictures without {measure.label}, which count nothing there: {len(keys):,}, "
        f"as {', '.join(keys[:3])}."
        for column, scores in unscored.items()
        for measure in dict.fromkeys((fidelity, catalogue.WORD_COVERAGE))
        if (keys := scores.get(measure.score))
    ]


def _judged(scores: Mapping[str, Mapping[str, np.ndarray]], verdict: Verdict) -> int:
    """How many pictures have the score that ranks the captioners."""
    return max(
        int((~np.isnan(of_column[verdict.measures[0]])).sum())
        for of_column in scores.values()
        if verdict.measures[0] in of_column
    )


def _groups(pictures: Sequence[Picture], name: str) -> list[tuple[str, ...]]:
    return [picture.captions[name] for picture in pictures]


def _shift(estimate: Estimate, score: str, row: Mapping[str, Any]) -> float:
    """How far a sample's mean is from the row's number, which is of all pictures where that is counted of all."""
    number = catalogue.OF_SCORE[score].value(row)
    return 0.0 if number is None else number - estimate.mean


def _possible(estimate: Estimate, score: str) -> Estimate:
    """The estimate, its interval ended at 0 and 100 % where the score is a share; that of a ratio may reach beyond."""
    if catalogue.OF_SCORE[score].unit != "percent":
        return estimate
    return estimate._replace(low=max(estimate.low, 0.0), high=min(estimate.high, 1.0))


def _spread(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> catalogue.Measure | None:
    """The best measure of spread within a picture that there is, None with one caption a picture."""
    return next(
        (
            measure
            for measure in (catalogue.SELF_CIDER, catalogue.DIV[1])
            if all(measure.value(rows[name]) is not None for name in names)
        ),
        None,
    )


def _mixes(pictures: Sequence[Picture], counted: Counted, sampled: Sampled, fidelity: catalogue.Measure, seed: int):
    if len(counted.names) < 2:
        return None
    of_captions = {name: sampled.caption_scores[name][fidelity.score] for name in counted.names}
    pictures = pictures[: min(map(len, of_captions.values()))]
    return mixes(
        {name: _groups(pictures, name) for name in counted.names},
        of_captions,
        fidelity,
        [picture.key for picture in pictures],
        seed,
        [picture.references for picture in pictures] if counted.references else None,
    )


def _notes(counted: Counted, rows: Mapping[str, Mapping[str, Any]], pictures: Sequence[Picture]) -> tuple[str, ...]:
    notes = list(counted.notes)
    if counted.references is None:
        notes.append("No human captions to compare with. Noise looks diverse: read spread with care.")
    for name, row in rows.items():
        share = catalogue.MOST_SHARED.value(row) or 0
        if share >= COLLAPSE and share * row["pictures"] >= COLLAPSE_PICTURES:
            caption = find_caption(_groups(pictures, name), counted.accumulators[name].most_shared_hash())
            notes.append(
                f"{labels(rows)[name]}: one caption stands for {100 * share:.0f} % of the pictures"
                + (f": “{caption}”" if caption else "")
            )
    if estimated := {name: error for row in rows.values() for name, error in row["sketched"].items()}:
        notes.append(
            "Estimated from a sample of all n-grams, as there are too many to keep: "
            + ", ".join(f"{name} ± {error:.1g}" for name, error in estimated.items())
            + " (standard errors)."
        )
    if len(pictures) < counted.pictures:
        notes.append(
            f"Intervals, self-CIDEr, mixes and examples are of a seeded sample of {len(pictures):,} of the "
            f"{counted.pictures:,} pictures."
        )
    return tuple(notes)


def _examples(
    pictures: Sequence[Picture],
    columns: Sequence[str],
    captioners: Sequence[str],
    sampled: Sampled,
    fidelity: catalogue.Measure,
    seed: int,
) -> tuple[Example, ...]:
    """The pictures of the browser: best, worst and random, of those whose image is here if any is."""
    seen = [at for at, picture in enumerate(pictures) if picture.image] or list(range(len(pictures)))
    up = -1 if fidelity.better == "lower" else 1
    with np.errstate(invalid="ignore"):
        goodness = np.nan_to_num(
            up * np.mean([sampled.scores[name][fidelity.score][seen] for name in captioners], axis=0), nan=-np.inf
        )
    ranked = [seen[at] for at in np.argsort(-goodness, kind="stable")]
    kinds = {
        "worst": ranked[::-1][:SHOWN],
        "best": ranked[:SHOWN],
        "random": np.random.default_rng(seed).permutation(seen)[:SHOWN].tolist(),
    }
    examples, taken = [], set()
    for why, places in kinds.items():
        for at in places:
            if at not in taken:
                taken.add(at)
                examples.append(_example(pictures[at], at, why, columns, sampled))
    return tuple(examples)


def _example(picture: Picture, at: int, why: str, columns: Sequence[str], sampled: Sampled) -> Example:
    captions = {}
    for name in columns:
        marks = picture.truncated.get(name) or (False,) * len(picture.captions[name])
        clip = sampled.caption_scores[name].get("clip_score", ())
        captions[name] = tuple(
            ExampleCaption(
                caption,
                degenerate_reasons(caption, marks[i]),
                count_true(caption, picture.scene) if picture.scene else None,
                float(clip[at][i]) if at < len(clip) and np.isfinite(clip[at][i]) else None,
            )
            for i, caption in enumerate(picture.captions[name])
        )
    return Example(picture.key, picture.image, why, captions)


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
        wrong = next(
            (
                at
                for at, group in enumerate(groups)
                if isinstance(group, str) or not all(isinstance(caption, str) for caption in group)
            ),
            None,
        )
        if wrong is not None:
            problems.append(f"column {name!r}, picture {wrong}: {groups[wrong]!r} is not a list of strings")
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
