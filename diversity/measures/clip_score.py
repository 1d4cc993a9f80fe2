"""Compare captions with their pictures by an open_clip model: CLIPScore, RefCLIPScore, and self-retrieval.

P: pictures   Q: pictures of the pool   N: captions of a column   k: captions of a picture
M: human captions of a picture   E: dimension of the embedding
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from captioners.clip import captioner_name
from diversity.columns import labels
from diversity.measures.agreement import SAME, strange
from diversity.measures.embedders import AT_ONCE, Embedder, OpenClip
from diversity.measures.pairs import Groups
from diversity.measures.semantic import encode_columns, mean, sizes, split_rows
from imagetext.sample import decode_image
from imagetext.shown import Progress

POOL = 1000  # pictures among which captions search their own; the first pictures that decode
WEIGHT = 2.5  # factor of a cosine, as in the paper
PROMPT = "A photo depicts "  # before every caption, also before human ones, as in the paper
RECALLS = (1, 5)


class ClipScores(NamedTuple):
    """The scores of one column."""

    captions: list[np.ndarray]  # CLIPScore of each caption, one array (k,) per picture
    # (P,), NaN where undefined: clip_score, found_clip, r_at_1, r_at_5, image_coverage, consistency, and with
    # references ref_clip_score
    pictures: dict[str, np.ndarray]
    row: dict[str, Any]  # the block `clip` of the column's row in the report
    signs: dict[str, np.ndarray]  # strange_clip: (P,); `diversity.verdict.suspicions` reads it


def clip_scores(
    clip: OpenClip,
    images: Sequence[bytes | None],
    columns: Mapping[str, Groups],
    references: Groups | None = None,
    human: str | None = None,
) -> tuple[dict[str, ClipScores], tuple[str, ...]]:
    """Score each column's captions against encoded pictures; return the scores and notes for the reader.

    columns[column][p] are the captions of picture p, references[p] all its human captions. human: the column that
    contains some of these references; none of its captions is its own reference. A picture that does not decode has no
    score, and if no picture decodes there are no scores at all.

    clip_score: 2.5 max(cos(caption, picture), 0), mean over captions. 0 to 2.5, higher is better. Hessel et al. 2021,
    "CLIPScore: A Reference-free Evaluation Metric for Image Captioning"; as there, "A photo depicts " is put before
    each caption.

    ref_clip_score: harmonic mean of a caption's CLIPScore and its greatest cosine to a reference, at least 0; mean
    over captions. 0 to 1.43, higher is better. Hessel et al. 2021.

    r_at_1, r_at_5: captions to which fewer than 1 or 5 other pictures of the pool are as near as their own ÷ captions.
    0 to 1, higher is better. The pool is the first 1,000 pictures that decode. Undefined for other pictures, and where
    the pool has no more than 1 or 5 pictures.

    found_clip: the share of the pool's other pictures that are less near to a caption than its own, mean over
    captions. 0 to 1: ½ for captions of other pictures, higher is better.

    image_coverage: 1 for a picture of the pool to which one of its captions is nearer than all captions that the
    column has for other pictures, else 0. Higher is better.

    consistency: pairs of a picture's captions that find the same picture of the pool, right or wrong, ÷ pairs. A
    caption finds nothing where no picture is clearly nearest. 0 to 1; undefined for a single caption. Ge et al. 2022,
    "Improving Zero-shot Generalization and Robustness of Multi-modal Models", use the agreement over prompts to tell
    how sure CLIP is of a picture; here captions take the place of prompts.
    """
    pictures, reasons = embed_images(clip, images)  # (P, E)
    pool = np.flatnonzero(np.isfinite(pictures).all(axis=1))[:POOL]  # (Q,)
    if len(reasons) == len(images):
        return {}, (f"None of the {len(images):,} pictures decodes, so there is no CLIPScore, e.g.: {reasons[0]}",)
    vectors = encode_columns(
        Embedder(clip.name, clip.embed_texts),
        list(columns.values()) + ([references] if references is not None else []),
        PROMPT,
    )
    reference_vectors = split_rows(vectors.pop(), sizes(references)) if references is not None else None
    scores_of = {}
    for (name, groups), captions in zip(columns.items(), vectors, strict=True):
        owners = np.repeat(np.arange(len(groups)), sizes(groups))  # (N,)
        scores = WEIGHT * np.maximum(np.einsum("ne,ne->n", captions, pictures[owners], dtype=np.float64), 0)
        by_picture = {"clip_score": _means(scores, owners, len(groups))}
        by_picture |= search(captions, owners, pictures, pool=pool)
        signs = {"strange_clip": by_picture.pop("strange_clip")}
        if reference_vectors is not None:
            captions_of_pictures = split_rows(captions, sizes(groups))
            nearest = _nearest_reference(captions_of_pictures, reference_vectors, themselves=name == human)
            by_picture["ref_clip_score"] = _means(_harmonic(scores, nearest), owners, len(groups))
        cut = clip.count_cut([PROMPT + caption for group in groups for caption in group])
        scores_of[name] = ClipScores(
            captions=split_rows(scores, sizes(groups)),
            pictures=by_picture,
            row={**{score: mean(values) for score, values in by_picture.items()}, "pool": len(pool), "cut": cut},
            signs=signs,
        )
    return scores_of, _notes(clip, scores_of, columns, human=human, pool=len(pool), reasons=reasons)


def embed_images(clip: OpenClip, images: Sequence[bytes | None]) -> tuple[np.ndarray, list[str]]:
    """Return the embeddings (P, E) of encoded pictures, and the reasons why some do not decode.

    The embedding of a picture that does not decode is NaN; the shape is (P, 0) where no picture decodes.
    """
    import torch  # late, as everywhere in this package

    vector_of: dict[int, np.ndarray] = {}
    reasons = []
    with (
        torch.inference_mode(),
        Progress(desc=f"embedding by {clip.name}", total=len(images), unit="picture", delay=2) as progress,
    ):
        for start in range(0, len(images), AT_ONCE):
            pixels = {}
            for number in range(start, min(start + AT_ONCE, len(images))):
                try:
                    pixels[number] = clip.transform(decode_image(images[number]))  # (3, H, W)
                except ValueError as error:
                    reasons.append(str(error))
                progress.update()
            if pixels:
                vector_of |= zip(pixels, clip.embed_pictures(torch.stack(list(pixels.values()))).float().cpu().numpy())
    vectors = np.full((len(images), len(next(iter(vector_of.values()), ()))), np.nan, np.float32)
    for number, vector in vector_of.items():
        vectors[number] = vector
    return vectors, reasons


def search(captions: np.ndarray, owners: np.ndarray, pictures: np.ndarray, pool: np.ndarray) -> dict[str, np.ndarray]:
    """Search the picture of each caption among the pictures of the pool.

    Returns `r_at_1`, `r_at_5`, `image_coverage`, `found_clip` and `consistency`, see `clip_scores`, and
    `strange_clip`, each (P,). Memory: N Q numbers. captions (N, E), owners (N,) their pictures, pictures (P, E), pool
    (Q,) numbers of pictures.
    """
    column_of_picture = np.full(len(pictures), -1)
    column_of_picture[pool] = np.arange(len(pool))
    searching = column_of_picture[owners] >= 0
    captions, owners = captions[searching], owners[searching]  # from here on, N: captions in the pool
    own_column = column_of_picture[owners]  # (N,)
    cosines = captions @ pictures[pool].T  # (N, Q)
    own_cosine = cosines[np.arange(len(owners)), own_column]  # (N,)
    as_near = (cosines >= own_cosine[:, None] - SAME).sum(axis=1) - 1  # (N,) other pictures
    undefined = np.full(len(pictures), np.nan)
    scores = {}
    for n in RECALLS:
        scores[f"r_at_{n}"] = _means(as_near < n, owners, len(pictures)) if n < len(pool) else undefined
    behind = 1 - as_near / (len(pool) - 1) if len(pool) > 1 else np.full(len(owners), np.nan)  # (N,)
    scores["found_clip"] = _means(behind, owners, len(pictures))
    scores["strange_clip"] = _means(strange(behind), owners, len(pictures))
    if len(pool) <= 1:
        return scores | {"consistency": undefined, "image_coverage": undefined}

    greatest = cosines.max(axis=1, keepdims=True)
    clearly_nearest = (cosines >= greatest - SAME).sum(axis=1) == 1  # (N,)
    nearest_picture = np.where(clearly_nearest, cosines.argmax(axis=1), -1)
    scores["consistency"] = _share_of_equal_pairs(owners, nearest_picture, len(pictures))

    is_own = own_column[:, None] == np.arange(len(pool))  # (N, Q)
    nearest_own = np.where(is_own, cosines, -np.inf).max(axis=0, initial=-np.inf)  # (Q,)
    nearest_other = np.where(is_own, -np.inf, cosines).max(axis=0, initial=-np.inf)  # (Q,)
    has_captions = is_own.any(axis=0)  # (Q,)
    covered = np.full(len(pictures), np.nan)
    covered[pool[has_captions]] = (nearest_own > nearest_other + SAME)[has_captions]
    return scores | {"image_coverage": covered}


def _share_of_equal_pairs(owners: np.ndarray, results: np.ndarray, pictures: int) -> np.ndarray:
    """Return the share (P,) of the pairs of each picture's captions with equal `results` (N,); NaN without a pair.

    The result -1 equals no other.
    """
    pairs = np.stack([owners, results])[:, results >= 0]
    (owners_of_results, _), counts = np.unique(pairs, axis=1, return_counts=True)
    captions = np.bincount(owners, minlength=pictures)
    with np.errstate(invalid="ignore"):
        equal_pairs = np.bincount(owners_of_results, counts * (counts - 1), pictures)
        return equal_pairs / (captions * (captions - 1))


def _nearest_reference(
    captions: Sequence[np.ndarray], references: Sequence[np.ndarray], *, themselves: bool
) -> np.ndarray:
    """Return each caption's greatest cosine to a reference of its picture (N,), NaN without a reference.

    captions: (k, E) of each picture. references: (M, E) of each picture. themselves: the captions are references, and
    are not compared with equal ones.
    """
    nearest = []
    for of_picture, human in zip(captions, references, strict=True):
        cosines = of_picture @ human.T  # (k, M)
        if themselves:
            cosines = np.where(cosines > 1 - SAME, -np.inf, cosines)
        nearest.append(cosines.max(axis=1, initial=-np.inf))
    nearest = np.concatenate([*nearest, np.zeros(0)])
    return np.where(np.isfinite(nearest), nearest, np.nan)


def _harmonic(scores: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Return the harmonic mean of scores and cosines, with negative cosines as 0; 0 where both are 0."""
    cosines = np.maximum(cosines, 0)
    total = scores + cosines
    return np.divide(2 * scores * cosines, total, out=np.zeros_like(total), where=total != 0)


def _means(values: np.ndarray, owners: np.ndarray, pictures: int) -> np.ndarray:
    """Return the mean of each picture's values (P,); NaN for a picture without a value or with one that is NaN."""
    with np.errstate(invalid="ignore"):
        return np.bincount(owners, values, pictures) / np.bincount(owners, minlength=pictures)


def _notes(
    clip: OpenClip,
    scores: Mapping[str, ClipScores],
    columns: Mapping[str, Groups],
    *,
    human: str | None,
    pool: int,
    reasons: Sequence[str],
) -> tuple[str, ...]:
    """Return notes on the scores: undecoded pictures, a small pool, cut captions, self-scoring."""
    notes, label_of = [], labels(columns, human)
    if reasons:
        notes.append(f"{len(reasons):,} pictures do not decode and have no CLIPScore, e.g.: {reasons[0]}")
    if pool < POOL:
        notes.append(
            f"Captions search their picture among {pool:,} pictures, not {POOL:,}, so they find it more easily."
        )
    for name, groups in columns.items():
        if cut := scores[name].row["cut"]:
            notes.append(
                f"{label_of[name]}: the text tower of {clip.name} reads {clip.context_length} tokens and cut {cut:,} "
                f"of {sizes(groups).sum():,} captions."
            )
        if name.removeprefix("syn_text_") == captioner_name(clip.name):  # the column syn_text_NAME is by NAME
            notes.append(f"{label_of[name]}: {clip.name} wrote these captions and scores them, which favours them.")
    return tuple(notes)
