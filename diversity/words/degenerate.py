"""The one definition of a degenerate caption. Noise looks diverse, so no measure of spread is shown without this one.

The rules examine form alone: a fluent caption of another picture is not degenerate. The words that cannot end a
sentence are known for the languages of `endings.LANGUAGES`, and refusals for those of `refusals`. "broken" is for
English, and all other rules are for every language. Each rule takes time in proportion to the length of the caption.

A paragraph that a person wrote has slips. So loops, misplaced articles and numbers count only if they are at least
`SLIP` of the caption's words.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diversity.words.conversations import is_conversation
from diversity.words.endings import MIN_WORDS, broken, ends_hanging, is_short
from diversity.words.loops import looping, recurs
from diversity.words.nonwords import LONGEST_NUMBER, has_nonwords, is_misread, is_random, senseless_numbers
from diversity.words.refusals import refuses
from diversity.words.tokens import words

SLIP = 0.05  # share of a caption's words; in captions of up to 20 words every fault counts


class Reason(NamedTuple):
    """A reason why a caption is degenerate: its meaning, and examples."""

    meaning: str
    examples: tuple[str, ...]


REASONS: Mapping[str, Reason] = {
    "empty": Reason("no word at all", ("", "  ", "...")),
    "short": Reason(f"fewer than {MIN_WORDS} words, except long words as German has them", ("cat", "a dog.")),
    "loop": Reason(
        "a word three times in a row, several words twice in a row, or a sentence that recurs",
        (
            "a 2 2 2 2",
            "a man on the on the street",
            "a cat. a cat. a cat.",
            "A man rides a horse on the beach. The sky is blue. A man rides his horse on the beach.",
        ),
    ),
    "cut": Reason(
        "stopped by the length limit, or with a last word or mark that cannot end a sentence",
        ("a dog standing next to a", "a plate full of", "two men in hats,", "ein Hund und eine Katze auf einem"),
    ),
    "broken": Reason(
        "in English, an article before a word that cannot follow an article",
        ("a zebra standing a and grass a on a round tree", "the of a red circle"),
    ),
    "digits": Reason(
        "three numbers in a row that neither count up or down nor can be a telephone number, and that no sign reads, "
        f"or more than {LONGEST_NUMBER} digits",
        ("a 2 2 2 2", "photo 4 17 2019 of a dog", "order number 20190304221530 of the shop"),
    ),
    "nonwords": Reason(
        "at least a third is not words but file names, web addresses or unreadable letters; or all letters seem to "
        "be random; or characters were decoded wrongly",
        (
            "IMG_20413.JPG photo",
            "a xkqrtz bfghjk",
            "xkqj wvbz plmt",
            "a caf\ufffd by the sea",
            "a cafÃ© by the sea",
        ),
    ),
    "markup": Reason(
        "special tokens of a model or of its chat template, or what else is left of a conversation with it: a prompt, "
        "turns, the first words of an answer, JSON",
        (
            "a dog<|im_end|>",
            "a <UNK> on a table",
            "[INST] a red dog",
            "USER: What is this? ASSISTANT: A red dog.",
            "Sure, here is a caption: a red dog",
            '{"caption": "a red dog"}',
        ),
    ),
    "refusal": Reason(
        "an assistant's answer instead of a caption: that it cannot or will not do it, that it got no picture, or "
        "what it thinks about the request",
        (
            "I'm sorry, but I can't describe this image.",
            "Okay, the user wants me to describe this picture.",
            "Please upload the picture again.",
            "对不起，我无法查看图片。",
        ),
    ),
}


def degenerate_reasons(
    caption: str, truncated: bool = False, caption_words: list[str] | None = None
) -> tuple[str, ...]:
    """Return the names of the `REASONS` for which a caption is degenerate, in their order; () for a good caption.

    truncated: the record says that the captioner stopped at its length limit. caption_words: the caption's words, if
    the caller has them already.
    """
    caption_words = words(caption) if caption_words is None else caption_words
    if not caption_words:
        return ("empty",)
    tests = {
        "short": is_short(caption_words),
        "loop": _counts(looping(caption, caption_words), caption_words) or recurs(caption),
        "cut": truncated or ends_hanging(caption, caption_words),
        "broken": _counts(broken(caption, caption_words), caption_words),
        "digits": _counts(senseless_numbers(caption), caption_words),
        "nonwords": has_nonwords(caption.lower(), caption_words) or is_misread(caption) or is_random(caption),
        "markup": is_conversation(caption),
        "refusal": refuses(caption),
    }
    return tuple(reason for reason, holds in tests.items() if holds)


def tag_reasons(tag: str, tag_words: list[str]) -> tuple[str, ...]:
    """Return the reasons why a tag of one or a few words is degenerate, without "short", "cut" and "broken"."""
    reasons = degenerate_reasons(tag, caption_words=tag_words)
    return tuple(reason for reason in reasons if reason not in ("short", "cut", "broken"))


def _counts(faulty: int, caption_words: Sequence[str]) -> bool:
    """Return whether so many faulty words are more than a slip."""
    return faulty > 0 and faulty >= SLIP * len(caption_words)
