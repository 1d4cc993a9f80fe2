"""What the numbers of coverage, fidelity and faults are: formula, range, direction and paper, in words that the report shows."""

from diversity.measures.measure import Measure
from diversity.words.degenerate import REASONS

WORD_COVERAGE = Measure(
    ("word_coverage",),
    "Words covered",
    "Content words of a picture's human captions that some of its captions has ÷ "
    "content words of its human captions, mean over pictures. 0 to 100 %; it grows with the number and the "
    "length of captions.",
    "percent",
    "higher",
    "word_coverage",
)
COVERAGE = Measure(
    ("semantic", "coverage"),
    "Coverage",
    "Human captions that have one of the column's captions of their picture as near "
    "as their fifth nearest human caption of another picture ÷ human captions, mean over pictures. 0 to 100 %. After "
    "Naeem et al. 2020.",
    "percent",
    "higher",
    "coverage",
)
CLIP_SCORE = Measure(
    ("clip", "clip_score"),
    "CLIPScore",
    "2.5 max(cos(caption, picture), 0) of CLIP embeddings, captions behind “A photo "
    "depicts”, mean over captions, then pictures. 0 to 2.5. Hessel et al. 2021.",
    better="higher",
    score="clip_score",
)
REF_CLIP_SCORE = Measure(
    ("clip", "ref_clip_score"),
    "RefCLIPScore",
    "Harmonic mean of CLIPScore and the caption's greatest cosine to a "
    "human one, mean over captions, then pictures. 0 to 1.43. Hessel et al. 2021.",
    better="higher",
    score="ref_clip_score",
)
RECALLS = tuple(
    Measure(
        ("clip", f"r_at_{n}"),
        f"Found, R@{n}",
        f"Captions from which CLIP finds their picture among the first {n} of "
        "a seeded pool of at most 1,000 pictures ÷ captions. 0 to 100 %; higher is more specific and true.",
        "percent",
        "higher",
        f"r_at_{n}",
    )
    for n in (1, 5)
)
IMAGE_COVERAGE = Measure(
    ("clip", "image_coverage"),
    "Pictures covered",
    "Pictures of the pool to which one of their captions is nearer "
    "than every caption of the column for another picture ÷ pictures. 0 to 100 %.",
    "percent",
    "higher",
    "image_coverage",
)
CONSISTENCY = Measure(
    ("clip", "consistency"),
    "Captions agree",
    "Pairs of a picture's captions from which CLIP finds the same picture of the pool, right or wrong ÷ pairs, mean over "
    "pictures. 0 to 100 %: less where captions contradict one another, all where they are alike. After Ge et al. 2022.",
    "percent",
    score="consistency",
)
_FOUND = (
    "Other pictures {what} a caption than its own picture ÷ other pictures, mean over a picture's captions, then pictures. "
    "50 % for captions of other pictures, 100 % where each caption says most of its own."
)
FOUND_WORDS = Measure(
    ("found_words",),
    "Own picture found by words",
    _FOUND.format(what="whose human captions have less in common (tf-idf of words) with"),
    "percent",
    "higher",
    "found_words",
)
FOUND_MEANING = Measure(
    ("semantic", "found_meaning"),
    "Own picture found by meaning",
    _FOUND.format(what="whose human captions are less like (cosine of embeddings)"),
    "percent",
    "higher",
    "found_meaning",
)
FOUND_CLIP = Measure(
    ("clip", "found_clip"),
    "Own picture found by CLIP",
    _FOUND.format(what="that CLIP finds less near to"),
    "percent",
    "higher",
    "found_clip",
)
BLEU = Measure(
    ("bleu_4",),
    "BLEU-4",
    "1- to 4-grams of the captions that human captions of their picture have ÷ those of the "
    "captions, geometric mean, lowered where captions are too short; of all captions together. 0 to 1. Papineni et al. 2002.",
    better="higher",
)
ROUGE = Measure(
    ("rouge_l",),
    "ROUGE-L",
    "Longest common subsequence of words with a human caption, mean of precision and recall, mean "
    "over a picture's captions, then pictures. 0 to 1. Lin 2004.",
    better="higher",
    score="rouge_l",
)
METEOR = Measure(
    ("meteor",),
    "METEOR",
    "Words that a human caption has too, by letters or by stem, without synonyms, in as few "
    "pieces as may be, best human caption, mean over a picture's captions, then pictures. 0 to 1. Lavie and Agarwal 2007.",
    better="higher",
    score="meteor",
)
CIDER = Measure(
    ("cider_d",),
    "CIDEr-D",
    "What captions share with the human ones and other pictures' lack, by tf-idf of 1- to "
    "4-grams, mean over a picture's captions. 0 to 10; papers often give it times 100; compare on the same pictures "
    "only; a human caption is held against the others of its picture. Vedantam et al. 2015.",
    better="higher",
    score="cider_d",
)
DEGENERATE = Measure(
    ("degenerate",),
    "Degenerate captions",
    "Captions with at least one of these faults of form ÷ captions, mean "
    "over pictures: "
    + "; ".join(f"{name}: {reason.meaning}" for name, reason in REASONS.items())
    + ". 0 to 100 %. Noise scores as spread, so read spread only beside it.",
    "percent",
    "lower",
    "degenerate",
)
DEGENERATE_REASONS = tuple(
    Measure(
        ("degenerate_reasons", name),
        f"Degenerate: {name}",
        f"{reason.meaning.capitalize()}, e.g. “{reason.examples[0]}”. Share of the captions.",
        "percent",
        "lower",
    )
    for name, reason in REASONS.items()
)
PRECISION = Measure(
    ("facts", "precision"),
    "Facts true",
    "True facts ÷ facts that the captions state, where the picture's truth is known. 0 to 100 %.",
    "percent",
    "higher",
    "precision",
)
RECALL = Measure(
    ("facts", "recall"),
    "Facts found",
    "A picture's main facts that some of its captions states ÷ its main facts, "
    "where the truth is known. 0 to 100 %; more captions find more.",
    "percent",
    "higher",
    "recall",
)
STATED = Measure(
    ("facts", "stated_per_caption"),
    "Facts per caption",
    "Facts that a caption states, right or wrong, on average.",
    "words",
    "higher",
)
