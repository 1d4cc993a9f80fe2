"""What each number of a report is: its formula, range, direction and paper, in words that the report shows."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from diversity.fidelity import REASONS
from diversity.lexical import MBLEU_SMOOTHING


class Measure(NamedTuple):
    """One number of `CaptionAccumulator.result`: where it stands, its label, what it is, and how it is written."""

    path: tuple[str, ...]
    label: str
    definition: str
    unit: str = "ratio"  # ratio | percent | count | words
    better: str = ""     # higher | lower | "" where neither is

    def value(self, result: Mapping[str, Any]) -> float | None:
        """The number in full precision, None where it is undefined."""
        found: Any = result
        for name in self.path:
            found = None if found is None else found[name]
        return found

    def text(self, result: Mapping[str, Any]) -> str:
        """The number as a table shows it."""
        value = self.value(result)
        if value is None:
            return "–"
        if self.unit == "percent":
            return f"{100 * value:.1f} %"
        if self.unit == "count":
            return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        return f"{value:.1f}" if self.unit == "words" else f"{value:.3f}"

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")


PICTURES = Measure(("pictures",), "Pictures", "Pictures compared: those that every column has captions for.", "count")
CAPTIONS = Measure(("captions",), "Captions", "Captions counted, equally many of a picture in every column.", "count")
WORDS = Measure(("words",), "Words", "Words of all captions, punctuation left out.", "count")
LENGTH = Measure(("length_mean",), "Length", "Mean words per caption, punctuation left out. From 0; compare with the human row.",
                 "words")
LENGTHS = tuple(Measure(("length_quantiles", q), f"Length, {name}", f"{share} of the captions have at most so many words.",
                        "count")
                for q, name, share in (("0.05", "5 %", "5 %"), ("0.25", "quartile", "25 %"), ("0.5", "median", "50 %"),
                                       ("0.75", "upper quartile", "75 %"), ("0.95", "95 %", "95 %")))
VOCABULARY = Measure(("vocabulary",), "Vocabulary", "Different words of all captions. From 0; it grows with the number of "
                     "captions, so compare it at equal numbers only.", "count", "higher")
DISTINCT = tuple(Measure((f"distinct_{n}",), f"Distinct-{n}",
                         f"Different {n}-grams of the whole set ÷ all its {n}-grams, none crossing two captions. 0 to 1; it "
                         "falls as the set grows, so compare it at equal numbers only. Li et al. 2016.", better="higher")
                 for n in (1, 2, 3, 4))
DIV = tuple(Measure((f"div_{n}",), f"Div-{n}",
                    f"Within a picture: different {n}-grams of its captions ÷ their words, mean over pictures. 0 to 1. "
                    "Shetty et al. 2017.", better="higher") for n in (1, 2))
MBLEU = Measure(("mbleu_4",), "mBLEU-4", "Within a picture: BLEU-4 of each caption against the picture's other captions, mean "
                "over captions, then over pictures. 0 to 1; 1 where all are equal. Shetty et al. 2017; BLEU: Papineni et al. "
                f"2002. Smoothing: {MBLEU_SMOOTHING}.", better="lower")
DUPLICATES = Measure(("duplicates",), "Duplicates", "Captions that repeat an earlier caption of the same picture word for word ÷ "
                     "captions. 0 to 100 %.", "percent", "lower")
SHARED = Measure(("shared",), "Shared", "Captions that stand word for word under another picture too ÷ captions, repeats within "
                 "a picture left out. 0 to 100 %.", "percent", "lower")
MOST_SHARED = Measure(("most_shared",), "One caption for many", "Pictures under which the commonest caption stands ÷ pictures. "
                      "0 to 100 %; a high share means that the captioner no longer looks.", "percent", "lower")
DEGENERATE = Measure(("degenerate",), "Degenerate", "Captions with at least one of these faults of form ÷ captions: "
                     + "; ".join(f"{name}: {reason.meaning}" for name, reason in REASONS.items())
                     + ". 0 to 100 %. Noise scores as spread, so read spread only beside it.", "percent", "lower")
DEGENERATE_REASONS = tuple(Measure(("degenerate_reasons", name), f"Degenerate: {name}",
                                   f"{reason.meaning.capitalize()}, e.g. “{reason.examples[0]}”. Share of the captions.",
                                   "percent", "lower") for name, reason in REASONS.items())
PRECISION = Measure(("facts", "precision"), "Facts true", "True facts ÷ facts that the captions state, where the picture's truth "
                    "is known. 0 to 100 %.", "percent", "higher")
RECALL = Measure(("facts", "recall"), "Facts found", "A picture's main facts that some of its captions states ÷ its main facts, "
                 "where the truth is known. 0 to 100 %; more captions find more.", "percent", "higher")
STATED = Measure(("facts", "stated_per_caption"), "Facts per caption", "Facts that a caption states, right or wrong, on average.",
                 "words", "higher")

ALL = (PICTURES, CAPTIONS, WORDS, LENGTH, *LENGTHS, VOCABULARY, *DISTINCT, *DIV, MBLEU, DUPLICATES, SHARED, MOST_SHARED,
       DEGENERATE, *DEGENERATE_REASONS, PRECISION, RECALL, STATED)


def headline(facts_known: bool) -> tuple[Measure, ...]:
    """The seven measures that stand beside a column's name in the first table: spread, then fidelity."""
    if facts_known:
        return LENGTH, VOCABULARY, DIV[1], MBLEU, DEGENERATE, PRECISION, RECALL
    return LENGTH, VOCABULARY, DISTINCT[1], DIV[1], MBLEU, DUPLICATES, DEGENERATE
