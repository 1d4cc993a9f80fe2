"""The pictures with captions that a reader of the report sees: those with the best and the worst captions, and random ones."""

from collections.abc import Sequence

import numpy as np

from diversity.columns import Picture
from diversity.measures.fidelity import count_true
from diversity.measures.measure import Measure
from diversity.report import Example, ExampleCaption
from diversity.sampled import Sampled
from diversity.words.degenerate import degenerate_reasons

EXAMPLES = 8  # pictures of each kind


def example_pictures(
    pictures: Sequence[Picture],
    columns: Sequence[str],
    captioners: Sequence[str],
    sampled: Sampled,
    fidelity: Measure,
    seed: int,
) -> tuple[Example, ...]:
    """Some pictures of the sample: worst, best, and random ones, each once; only those whose image is known, if any is.

    They are ranked by the mean fidelity of the captioners' columns.
    """
    visible = [number for number, picture in enumerate(pictures) if picture.image] or list(range(len(pictures)))
    sign = -1 if fidelity.better == "lower" else 1
    with np.errstate(invalid="ignore"):
        scores = [sampled.scores[name][fidelity.score][visible] for name in captioners]
        goodness = np.nan_to_num(sign * np.mean(scores, axis=0), nan=-np.inf)
    ranked = [visible[rank] for rank in np.argsort(-goodness, kind="stable")]
    kinds = {
        "worst": ranked[::-1][:EXAMPLES],
        "best": ranked[:EXAMPLES],
        "random": np.random.default_rng(seed).permutation(visible)[:EXAMPLES].tolist(),
    }
    why = {}
    for kind, numbers in kinds.items():
        for number in numbers:
            why.setdefault(number, kind)
    return tuple(_example(pictures[number], number, kind, columns, sampled) for number, kind in why.items())


def _example(picture: Picture, number: int, why: str, columns: Sequence[str], sampled: Sampled) -> Example:
    """One picture with what is known of each of its captions; `number` is its place in the sample."""
    captions = {}
    for name in columns:
        truncated = picture.truncated.get(name) or (False,) * len(picture.captions[name])
        clip = sampled.caption_scores[name].get("clip_score", ())
        scores = clip[number] if number < len(clip) else [np.nan] * len(truncated)
        captions[name] = tuple(
            ExampleCaption(
                caption,
                degenerate_reasons(caption, cut),
                count_true(caption, picture.scene) if picture.scene else None,
                float(score) if np.isfinite(score) else None,
            )
            for caption, cut, score in zip(picture.captions[name], truncated, scores, strict=True)
        )
    return Example(picture.key, picture.image, why, captions)
