"""Captions of held-out pictures during training, and their scores."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from captioners.base import Captioner, Request, SamplingConfig
from diversity.measures import catalogue
from diversity.measures.accumulate import CaptionAccumulator
from diversity.measures.measure import Measure
from diversity.measures.references import reference_scores
from diversity.words.tokens import words

EXAMPLE_PICTURES = 6  # number of pictures whose captions are logged, to be compared over time
EXAMPLE_SAMPLES = 2  # number of sampled captions of each of them, beside the most probable caption
# There is a warning if at least COLLAPSE_SHARE of the pictures, COLLAPSE_TIMES the share that the commonest human
# caption has, and COLLAPSE_PICTURES pictures get the same caption.
COLLAPSE_SHARE = 0.2
COLLAPSE_TIMES = 3
COLLAPSE_PICTURES = 5

HeldOutPicture = tuple[str, Tensor, Sequence[str]]  # key, pixels (3, S, S), human captions

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
    "Cross-entropy of a picture's caption among the captions of its batch, and of a caption's picture among the "
    "pictures: the mean of both, in nats. From 0; a captioner that guesses has the logarithm of the batch size, so "
    "compare at one batch size only. Radford et al. 2021.",
    better="lower",
)
SCORES = (
    Measure(
        ("cider_d",),
        "CIDEr-D",
        "How much the most probable caption shares with the human captions of its picture that those of other "
        "pictures lack, by tf-idf of 1- to 4-grams. 0 to 10; papers often give it times 100; compare on the same "
        "pictures only. Vedantam et al. 2015.",
        better="higher",
    ),
    Measure(
        ("bleu_4",),
        "BLEU-4",
        "Share of the most probable captions' 1- to 4-grams that the human captions have, too: geometric mean over "
        "the whole set, with a penalty for short captions. 0 to 1. Papineni et al. 2002.",
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
        "How many words the most probable caption and a human caption have in common: the same word, the same stem, "
        "or a synonym by WordNet. 0 to 1. Lavie and Agarwal 2007.",
        better="higher",
    ),
    Measure(
        ("similarity",),
        "CLIP similarity",
        "Cosine of a picture's and its most probable caption's embedding by the "
        "captioner's own towers, mean. -1 to 1; the captioner judges itself, so compare within a run only. Hessel et "
        "al. 2021.",
        better="higher",
    ),
    *catalogue.DISTINCT[:2],
    catalogue.MBLEU,
    catalogue.DEGENERATE,
    Measure(
        ("same_caption",),
        "One same caption",
        "Pictures whose most probable caption is the commonest one ÷ pictures. 0 to 100 %; a high share means that "
        "the captioner no longer looks at the pictures.",
        unit="percent",
        better="lower",
    ),
)


class Validation(NamedTuple):
    """Scores and example captions of a captioner on held-out pictures; undefined scores are absent."""

    scores: dict[str, float]  # those of `SCORES`, and "pictures"
    human: dict[str, float]  # scores of the human captions, those that need no references
    examples: dict[str, list[str]]  # key -> the most probable caption, then samples
    warning: str  # "" if there is nothing to warn of


def validate(
    captioner: Captioner,
    pictures: Sequence[HeldOutPicture],
    sampling: SamplingConfig | None = None,
    *,
    similarity: bool = True,
) -> Validation:
    """Caption held-out pictures twice, greedily and by sampling, and score both.

    The greedy captions are compared with the human captions. Diversity is measured among the samples: five for each
    picture with top-p 0.9, unless `sampling` says otherwise. The same pictures give the same samples each time.
    similarity: whether to measure CLIP similarity, for captioners that embed both pictures and captions.
    Raises ValueError if there are no pictures.
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
        [[caption.text for caption in captions] for captions in samples],
        references,
        truncated=[[caption.truncated for caption in captions] for captions in samples],
    )
    if similarity:
        scores["similarity"] = sum(caption.similarity or 0.0 for caption in best) / len(best)
    human = human_scores(references, sampling.num_captions)
    examples = {
        pictures[index][0]: [caption.text for caption in (best[index], *samples[index][:EXAMPLE_SAMPLES])]
        for index in evenly_spaced(len(pictures), EXAMPLE_PICTURES)
    }
    return Validation(scores, human, examples, warning=collapse_warning(scores, human))


def caption_scores(
    captions: Sequence[str],
    samples: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    truncated: Sequence[Sequence[bool]] | None = None,
) -> dict[str, float]:
    """Return the scores of one caption and several samples for each picture, all in the same order.

    truncated: for each sample, whether it was cut off. Pictures without human captions do not count in the comparison
    with human captions, but in all other scores.
    """
    with_references = [index for index, texts in enumerate(references) if any(map(words, texts))]
    scores = {"pictures": len(captions)}
    if with_references:
        scores |= reference_scores(
            [captions[index] for index in with_references], [references[index] for index in with_references]
        )
    return scores | _diversity_scores(samples, truncated) | {"same_caption": _same_caption(captions)}


def human_scores(references: Sequence[Sequence[str]], num_captions: int) -> dict[str, float]:
    """Return those scores of the human captions that need no references.

    Diversity scores are left out unless each picture has `num_captions` human captions.
    """
    human = [[text for text in texts if words(text)] for texts in references]
    human = [texts for texts in human if texts]
    if not human:
        return {}
    spread = _diversity_scores([texts[:num_captions] for texts in human])
    if min(map(len, human)) < num_captions:  # with fewer captions, scores would look more diverse
        spread = {"degenerate": spread["degenerate"]}
    return spread | {"same_caption": _same_caption([texts[0] for texts in human])}


def collapse_warning(scores: dict[str, float], human: dict[str, float]) -> str:
    """Return a warning, with what to check, if many pictures get one caption and human captions do not; else ""."""
    share, human_share = scores["same_caption"], human.get("same_caption", 0)
    if share < max(COLLAPSE_SHARE, COLLAPSE_TIMES * human_share) or share * scores["pictures"] < COLLAPSE_PICTURES:
        return ""
    return (
        f"{share:.0%} of {scores['pictures']} held-out pictures get the same caption (of the human captions, "
        f"{human_share:.0%} are the same): the captioner does not look at the pictures. In the first steps from "
        "random weights this is normal and goes away. Otherwise check:\n"
        "- the weights at the start: random weights (--from-scratch), and weights of an open_clip run without "
        "--pretrained or with a partly loaded checkpoint, give every picture the same caption (open_clip issues #797, "
        "#751)\n"
        "- --learning-rate and --warmup: steps that are too large make the captioner forget the pictures; 1e-5 suits "
        "most fine-tuning\n"
        "- --caption-weight: at 0 the decoder learns nothing\n"
        "- the data: captions of other pictures, or the same caption for most pictures, teach the captioner not to "
        "look"
    )


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` indices of `count` things, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / max(1, most - 1)) for index in range(most)]


def _diversity_scores(
    groups: Sequence[Sequence[str]], truncated: Sequence[Sequence[bool]] | None = None
) -> dict[str, float]:
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
