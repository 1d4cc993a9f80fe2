"""The definitions of size, length and spread that the report shows: formula, range, direction and paper."""

from diversity.measures.compression import COMPRESSOR
from diversity.measures.lexical import MBLEU_SMOOTHING
from diversity.measures.measure import Measure

PICTURES = Measure(
    ("pictures",), "Pictures", "Pictures compared: those that every column has captions for.", unit="count"
)
CAPTIONS = Measure(
    ("captions",),
    "Captions",
    "Captions that are compared: equally many of a picture in every column, and at most as many human captions.",
    unit="count",
)
WORDS = Measure(("words",), "Words", "Words of all captions, punctuation left out.", unit="count")
LENGTH = Measure(
    ("length_mean",),
    "Length",
    "Words of a caption without punctuation, mean over a picture's captions, then pictures. From 0; compare it with "
    "the human row.",
    unit="words",
    score="length",
)
LENGTHS = tuple(
    Measure(
        ("length_quantiles", q),
        f"Length, {name}",
        f"{share} of the captions have at most so many words.",
        unit="count",
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
    "Different words of all captions. From 0; it grows with the number of captions, so compare it for equal numbers "
    "only.",
    unit="count",
    better="higher",
)
DISTINCT = tuple(
    Measure(
        (f"distinct_{n}",),
        f"Distinct-{n}",
        f"Different {n}-grams of the whole set ÷ all its {n}-grams, each within one caption. 0 to 1; it falls as the "
        "set grows, so compare it for equal numbers only. Li et al. 2016.",
        better="higher",
    )
    for n in (1, 2, 3, 4)
)
DIV = tuple(
    Measure(
        (f"div_{n}",),
        f"Div-{n}",
        f"Within a picture: different {n}-grams of its captions ÷ their words, mean over pictures with several "
        "captions. 0 to 1. Shetty et al. 2017.",
        better="higher",
        score=f"div_{n}",
    )
    for n in (1, 2)
)
MBLEU = Measure(
    ("mbleu_4",),
    "mBLEU-4",
    "Within a picture: BLEU-4 of each caption against the picture's other captions, mean over captions, then over "
    "pictures. 0 to 1; 1 where all captions are equal. Shetty et al. 2017; BLEU: Papineni et al. 2002. Smoothing: "
    f"{MBLEU_SMOOTHING}.",
    better="lower",
    score="mbleu_4",
)
SELF_CIDER = Measure(
    ("self_cider",),
    "Self-CIDEr",
    "Within a picture: -log_m(√λ₁ ÷ Σ √λ), where λ are the eigenvalues of the CIDEr similarities of its m captions "
    "(cosines of their 1- to 4-grams, in which rare n-grams weigh more), mean over pictures of the sample. 0 to 1: 0 "
    "where all captions are equal, 1 where no two share an n-gram. Wang and Chan 2019.",
    better="higher",
    score="self_cider",
)
DUPLICATES = Measure(
    ("duplicates",),
    "Duplicates",
    "Within a picture: captions that repeat an earlier one word for word ÷ its captions, mean over pictures. 0 to "
    "100 %.",
    unit="percent",
    better="lower",
    score="duplicates",
)
SHARED = Measure(
    ("shared",),
    "Shared",
    "Captions that another picture has, too, word for word ÷ captions, without repeats within a picture. 0 to 100 %.",
    unit="percent",
    better="lower",
)
MOST_SHARED = Measure(
    ("most_shared",),
    "One caption for many",
    "Pictures that have the commonest caption ÷ pictures. 0 to 100 %; a high share means that the captioner no "
    "longer looks at the picture.",
    unit="percent",
    better="lower",
)
NEAR_DUPLICATES = Measure(
    ("near_duplicates",),
    "Near duplicates",
    "Within a picture: captions that nearly repeat an earlier one ÷ its captions, mean over pictures. Nearly means "
    "that at least four fifths of the different words of the two are in both (Jaccard ≥ 0.8), in any order; exact "
    "duplicates count, too. 0 to 100 %.",
    unit="percent",
    better="lower",
    score="near_duplicates",
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
    "4-grams that recur in the set ÷ 4-grams. 0 to 100 %: 0 where each occurs once; it grows with the set. After "
    "Salkar et al. 2022.",
    unit="percent",
    better="lower",
)
HAPAX = Measure(
    ("hapax",), "Words seen once", "Words that occur once in the set ÷ different words. 0 to 100 %.", unit="percent"
)
COMPRESSION = Measure(
    ("compression",),
    "Compression",
    f"Bytes of the sample's captions, one per line in a seeded order, ÷ their bytes compressed with {COMPRESSOR}. "
    "Above 0; higher is more repetitive; it grows with the sample, so compare it for equal numbers only. Shaib et "
    "al. 2024.",
    better="lower",
)
NOVELTY = (
    Measure(
        ("novelty", "ngrams_4"),
        "New 4-grams",
        "4-grams that no human caption has ÷ 4-grams. 0 to 100 %.",
        unit="percent",
    ),
    Measure(
        ("novelty", "captions"),
        "New captions",
        "Captions that equal no human caption word for word ÷ captions. 0 to 100 %.",
        unit="percent",
    ),
)
EQUAL_WORDS = Measure(
    ("equal_tokens", "words"),
    "Words, at equal length",
    "The number of words to which every column of the sample is cut for the next rows: as many as the shortest "
    "column has, with the pictures in the same seeded order.",
    unit="count",
)
EQUAL_TOKENS = (
    Measure(
        ("equal_tokens", "vocabulary"),
        "Vocabulary, at equal length",
        "Different words among equally many words of each column. From 0.",
        unit="count",
        better="higher",
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
            f"Entropy of the {n}-grams among equally many words of each column, in bits: -Σ p log₂ p. 0 to log₂ of "
            "their number.",
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
    "Within a picture: mean cosine distance between the embeddings of two of its captions, mean over pictures. 0 to "
    "2.",
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
        "Within a picture: the effective number of different captions, which is exp of the Rényi entropy of order q "
        f"of the eigenvalues of their cosine similarities ÷ their sum, q = {name}, mean over pictures. From 1 to the "
        "number of captions of a picture. Friedman and Dieng 2022; orders: Pasarkar and Dieng 2023.",
        better="higher",
        score="vendi" if q == "1" else "",
    )
    for q, name in _ORDERS
)
SET_VENDI = tuple(
    Measure(
        ("semantic", "set_vendi", q),
        f"Vendi of the set, q = {name}",
        "The effective number of different captions in the set of embedded captions. From 1 to the dimension of the "
        "embedding; it grows with the set.",
        better="higher",
    )
    for q, name in _ORDERS
)
