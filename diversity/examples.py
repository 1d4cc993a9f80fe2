"""Choose the example pictures of the report: those with the best and the worst captions, and random ones."""

from collections.abc import Sequence

import numpy as np

from diversity.columns import ComparedPicture
from diversity.measures.fidelity import count_true
from diversity.measures.measure import Measure
from diversity.report import ExampleCaption, ExamplePicture
from diversity.sampled import Sampled
from diversity.words.degenerate import degenerate_reasons

EXAMPLES = 8  # pictures of each kind: worst, best, random


def example_pictures(
    pictures: Sequence[ComparedPicture],
    columns: Sequence[str],
    captioners: Sequence[str],
    *,
    sampled: Sampled,
    fidelity: Measure,
    seed: int,
) -> tuple[ExamplePicture, ...]:
    """Return some pictures of the sample, the worst, the best and random ones, each of them once.

    Pictures are ranked by the mean fidelity of the captioners' columns. If images are known for some pictures, only
    those pictures are chosen.
    """
    visible = [number for number, picture in enumerate(pictures) if picture.image] or list(range(len(pictures)))
    with np.errstate(invalid="ignore"):
        scores = [sampled.scores[name][fidelity.score][visible] for name in captioners]
        goodness = np.nan_to_num(fidelity.direction * np.mean(scores, axis=0), nan=-np.inf)
    ranked = [visible[rank] for rank in np.argsort(-goodness, kind="stable")]
    kinds = {
        "worst": ranked[::-1][:EXAMPLES],
        "best": ranked[:EXAMPLES],
        "random": np.random.default_rng(seed).permutation(visible)[:EXAMPLES].tolist(),
    }
    kind_of_picture: dict[int, str] = {}
    for kind, numbers in kinds.items():
        for number in numbers:
            kind_of_picture.setdefault(number, kind)
    return tuple(
        ExamplePicture(
            key=pictures[number].key,
            image=pictures[number].image,
            why=kind,
            captions={name: _example_captions(pictures[number], number, name, sampled=sampled) for name in columns},
        )
        for number, kind in kind_of_picture.items()
    )


def _example_captions(
    picture: ComparedPicture, number: int, column: str, *, sampled: Sampled
) -> tuple[ExampleCaption, ...]:
    """Return a picture's captions of one column with their scores; `number` is the picture's index in the sample."""
    captions = picture.captions[column]
    truncated = picture.truncated.get(column) or (False,) * len(captions)
    clip = sampled.caption_scores[column].get("clip_score", ())
    clip_scores = clip[number] if number < len(clip) else [np.nan] * len(captions)
    return tuple(
        ExampleCaption(
            text=caption,
            reasons=degenerate_reasons(caption, cut),
            facts=count_true(caption, picture.scene) if picture.scene else None,
            clip_score=float(score) if np.isfinite(score) else None,
        )
        for caption, cut, score in zip(captions, truncated, clip_scores, strict=True)
    )
