"""Measure caption columns: over all their captions, and on a sample of pictures."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from diversity.columns import HUMAN
from diversity.conclude import conclude
from diversity.inputs.count import EXAMPLE_IMAGES, Counted, count_captions
from diversity.measures.accumulate import novelty
from diversity.measures.compression import compression_ratio
from diversity.measures.equal_tokens import equal_tokens
from diversity.measures.frames import frames
from diversity.measures.pairs import Groups
from diversity.report import DiversityReport
from diversity.sampled import Sampled, sample_scores
from imagetext.shown import Progress

SEMANTIC_PICTURES = 1000  # pictures of the sample that embedding models measure, unless the caller says otherwise


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
    pictures = counted.sample.pictures
    captions = {name: [picture.captions[name] for picture in pictures] for name in counted.accumulators}
    texts = {name: [caption for group in groups for caption in group] for name, groups in captions.items()}
    with ThreadPoolExecutor(1) as beside:  # compression does not hold Python's lock
        compressing = {name: beside.submit(compression_ratio, column, seed) for name, column in texts.items()}
        sampled = sample_scores(
            pictures,
            counted.names,
            counted.references,
            embedder=embedder,
            clip=clip,
            device=device,
            semantic_pictures=semantic_pictures,
        )
        ratios = {name: column.result() for name, column in compressing.items()}
    rows = _rows(counted, sampled, captions, texts=texts, ratios=ratios, seed=seed)
    return conclude(counted, sampled, rows, captions, semantic_pictures=semantic_pictures, seed=seed)


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
