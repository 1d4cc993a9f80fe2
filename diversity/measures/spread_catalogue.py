"""What the numbers of size, length and spread are: formula, range, direction and paper, in words that the report shows."""

from diversity.measures.compression import COMPRESSOR
from diversity.measures.lexical import MBLEU_SMOOTHING
from diversity.measures.measure import Measure

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
