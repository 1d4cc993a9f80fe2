"""The definitions of coverage, fidelity and faults that the report shows: formula, range, direction and paper."""

from diversity.measures.measure import Measure
from diversity.words.degenerate import REASONS

WORD_COVERAGE = Measure(
    ("word_coverage",),
    "Words covered",
    "Content words of a picture's human captions that at least one of its captions has ÷ content words of its human "
    "captions, mean over pictures. 0 to 100 %; it grows with the number and the length of captions.",
    unit="percent",
    better="higher",
    score="word_coverage",
)
COVERAGE = Measure(
    ("semantic", "coverage"),
    "Coverage",
    "Human captions to which one of the column's captions of the same picture is at least as near as the fifth "
    "nearest human caption of another picture ÷ human captions, mean over pictures. 0 to 100 %. After Naeem et al. "
    "2020.",
    unit="percent",
    better="higher",
    score="coverage",
)
CLIP_SCORE = Measure(
    ("clip", "clip_score"),
    "CLIPScore",
    "2.5 max(cos(caption, picture), 0) of CLIP embeddings, with “A photo depicts” before each caption, mean over "
    "captions, then pictures. 0 to 2.5. Hessel et al. 2021.",
    better="higher",
    score="clip_score",
)
REF_CLIP_SCORE = Measure(
    ("clip", "ref_clip_score"),
    "RefCLIPScore",
    "Harmonic mean of CLIPScore and the caption's greatest cosine to a human caption of the picture, mean over "
    "captions, then pictures. 0 to 1.43. Hessel et al. 2021.",
    better="higher",
    score="ref_clip_score",
)
RECALLS = tuple(
    Measure(
        ("clip", f"r_at_{n}"),
        f"Found, R@{n}",
        f"Captions for which CLIP ranks their picture among the first {n} of a seeded pool of at most 1,000 pictures "
        "÷ captions. 0 to 100 %; higher is more specific and true.",
        unit="percent",
        better="higher",
        score=f"r_at_{n}",
    )
    for n in (1, 5)
)
IMAGE_COVERAGE = Measure(
    ("clip", "image_coverage"),
    "Pictures covered",
    "Pictures of the pool to which one of their captions is nearer than every caption that the column has for other "
    "pictures ÷ pictures. 0 to 100 %.",
    unit="percent",
    better="higher",
    score="image_coverage",
)
CONSISTENCY = Measure(
    ("clip", "consistency"),
    "Captions agree",
    "Pairs of a picture's captions for which CLIP finds the same picture of the pool, right or wrong ÷ pairs, mean "
    "over pictures. 0 to 100 %: lower where captions contradict each other, 100 % where they are equal. After Ge et "
    "al. 2022.",
    unit="percent",
    score="consistency",
)
_FOUND = (
    "Other pictures {less_like} a caption than its own picture ÷ other pictures, mean over a picture's captions, then "
    "pictures. 50 % for captions of other pictures, 100 % where each caption fits its own picture best."
)
FOUND_WORDS = Measure(
    ("found_words",),
    "Own picture found by words",
    _FOUND.format(less_like="whose human captions have less in common (tf-idf of words) with"),
    unit="percent",
    better="higher",
    score="found_words",
)
FOUND_MEANING = Measure(
    ("semantic", "found_meaning"),
    "Own picture found by meaning",
    _FOUND.format(less_like="whose human captions are less similar (cosine of embeddings) to"),
    unit="percent",
    better="higher",
    score="found_meaning",
)
FOUND_CLIP = Measure(
    ("clip", "found_clip"),
    "Own picture found by CLIP",
    _FOUND.format(less_like="that for CLIP are less near to"),
    unit="percent",
    better="higher",
    score="found_clip",
)
BLEU = Measure(
    ("bleu_4",),
    "BLEU-4",
    "1- to 4-grams of the captions that human captions of their picture have ÷ all 1- to 4-grams of the captions, "
    "geometric mean, lowered where captions are too short; for all captions together. 0 to 1. Papineni et al. 2002.",
    better="higher",
)
ROUGE = Measure(
    ("rouge_l",),
    "ROUGE-L",
    "Longest common subsequence of words with a human caption, as the mean of precision and recall, mean over a "
    "picture's captions, then pictures. 0 to 1. Lin 2004.",
    better="higher",
    score="rouge_l",
)
METEOR = Measure(
    ("meteor",),
    "METEOR",
    "Words that a human caption has, too, matched by spelling or by stem and without synonyms; higher where the "
    "matches are in few pieces; for the best human caption, mean over a picture's captions, then pictures. 0 to 1. "
    "Lavie and Agarwal 2007.",
    better="higher",
    score="meteor",
)
CIDER = Measure(
    ("cider_d",),
    "CIDEr-D",
    "What captions have in common with the human captions of their picture but not with those of other pictures, by "
    "tf-idf of 1- to 4-grams, mean over a picture's captions. 0 to 10; papers often give it times 100; compare it on "
    "the same pictures only. A human caption is compared with the other human captions of its picture. Vedantam et "
    "al. 2015.",
    better="higher",
    score="cider_d",
)
DEGENERATE = Measure(
    ("degenerate",),
    "Degenerate captions",
    "Captions with at least one of these faults of form ÷ captions, mean over pictures: "
    + "; ".join(f"{name}: {reason.meaning}" for name, reason in REASONS.items())
    + ". 0 to 100 %. Noise has much spread, so read spread only together with this share.",
    unit="percent",
    better="lower",
    score="degenerate",
)
DEGENERATE_REASONS = tuple(
    Measure(
        ("degenerate_reasons", name),
        f"Degenerate: {name}",
        f"{reason.meaning[0].upper()}{reason.meaning[1:]}, e.g. “{reason.examples[0]}”. Share of the captions.",
        unit="percent",
        better="lower",
    )
    for name, reason in REASONS.items()
)
PRECISION = Measure(
    ("facts", "precision"),
    "Facts true",
    "True facts ÷ facts that the captions state, where the picture's truth is known. 0 to 100 %.",
    unit="percent",
    better="higher",
    score="precision",
)
RECALL = Measure(
    ("facts", "recall"),
    "Facts found",
    "A picture's main facts that at least one of its captions states ÷ its main facts, where the truth is known. 0 "
    "to 100 %; it grows with the number of captions.",
    unit="percent",
    better="higher",
    score="recall",
)
STATED = Measure(
    ("facts", "stated_per_caption"),
    "Facts per caption",
    "Mean number of facts that a caption states, true or false.",
    unit="words",
    better="higher",
)
