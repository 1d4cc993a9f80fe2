"""Captions against their pictures, by an open_clip model: CLIPScore, RefCLIPScore, and whether a caption finds its picture.

P: pictures   E: dimension of the embedding   N: captions of a column   Q: pictures of the pool   k: captions of a picture
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from captioners.clip import captioner_name
from diversity.columns import labels
from diversity.measures.agreement import SAME, strange
from diversity.measures.embedders import AT_ONCE, Embedder, OpenClip
from diversity.measures.semantic import Groups, encode_columns, mean, sizes, split_rows
from imagetext.sample import decode_image
from imagetext.shown import Progress

POOL = 1000  # pictures among which captions search theirs, the first that decode
WEIGHT = 2.5  # of a cosine, as in the paper
PROMPT = "A photo depicts "  # before every caption, human ones too, as in the paper
RECALLS = (1, 5)


class ClipScores(NamedTuple):
    """Of one column: the CLIPScore of each caption, as one array (k,) a picture; scores by picture (P,), NaN where
    undefined; the block `clip` of its row; and `strange_clip` (P,), which `diversity.verdict.suspicions` looks at."""

    captions: list[np.ndarray]
    # clip_score, found_clip, r_at_1, r_at_5, image_coverage, consistency, with references ref_clip_score
    pictures: dict[str, np.ndarray]
    row: dict[str, Any]
    signs: dict[str, np.ndarray]


def clip_scores(
    clip: OpenClip,
    images: Sequence[bytes | None],
    columns: Mapping[str, Groups],
    references: Groups | None = None,
    human: str | None = None,
    captioners: Mapping[str, str] | None = None,
) -> tuple[dict[str, ClipScores], tuple[str, ...]]:
    """Scores each column's captions against encoded pictures; and what a reader must know of it, in sentences.

    columns[column][p] are the captions of picture p, references[p] all its human ones. `human` names the column that consists of
    some of them: no caption of it is its own reference. `captioners`: names of the columns' captioners where records state them;
    else column syn_text_NAME is NAME's. A picture that does not decode has no score, and no column has any if none does.

    clip_score: 2.5 max(cos(caption, picture), 0), mean over captions. 0 to 2.5, higher is better. Hessel et al. 2021,
    "CLIPScore: A Reference-free Evaluation Metric for Image Captioning"; as there, "A photo depicts " stands before
    each caption.

    ref_clip_score: harmonic mean of a caption's CLIPScore and its greatest cosine to a reference, no less than 0; mean over
    captions. 0 to 1.43, higher is better. Hessel et al. 2021.

    r_at_1, r_at_5: captions to which fewer than 1, 5 other pictures of the pool are as near as their own ÷ captions. 0 to 1,
    higher is better. The pool is the first 1,000 pictures that decode; undefined for others, and in a pool of no more than 1, 5.

    found_clip: the share of the pool's other pictures that are less near to a caption than its own, mean over
    captions. 0 to 1: ½ for captions of other pictures, higher is better.

    image_coverage: 1 for a picture of the pool to which one of its captions is nearer than all that the column has for the
    others, else 0. Higher is better.

    consistency: pairs of a picture's captions that find the same picture of the pool, its own or not, ÷ pairs; one to which no
    picture is clearly nearest finds none. 0 to 1; undefined for a single caption. The agreement over prompts by which Ge et al.
    2022, "Improving Zero-shot Generalization and Robustness of Multi-modal Models", tell how sure CLIP is of a picture, with its
    captions for prompts.
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
    human_vectors = (vectors.pop(), sizes(references)) if references is not None else None
    scores_of = {}
    for (name, groups), captions in zip(columns.items(), vectors, strict=True):
        owners = np.repeat(np.arange(len(groups)), sizes(groups))  # (N,)
        scores = WEIGHT * np.maximum(np.einsum("ne,ne->n", captions, pictures[owners], dtype=np.float64), 0)
        by_picture = {"clip_score": _means(scores, owners, len(groups)), **search(captions, owners, pictures, pool)}
        signs = {"strange_clip": by_picture.pop("strange_clip")}
        if human_vectors:
            nearest = _nearest_reference(captions, sizes(groups), *human_vectors, themselves=name == human)
            by_picture["ref_clip_score"] = _means(_harmonic(scores, nearest), owners, len(groups))
        cut = clip.cut([PROMPT + caption for group in groups for caption in group])
        scores_of[name] = ClipScores(
            split_rows(scores, sizes(groups)),
            by_picture,
            {**{score: mean(values) for score, values in by_picture.items()}, "pool": len(pool), "cut": cut},
            signs,
        )
    return scores_of, _notes(clip, scores_of, columns, len(pool), reasons, captioners or {})


def embed_images(clip: OpenClip, images: Sequence[bytes | None]) -> tuple[np.ndarray, list[str]]:
    """The embeddings (P, E) of encoded pictures, NaN where one does not decode, and the reasons; (P, 0) where none does."""
    import torch  # late, as everywhere in this room

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
    """`r_at_1`, `r_at_5`, `image_coverage`, `found_clip`, `consistency` (P,), see `clip_scores`; `strange_clip`.

    N Q numbers are held at once.
    """
    place = np.full(len(pictures), -1)
    place[pool] = np.arange(len(pool))
    searching = place[owners] >= 0
    captions, owners = captions[searching], owners[searching]  # from here on, N: captions in the pool
    place = place[owners]  # (N,)
    cosines = captions @ pictures[pool].T  # (N, Q)
    own = cosines[np.arange(len(place)), place]  # (N,)
    as_near = (cosines >= own[:, None] - SAME).sum(axis=1) - 1  # (N,) other pictures
    scores = {
        f"r_at_{n}": _means(as_near < n, owners, len(pictures)) if n < len(pool) else np.full(len(pictures), np.nan)
        for n in RECALLS
    }
    behind = 1 - as_near / (len(pool) - 1) if len(pool) > 1 else np.full(len(place), np.nan)  # (N,)
    scores |= {
        "found_clip": _means(behind, owners, len(pictures)),
        "strange_clip": _means(strange(behind), owners, len(pictures)),
    }
    if len(pool) > 1:
        first = cosines.max(axis=1, keepdims=True)
        alone = (cosines >= first - SAME).sum(axis=1) == 1  # (N,)
        scores["consistency"] = _alike(owners, np.where(alone, cosines.argmax(axis=1), -1), len(pictures))
    else:
        scores["consistency"] = np.full(len(pictures), np.nan)
    mine = place[:, None] == np.arange(len(pool))  # (N, Q)
    nearest = np.where(mine, cosines, -np.inf).max(axis=0, initial=-np.inf)  # (Q,)
    others = np.where(mine, -np.inf, cosines).max(axis=0, initial=-np.inf)
    covered = np.full(len(pictures), np.nan)
    covered[pool[mine.any(axis=0)]] = (nearest > others + SAME)[mine.any(axis=0)]
    return scores | {"image_coverage": covered if len(pool) > 1 else np.full(len(pictures), np.nan)}


def _alike(owners: np.ndarray, found: np.ndarray, pictures: int) -> np.ndarray:
    """Of the pairs of each picture's captions the share (P,) that found the same, NaN without a pair; -1 found nothing (N,)."""
    (of, _), counts = np.unique(np.stack([owners, found])[:, found >= 0], axis=1, return_counts=True)
    captions = np.bincount(owners, minlength=pictures)
    with np.errstate(invalid="ignore"):
        return np.bincount(of, counts * (counts - 1), pictures) / (captions * (captions - 1))


def _nearest_reference(
    captions: np.ndarray, counts: np.ndarray, references: np.ndarray, reference_counts: np.ndarray, themselves: bool
) -> np.ndarray:
    """Each caption's greatest cosine to a human one of its picture (N,), NaN without any; equal ones left out, `themselves`."""
    nearest = []
    for ours, human in zip(split_rows(captions, counts), split_rows(references, reference_counts), strict=True):
        cosines = ours @ human.T  # (k, M)
        if themselves:
            cosines = np.where(cosines > 1 - SAME, -np.inf, cosines)
        nearest.append(cosines.max(axis=1, initial=-np.inf))
    nearest = np.concatenate([*nearest, np.zeros(0)])
    return np.where(np.isfinite(nearest), nearest, np.nan)


def _harmonic(scores: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """The harmonic mean of scores and cosines, which are at least 0; 0 where both are."""
    cosines = np.maximum(cosines, 0)
    total = scores + cosines
    return np.divide(2 * scores * cosines, total, out=np.zeros_like(total), where=total != 0)


def _means(values: np.ndarray, owners: np.ndarray, pictures: int) -> np.ndarray:
    """The mean of each picture's values (P,), NaN where it has none or one that is NaN."""
    with np.errstate(invalid="ignore"):
        return np.bincount(owners, values, pictures) / np.bincount(owners, minlength=pictures)


def _notes(
    clip: OpenClip,
    found: Mapping[str, ClipScores],
    columns: Mapping[str, Groups],
    pool: int,
    reasons: Sequence[str],
    captioners: Mapping[str, str],
) -> tuple[str, ...]:
    notes, called = [], labels(columns)
    if reasons:
        notes.append(f"{len(reasons):,} pictures do not decode and have no CLIPScore, e.g.: {reasons[0]}")
    if pool < POOL:
        notes.append(f"Captions search their picture among {pool:,}, not {POOL:,}: it is found more easily.")
    for name, groups in columns.items():
        if cut := found[name].row["cut"]:
            notes.append(
                f"{called[name]}: the text tower of {clip.name} reads {clip.context_length} tokens and cut {cut:,} of "
                f"{sizes(groups).sum():,} captions."
            )
        if captioners.get(name, name.removeprefix("syn_text_")) == captioner_name(clip.name):
            notes.append(f"{called[name]}: {clip.name} wrote these captions and scores them, which favours them.")
    return tuple(notes)
