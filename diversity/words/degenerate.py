"""What a degenerate caption is, defined once: noise looks diverse, so no measure of spread is shown without it.

The rules look at form alone; a fluent caption of another picture has no reason here. Which words cannot end a sentence is known
of the languages of `endings.LANGUAGES`, what a refusal is of those of `refusals`; "broken" is for English, all other rules for
whatever is written. Each takes time in proportion to the caption's length.

A paragraph that somebody wrote has slips, so a loop, an article that stands wrong or a number counts where it and its like hold
at least `SLIP` of the caption's words.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from captioners.replies import holds_token
from diversity.words.endings import MIN_WORDS, broken, ends_hanging, is_short
from diversity.words.loops import looping, recurs
from diversity.words.nonwords import LONGEST_NUMBER, has_nonwords, is_misread, senseless_numbers
from diversity.words.refusals import refuses
from diversity.words.tokens import words

SLIP = 0.05  # of a caption's words; in captions of up to 20 words each fault counts


class Reason(NamedTuple):
    """Why a caption is degenerate: what the reason means, and captions that have it."""

    meaning: str
    examples: tuple[str, ...]


REASONS: Mapping[str, Reason] = {
    "empty": Reason("no word at all", ("", "  ", "...")),
    "short": Reason(f"fewer than {MIN_WORDS} words, long ones as German has them aside", ("cat", "a dog.")),
    "loop": Reason(
        "a word three times in a row, several words and at once the same again, or a sentence that recurs",
        (
            "a 2 2 2 2",
            "a man on the on the street",
            "a cat. a cat. a cat.",
            "A man rides a horse on the beach. The sky is blue. A man rides his horse on the beach.",
        ),
    ),
    "cut": Reason(
        "stopped by the length limit, or the last word or mark cannot end a sentence",
        ("a dog standing next to a", "a plate full of", "two men in hats,", "ein Hund und eine Katze auf einem"),
    ),
    "broken": Reason(
        "in English, an article before a word that it cannot stand before",
        ("a zebra standing a and grass a on a round tree", "the of a red circle"),
    ),
    "digits": Reason(
        f"three numbers in a row that neither count nor may be a telephone number, or over {LONGEST_NUMBER} digits",
        ("a 2 2 2 2", "photo 4 17 2019 of a dog", "order number 20190304221530 of the shop"),
    ),
    "nonwords": Reason(
        "at least a third of it is no words: file names, web addresses, letters that cannot be read; "
        "or characters that were decoded wrongly",
        ("IMG_20413.JPG photo", "a xkqrtz bfghjk", "a caf\ufffd by the sea", "a cafÃ© by the sea"),
    ),
    "markup": Reason(
        "tokens of a model or its template", ("a dog<|im_end|>", "a <UNK> on a table", "[INST] a red dog")
    ),
    "refusal": Reason(
        "an assistant's answer in place of a caption: it cannot, it will not, it was sent no picture",
        (
            "I'm sorry, but I can't describe this image.",
            "Please upload the picture again.",
            "对不起，我无法查看图片。",
        ),
    ),
}


def degenerate_reasons(caption: str, truncated: bool = False, found: list[str] | None = None) -> tuple[str, ...]:
    """The names of `REASONS` for which the caption is degenerate, in their order; none for a good caption.

    `truncated` is a record's own mark that the captioner stopped at its length limit; `found` are the caption's words, where
    they are known.
    """
    found = words(caption) if found is None else found
    if not found:
        return ("empty",)
    tests = {
        "short": is_short(found),
        "loop": _counts(looping(caption, found), found) or recurs(caption),
        "cut": truncated or ends_hanging(caption, found),
        "broken": _counts(broken(caption, found), found),
        "digits": _counts(senseless_numbers(caption), found),
        "nonwords": has_nonwords(caption.lower(), found) or is_misread(caption),
        "markup": holds_token(caption),
        "refusal": refuses(caption),
    }
    return tuple(reason for reason, holds in tests.items() if holds)


def tag_reasons(tag: str, found: list[str]) -> tuple[str, ...]:
    """Those of the reasons that a tag, of a word or a few, may have."""
    return tuple(reason for reason in degenerate_reasons(tag, found=found) if reason not in ("short", "cut", "broken"))


def _counts(faulty: int, found: Sequence[str]) -> bool:
    """Whether so many words of those found are more than a slip."""
    return faulty > 0 and faulty >= SLIP * len(found)
