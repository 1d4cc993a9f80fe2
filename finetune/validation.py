"""What a captioner says of held-out pictures, and how good that is."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from captioners.base import Captioner, Request, SamplingConfig
from diversity.measures import catalogue
from diversity.measures.accumulate import CaptionAccumulator
from diversity.measures.measure import Measure
from diversity.measures.references import reference_scores
from diversity.words.tokens import words

SHOWN_PICTURES = 6  # whose captions are kept, to be seen over time
SHOWN_SAMPLES = 2  # of each of them, beside the most probable caption
COLLAPSE_SHARE = 0.2  # of the pictures given one same caption is a warning, from
COLLAPSE_TIMES = 3  # times the share that one human caption has
COLLAPSE_PICTURES = 5  # and from so many pictures

Picture = tuple[str, Tensor, Sequence[str]]  # key, pixels (3, S, S), human captions

CAPTION_LOSS = Measure(
    ("caption",),
    "Caption loss",
    "Cross-entropy of a human caption's next token given the picture "
    "and the tokens before, mean over tokens, in nats. From 0.",
    better="lower",
)
CONTRASTIVE_LOSS = Measure(
    ("contrastive",),
    "Contrastive loss",
    "Cross-entropy of a picture's caption among those of its "
    "batch and of a caption's picture, their mean, in nats. From 0; the logarithm of the batch size where "
    "the captioner guesses, so compare at one batch size only. Radford et al. 2021.",
    better="lower",
)
SCORES = (
    Measure(
        ("cider_d",),
        "CIDEr-D",
        "What the most probable caption shares with the human ones and other pictures' lack, by "
        "tf-idf of 1- to 4-grams. 0 to 10; papers often give it times 100; compare on the same pictures only. Vedantam "
        "et al. 2015.",
        better="higher",
    ),
    Measure(
        ("bleu_4",),
        "BLEU-4",
        "Share of the most probable captions' 1- to 4-grams that the human captions have, geometric "
        "mean, short ones penalised, over the whole set. 0 to 1. Papineni et al. 2002.",
        better="higher",
    ),
    Measure(
        ("rouge_l",),
        "ROUGE-L",
        "Words, in order, that the most probable caption has in common with a human one: COCO's "
        "F-measure of the longest common subsequence. 0 to 1. Lin 2004.",
        better="higher",
    ),
    Measure(
        ("meteor",),
        "METEOR",
        "Words of the most probable caption that a human one has too, as they are, by stem or as "
        "synonyms of WordNet. 0 to 1. Lavie and Agarwal 2007.",
        better="higher",
    ),
    Measure(
        ("similarity",),
        "CLIP similarity",
        "Cosine of a picture's and its most probable caption's embedding by the "
        "captioner's own towers, mean. -1 to 1; the captioner judges itself, so compare within a run only. Hessel et al. "
        "2021.",
        better="higher",
    ),
    *catalogue.DISTINCT[:2],
    catalogue.MBLEU,
    catalogue.DEGENERATE,
    Measure(
        ("same_caption",),
        "One same caption",
        "Pictures that are given the commonest of the most probable captions ÷ "
        "pictures. 0 to 100 %; a high share means that the captioner no longer looks.",
        "percent",
        "lower",
    ),
)


class Validation(NamedTuple):
    """What a captioner says of held-out pictures, and how good that is; undefined scores are absent."""

    scores: dict[str, float]  # see `SCORES`, and "pictures"
    human: dict[str, float]  # of the human captions, as far as they need no references
    shown: dict[str, list[str]]  # key -> the most probable caption, then samples
    warning: str  # "" where all is well


def validate(
    captioner: Captioner,
    pictures: Sequence[Picture],
    sampling: SamplingConfig | None = None,
    *,
    similarity: bool = True,
) -> Validation:
    """Captions held-out pictures twice, with the most probable words and by sampling, and scores both.

    The first is compared with the human captions, the spread is measured among the samples (five, top-p 0.9, unless
    `sampling` says otherwise). The same pictures give the same draws each time. `similarity` is for captioners that have a
    common embedding of pictures and captions. Raises `ValueError` for no pictures.
    """
    if not pictures:
        raise ValueError("no held-out picture to validate on")
    sampling = sampling or SamplingConfig()
    greedy = SamplingConfig(
        strategy="greedy", max_length=sampling.max_length, min_length=sampling.min_length, prefix=sampling.prefix
    )
    requests = [Request(key, pixels) for key, pixels, _ in pictures]
    best = [captioned.captions[0] for captioned in captioner.caption(requests, greedy, similarity=similarity)]
    samples = [captioned.captions for captioned in captioner.caption(requests, sampling)]
    references = [captions for _, _, captions in pictures]

    scores = caption_scores(
        [caption.text for caption in best],
        [[caption.text for caption in drawn] for drawn in samples],
        references,
        [[caption.truncated for caption in drawn] for drawn in samples],
    )
    if similarity:
        scores["similarity"] = sum(caption.similarity or 0.0 for caption in best) / len(best)
    human = human_scores(references, sampling.num_captions)
    shown = {
        pictures[number][0]: [caption.text for caption in (best[number], *samples[number][:SHOWN_SAMPLES])]
        for number in evenly_spaced(len(pictures), SHOWN_PICTURES)
    }
    return Validation(scores, human, shown, collapse_warning(scores, human))


def caption_scores(
    captions: Sequence[str],
    samples: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    truncated: Sequence[Sequence[bool]] | None = None,
) -> dict[str, float]:
    """Scores of one caption and several samples per picture, all in one order; `truncated` marks samples that were cut.

    Pictures without human captions count for everything but the comparison with those.
    """
    described = [number for number, texts in enumerate(references) if any(map(words, texts))]
    scores = {"pictures": len(captions)}
    if described:
        scores |= reference_scores(
            [captions[number] for number in described], [references[number] for number in described]
        )
    return scores | _spread(samples, truncated) | {"same_caption": _same_caption(captions)}


def human_scores(references: Sequence[Sequence[str]], num_captions: int) -> dict[str, float]:
    """The scores that need no references, of the human captions; spread where each picture has `num_captions` of them."""
    human = [[text for text in texts if words(text)] for texts in references]
    human = [texts for texts in human if texts]
    if not human:
        return {}
    spread = _spread([texts[:num_captions] for texts in human])
    if min(map(len, human)) < num_captions:  # fewer captions look more varied
        spread = {"degenerate": spread["degenerate"]}
    return spread | {"same_caption": _same_caption([texts[0] for texts in human])}


def collapse_warning(scores: dict[str, float], human: dict[str, float]) -> str:
    """What to check, where one caption stands for many held-out pictures and human captions do not repeat so; else ""."""
    share, human_share = scores["same_caption"], human.get("same_caption", 0)
    if share < max(COLLAPSE_SHARE, COLLAPSE_TIMES * human_share) or share * scores["pictures"] < COLLAPSE_PICTURES:
        return ""
    return (
        f"One same caption for {share:.0%} of {scores['pictures']} held-out pictures (human captions: {human_share:.0%}): the "
        "captioner does not look at them. In the first steps from random weights this passes. Else check:\n"
        "- the weights it began with: random ones (--from-scratch), or an open_clip run without --pretrained or with a "
        "checkpoint that was loaded in part, say the same of every picture (open_clip issues #797, #751)\n"
        "- --learning-rate and --warmup: steps too large make it forget the pictures; 1e-5 suits most fine-tuning\n"
        "- --caption-weight: at 0 the decoder learns nothing\n"
        "- the data: captions that belong to other pictures, or say the same of most, teach it not to look"
    )


def evenly_spaced(count: int, most: int) -> list[int]:
    """Places of at most so many of `count` things, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(at * (count - 1) / (most - 1)) for at in range(most)]


def _spread(groups: Sequence[Sequence[str]], truncated: Sequence[Sequence[bool]] | None = None) -> dict[str, float]:
    accumulator = CaptionAccumulator()
    accumulator.update(groups, truncated)
    result = accumulator.result()
    return {
        name: result[name]
        for name in ("distinct_1", "distinct_2", "mbleu_4", "degenerate")
        if result[name] is not None
    }


def _same_caption(captions: Sequence[str]) -> float:
    accumulator = CaptionAccumulator()
    accumulator.update([[caption] for caption in captions])
    return accumulator.result()["most_shared"]
