"""What each number of a report is: its formula, range, direction and paper, in words that the report shows."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from diversity.measures.compression import COMPRESSOR
from diversity.measures.lexical import MBLEU_SMOOTHING
from diversity.words.degenerate import REASONS

PERCENT = "\N{NARROW NO-BREAK SPACE}%"


class Measure(NamedTuple):
    """One number of a report's row: where it stands, its label, what it is, and how it is written."""

    path: tuple[str, ...]
    label: str
    definition: str
    unit: str = "ratio"  # ratio | percent | count | words
    better: str = ""  # higher | lower | "" where neither is
    score: str = ""  # name of its scores by picture, whose mean it is; "" where it is one of the whole set

    def value(self, row: Mapping[str, Any]) -> float | None:
        """The number in full precision, None where it is undefined or was not measured."""
        found: Any = row
        for name in self.path:
            found = None if found is None else found.get(name)
        return found

    def text(self, row: Mapping[str, Any]) -> str:
        """The number as a table shows it."""
        return self.written(self.value(row))

    def written(self, value: float | None) -> str:
        """A value of this measure, or a difference of two, as a table shows it."""
        if value is None:
            return "–"
        if self.unit == "percent":
            return f"{100 * value:.1f}{PERCENT}"
        if self.unit == "count":
            return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        return f"{value:.1f}" if self.unit == "words" else f"{value:.3f}"

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")


PICTURES = Measure(("pictures",), "Pictures", "Pictures compared: those that every column has captions for.", "count")
CAPTIONS = Measure(
    ("captions",),
    "Captions",
    "Captions counted, equally many of a picture in every column; of human ones no more.",
    "count",
)
WORDS = Measure(("words",), "Words", "Words of all captions, punctuation left out.", "count")
LENGTH = Measure(
    ("length_mean",),
    "Length",
    "Words of a caption, punctuation left out, mean over a picture's captions, then pictures. "
    "From 0; compare with the human row.",
    "words",
    score="length",
)
LENGTHS = tuple(
    Measure(
        ("length_quantiles", q), f"Length, {name}", f"{share} of the captions have at most so many words.", "count"
    )
    for q, name, share in (
        ("0.05", "5 %", "5 %"),
        ("0.25", "quartile", "25 %"),
        ("0.5", "median", "50 %"),
        ("0.75", "upper quartile", "75 %"),
        ("0.95", "95 %", "95 %"),
    )
)
VOCABULARY = Measure(
    ("vocabulary",),
    "Vocabulary",
    "Different words of all captions. From 0; it grows with the number of "
    "captions, so compare it at equal numbers only.",
    "count",
    "higher",
)
DISTINCT = tuple(
    Measure(
        (f"distinct_{n}",),
        f"Distinct-{n}",
        f"Different {n}-grams of the whole set ÷ all its {n}-grams, none crossing two captions. 0 to 1; it "
        "falls as the set grows, so compare it at equal numbers only. Li et al. 2016.",
        better="higher",
    )
    for n in (1, 2, 3, 4)
)
DIV = tuple(
    Measure(
        (f"div_{n}",),
        f"Div-{n}",
        f"Within a picture: different {n}-grams of its captions ÷ their words, mean over pictures; one caption has no "
        "spread. 0 to 1. "
        "Shetty et al. 2017.",
        better="higher",
        score=f"div_{n}",
    )
    for n in (1, 2)
)
MBLEU = Measure(
    ("mbleu_4",),
    "mBLEU-4",
    "Within a picture: BLEU-4 of each caption against the picture's other captions, mean "
    "over captions, then over pictures. 0 to 1; 1 where all are equal. Shetty et al. 2017; BLEU: Papineni et al. "
    f"2002. Smoothing: {MBLEU_SMOOTHING}.",
    better="lower",
    score="mbleu_4",
)
SELF_CIDER = Measure(
    ("self_cider",),
    "Self-CIDEr",
    "Within a picture: -log_m(√λ₁ ÷ Σ √λ), λ the eigenvalues of its m captions' CIDEr "
    "similarities (cosines of their 1- to 4-grams, rare ones weighing more), mean over pictures of the sample. 0 to "
    "1: 0 where all captions are equal, 1 where no two share an n-gram. Wang and Chan 2019.",
    better="higher",
    score="self_cider",
)
DUPLICATES = Measure(
    ("duplicates",),
    "Duplicates",
    "Within a picture: captions that repeat an earlier one word for word ÷ its "
    "captions, mean over pictures. 0 to 100 %.",
    "percent",
    "lower",
    "duplicates",
)
SHARED = Measure(
    ("shared",),
    "Shared",
    "Captions that stand word for word under another picture too ÷ captions, repeats within "
    "a picture left out. 0 to 100 %.",
    "percent",
    "lower",
)
MOST_SHARED = Measure(
    ("most_shared",),
    "One caption for many",
    "Pictures under which the commonest caption stands ÷ pictures. "
    "0 to 100 %; a high share means that the captioner no longer looks.",
    "percent",
    "lower",
)
NEAR_DUPLICATES = Measure(
    ("near_duplicates",),
    "Near duplicates",
    "Within a picture: captions that nearly repeat an earlier one ÷ "
    "its captions, mean over pictures: four fifths or more of the different words of the two stand in both "
    "(Jaccard ≥ 0.8), in any order; exact duplicates included. 0 to 100 %.",
    "percent",
    "lower",
    "near_duplicates",
)
ENTROPY = tuple(
    Measure(
        (f"entropy_{n}",),
        f"Entropy, {n}-grams",
        f"Entropy of the set's {n}-grams, in bits: -Σ p log₂ p. From 0; it grows with the set.",
        better="higher",
    )
    for n in (1, 2, 3, 4)
)
SELF_REPETITION = Measure(
    ("self_repetition",),
    "Self-repetition",
    "4-grams that recur in the set ÷ 4-grams. 0 to 100 %: 0 where each stands "
    "once; it grows with the set. After Salkar et al. 2022.",
    "percent",
    "lower",
)
HAPAX = Measure(
    ("hapax",), "Words seen once", "Words that stand once in the set ÷ different words. 0 to 100 %.", "percent"
)
COMPRESSION = Measure(
    ("compression",),
    "Compression",
    "Bytes of the sample's captions, a line each in a seeded order, ÷ their bytes "
    f"compressed with {COMPRESSOR}. Above 0; higher is more repetitive; it grows with the sample, so compare it at "
    "equal numbers only. Shaib et al. 2024.",
    better="lower",
)
NOVELTY = (
    Measure(
        ("novelty", "ngrams_4"), "New 4-grams", "4-grams that no human caption has ÷ 4-grams. 0 to 100 %.", "percent"
    ),
    Measure(
        ("novelty", "captions"),
        "New captions",
        "Captions that are no human caption word for word ÷ captions. 0 to 100 %.",
        "percent",
    ),
)
EQUAL_WORDS = Measure(
    ("equal_tokens", "words"),
    "Words, at equal length",
    "Words to which the sample of every column is cut for the "
    "next rows: as many as the shortest column has, pictures taken in one seeded order.",
    "count",
)
EQUAL_TOKENS = (
    Measure(
        ("equal_tokens", "vocabulary"),
        "Vocabulary, at equal length",
        "Different words among equally many words of each column. From 0.",
        "count",
        "higher",
    ),
    *(
        Measure(
            ("equal_tokens", f"distinct_{n}"),
            f"Distinct-{n}, at equal length",
            f"Different {n}-grams ÷ {n}-grams among equally many words of each column. 0 to 1. Li et al. 2016.",
            better="higher",
        )
        for n in (1, 2, 3, 4)
    ),
    *(
        Measure(
            ("equal_tokens", f"entropy_{n}"),
            f"Entropy of {n}-grams, at equal length",
            f"Entropy of the {n}-grams among equally "
            "many words of each column, in bits: -Σ p log₂ p. 0 to log₂ of their number.",
            better="higher",
        )
        for n in (1, 2, 3, 4)
    ),
    Measure(
        ("equal_tokens", "compression"),
        "Compression, at equal length",
        f"The compression ratio ({COMPRESSOR}) of equally many words of each column. Above 0.",
        better="lower",
    ),
)
_ORDERS = (("1", "1"), ("0.5", "½"), ("2", "2"), ("inf", "∞"))
COSINE_DISTANCE = Measure(
    ("semantic", "cosine_distance"),
    "Meaning apart",
    "Within a picture: mean cosine distance between the "
    "embeddings of two of its captions, mean over pictures. 0 to 2.",
    better="higher",
    score="cosine_distance",
)
SET_COSINE_DISTANCE = Measure(
    ("semantic", "set_cosine_distance"),
    "Meaning apart, set",
    "Mean cosine distance between the embeddings of two captions of the set. 0 to 2.",
    better="higher",
)
VENDI = tuple(
    Measure(
        ("semantic", "vendi", q),
        f"Vendi, q = {name}" if q != "1" else "Vendi",
        "Within a picture: the effective number "
        "of different captions, exp of the Rényi entropy of order q of the eigenvalues of their cosine "
        f"similarities ÷ their sum, q = {name}, mean over pictures. 1 to the captions of a picture. Friedman and "
        "Dieng 2022; orders: Pasarkar and Dieng 2023.",
        better="higher",
        score="vendi" if q == "1" else "",
    )
    for q, name in _ORDERS
)
SET_VENDI = tuple(
    Measure(
        ("semantic", "set_vendi", q),
        f"Vendi of the set, q = {name}",
        "The effective number of different captions "
        "in the set of embedded captions. From 1 to the embedding's dimension; it grows with the set.",
        better="higher",
    )
    for q, name in _ORDERS
)
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

ALL = (
    PICTURES,
    CAPTIONS,
    WORDS,
    LENGTH,
    *LENGTHS,
    VOCABULARY,
    *DISTINCT,
    *ENTROPY,
    SELF_REPETITION,
    HAPAX,
    COMPRESSION,
    *NOVELTY,
    EQUAL_WORDS,
    *EQUAL_TOKENS,
    *DIV,
    MBLEU,
    SELF_CIDER,
    DUPLICATES,
    NEAR_DUPLICATES,
    SHARED,
    MOST_SHARED,
    COSINE_DISTANCE,
    *VENDI,
    SET_COSINE_DISTANCE,
    *SET_VENDI,
    CONSISTENCY,
    WORD_COVERAGE,
    COVERAGE,
    IMAGE_COVERAGE,
    CLIP_SCORE,
    REF_CLIP_SCORE,
    FOUND_CLIP,
    *RECALLS,
    CIDER,
    FOUND_WORDS,
    FOUND_MEANING,
    BLEU,
    ROUGE,
    METEOR,
    DEGENERATE,
    *DEGENERATE_REASONS,
    PRECISION,
    RECALL,
    STATED,
)
OF_SCORE = {measure.score: measure for measure in ALL if measure.score}

_FIRST = (LENGTH, DIV[1], SELF_CIDER, VENDI[0], PRECISION, RECALL, CLIP_SCORE, RECALLS[0], CIDER, DEGENERATE)
_SPARE = (MBLEU, DUPLICATES, VOCABULARY)  # where measures of the first line are missing


def headline(rows: Iterable[Mapping[str, Any]]) -> tuple[Measure, ...]:
    """At most seven measures for the first table, spread before fidelity, the degenerate rate always among them."""
    rows = list(rows)
    there = [measure for measure in (*_FIRST, *_SPARE) if any(measure.value(row) is not None for row in rows)]
    chosen = {*there[:7], DEGENERATE} - ({there[6]} if DEGENERATE not in there[:7] else set())
    return tuple(
        measure
        for measure in (PICTURES, *_FIRST[:4], *_SPARE, *_FIRST[4:])
        if measure in chosen or measure is PICTURES
    )
