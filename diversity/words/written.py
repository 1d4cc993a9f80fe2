"""Find reasons to refuse a text that was written from other words; these reasons compare the text with its source.

Precision comes first: a rule applies to what is certainly wrong, and not to what may be right. The rules for facts are
for English. Each rule takes time in proportion to the lengths of the text and of its source.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from captioners.clip import is_longer_than
from captioners.english import AS_MUCH, COLOURS, NO_COLOURS, TENS, UNITS, colours_in, numbers_in
from diversity.words.endings import languages_of
from diversity.words.sentences import sentences
from diversity.words.tokens import folded, is_written_without_blanks, pieces, words


@dataclass(frozen=True)
class Source:
    """What a text is compared with, all from its own record; "" or () where there is nothing.

    text: the text that it was made from, with several captions on separate lines. instruction: the instruction as it
    was rendered. examples: all texts of the instruction's examples. positive: for a text that shall not be true of the
    picture, the captions or tags that are true, on separate lines. tag: whether the text is a tag.
    """

    text: str = ""
    instruction: str = ""
    examples: tuple[str, ...] = ()
    positive: str = ""
    tag: bool = False


class RefusedExample(NamedTuple):
    """An example of a text that is refused, with its source and with the requirements that it does not meet."""

    text: str
    source: Source = Source()
    requirements: Mapping[str, Any] = {}  # keywords of `written_reasons`


class Written(NamedTuple):
    """A reason why a written text is refused: its meaning, and examples."""

    meaning: str
    examples: tuple[RefusedExample, ...]


_ASKED = "Rewrite the caption in other words.\nCaption: dog on grass\nRewritten:"
_EXAMPLES = ("man on horse", "A man rides a brown horse along the beach.")
WRITTEN: Mapping[str, Written] = {
    "unparsed": Written(
        "JSON was requested, and the answer is not JSON with the requested fields",
        (RefusedExample('{"positive": "A dog'),),
    ),
    "long": Written(
        "more words, or tokens of CLIP's tokenizer including start and end, than allowed",
        (
            RefusedExample("A dog runs on green grass.", requirements={"max_words": 5}),
            RefusedExample("A dog runs on green grass.", requirements={"max_clip_tokens": 8}),
        ),
    ),
    "echo": Written(
        "repeats the instruction, an example, or the marks between them",
        (
            RefusedExample("Rewrite the caption in other words.", Source("dog on grass", _ASKED)),
            RefusedExample("A dog on grass. Rewritten: A dog.", Source("dog on grass", _ASKED)),
            RefusedExample("a man rides a brown horse along the beach", Source("dog on grass", _ASKED, _EXAMPLES)),
            RefusedExample("dog on grass => A dog runs on grass.", Source("dog on grass")),
        ),
    ),
    "unchanged": Written(
        "has the same words as its source, although other words were requested",
        (RefusedExample("Dog on grass.", Source("dog on grass"), {"must_change": True}),),
    ),
    "unlike_source": Written(
        "in English, a number, a colour or a name that its source does not have, where nothing may be added",
        (
            RefusedExample("Two dogs run on grass.", Source("dogs run on grass"), {"keep_facts": True}),
            RefusedExample("A brown dog runs on grass.", Source("a dog runs on grass"), {"keep_facts": True}),
            RefusedExample("A dog runs through Hyde Park.", Source("a dog runs in a park"), {"keep_facts": True}),
        ),
    ),
    "same": Written(
        "should be false of the picture, but says the same as the true caption",
        (
            RefusedExample("The dog is running on the grass.", Source(positive="a dog running on grass")),
            RefusedExample("a cat and a dog", Source(positive="A dog and a cat.")),
            RefusedExample("2 gray cats", Source(positive="two grey cats")),
        ),
    ),
    "far": Written(
        "should differ from the true caption in a detail, but shares too few words with it",
        (RefusedExample("Three boats in a harbour.", Source(positive="a dog runs on grass"), {"min_overlap": 0.5}),),
    ),
    "both_lists": Written(
        "a tag that is listed both as in the picture and as not in the picture",
        (RefusedExample("Dogs", Source(positive="grass\ndog", tag=True)),),
    ),
}


def written_reasons(
    text: str,
    source: Source | None,
    text_words: Sequence[str] | None = None,
    *,
    max_words: int | None = None,
    max_clip_tokens: int | None = None,
    must_change: bool = False,
    keep_facts: bool = False,
    min_overlap: float | None = None,
) -> tuple[str, ...]:
    """Return the names of the `WRITTEN` reasons for which a text is refused, in their order.

    `unparsed` is never among them, because it is the reason for an answer without a text.

    source: None for a text that was made from nothing. text_words: the text's words, if the caller has them already.
    The keywords are the requirements: at most so many words or CLIP tokens; not the words of its source; no facts that
    the source does not have; at least this share of the true caption's words.
    """
    text_words = words(text) if text_words is None else text_words
    source = source or Source()
    if not text_words:
        return ()
    if source.tag:
        return ("both_lists",) if is_among(text, source.positive.splitlines()) else ()
    true_captions = [line for line in source.positive.splitlines() if line.strip()]
    content = _content_in_order(text) if true_captions else []
    too_many_words = max_words is not None and len(text_words) > max_words
    too_many_tokens = max_clip_tokens is not None and is_longer_than(text, max_clip_tokens)
    overlaps = [_overlap(set(text_words), words(line)) for line in true_captions] if min_overlap is not None else []
    tests = {
        "long": too_many_words or too_many_tokens,
        "echo": source != Source() and echoes(text, text_words, source),
        "unchanged": must_change and any(words(line) == text_words for line in source.text.splitlines()),
        "unlike_source": keep_facts and bool(source.text) and bool(additions(text, source.text)),
        "same": any(_content_in_order(line) == content for line in true_captions),
        "far": min_overlap is not None and bool(overlaps) and max(overlaps) < min_overlap,
    }
    return tuple(reason for reason, holds in tests.items() if holds)


# --- repetitions of the instruction ----------------------------------------------------------------------------------

RUN = 8  # words in a row that nobody writes twice by chance; twice as many characters in scripts without blanks
WHOLE = 3  # smallest number of words of a text that repeats a part of the instruction as a whole
_MARKS = ("=>", "{{", "}}", "{%", "```")
_LABEL = re.compile(r"^[ \t#*-]*([^\W\d][\w ]{1,30})[*]*[:：]", re.MULTILINE)


def echoes(text: str, text_words: Sequence[str], source: Source) -> bool:
    """Return whether a text repeats an example, a part of the instruction, or its marks or labels.

    What the source has, too, does not count, such as "A sign: open" for a picture with this sign.
    """
    if any(mark in text and mark not in source.text for mark in _MARKS):
        return True
    labels = {label.lower() for label in _LABEL.findall(source.instruction)}
    source_labels = {label.lower() for label in _LABEL.findall(source.text)}
    labels_in_text = re.findall(r"([^\W\d][\w ]{1,30})[*]*[:：]", text)
    if any(label.lower() in labels - source_labels for label in labels_in_text):
        return True
    source_lines = [words(line) for line in source.text.splitlines()]
    examples = [words(example) for example in source.examples]
    if text_words in examples and text_words not in source_lines:
        return True
    size = min(RUN * (1 + is_written_without_blanks(text_words[0])), len(text_words))
    if size < WHOLE:
        return False
    instruction_lines = [words(line) for line in source.instruction.splitlines()]
    runs_of_instruction = _runs(instruction_lines, size) - _runs(examples, size) - _runs(source_lines, size)
    return not runs_of_instruction.isdisjoint(_runs([text_words], size))


def _runs(texts: Sequence[Sequence[str]], size: int) -> set[tuple[str, ...]]:
    """Return all runs of `size` words in the texts."""
    return {tuple(text[start : start + size]) for text in texts for start in range(len(text) - size + 1)}


# --- facts that were added -------------------------------------------------------------------------------------------

# Words with capital letters that are not names.
_NO_NAMES = frozenset(
    "i tv tvs bbq dj pc cd dvd led lcd suv suvs rv atm t x iv usb ac hd vr ad diy mr mrs ms dr frisbee frisbees man "
    "woman boy girl people person dog cat street road avenue st".split()
)


def additions(text: str, source: str) -> list[str]:
    """Return the numbers, colours and names of an English text that its source does not have.

    If the source is in another language, only numbers in digits are returned.
    """
    source_words = words(source)
    languages = languages_of(source_words)
    added = _new_numbers(text, source, source_words)
    if languages and "en" not in languages:
        return [number for number in added if number in folded(text)]
    colours = colours_in(source_words)
    if not NO_COLOURS.isdisjoint(source_words):
        colours |= {"black", "white", "grey"}
    return [*added, *sorted(colours_in(words(text)) - colours), *_new_names(text, source_words)]


def _new_numbers(text: str, source: str, source_words: Sequence[str]) -> list[str]:
    """Return the numbers that the source has in no form.

    One does not count as a number, because of "one of them". Lists count their items: "a man and a woman" are two
    people, and "two men and a woman" are three.
    """
    written = numbers_in(folded(source))
    known_numbers = {"0", "1", *written, *(str(AS_MUCH[word]) for word in source_words if word in AS_MUCH)}
    if joints := sum(piece in ("and", ",", "&", "with") for piece in pieces(source)):
        total = sum(int(number) for number in written if len(number) < 3 and number.isdecimal())
        known_numbers |= {str(1 + joints), str(total), str(total + 1)}
    return [number for number in dict.fromkeys(numbers_in(folded(text))) if number not in known_numbers]


def _new_names(text: str, source_words: Sequence[str]) -> list[str]:
    """Return the words with a capital letter within sentences that the source has in no form.

    In a text in which most words have a capital letter there are no names.
    """
    long_words = [piece for piece in pieces(text, fold=False) if piece[0].isalpha() and len(piece) > 3]
    if len(long_words) > 2 and 2 * sum(piece[0].isupper() for piece in long_words) > len(long_words):
        return []
    beginnings = {word[:4] for word in source_words}
    names = []
    for sentence in sentences(text):
        parts = pieces(sentence, fold=False)
        for is_capital, run in groupby(zip(parts, ["", *parts]), key=lambda pair: pair[0][0].isupper()):
            if not is_capital:
                continue
            capitals = [word for word, before in run if before and (before[0].isalnum() or before == ",")]
            if "".join(word[0] for word in capitals).lower() in source_words:  # an abbreviation, such as NYC
                continue
            for word in capitals:
                name = folded(word).removesuffix("'s")
                if name not in _NO_NAMES and name[:4] not in beginnings:
                    names.append(word)
    return names


# --- negatives and tags ----------------------------------------------------------------------------------------------

_ARTICLES = frozenset("a an the some these those".split())
_SAYS_NOTHING = _ARTICLES | frozenset("is are was were be been being there that which who it its this one".split())
_PREPOSITIONS = frozenset(
    "of on in at by with from to into onto under over above below behind near beside between through along across "
    "against around inside outside for".split()
)
_JOINS = frozenset(("and", ",", "&"))
_PICTURES = frozenset("picture image photo photograph".split())


def _content_in_order(text: str) -> list[str]:
    """Return what the text says: its words in order and in one spelling, without articles and forms of "be".

    Phrases that "and" joins are in alphabetical order, but not after a preposition: "a dog on a mat and a cat" does
    not say the same as "a dog on a cat and a mat". Synonyms and the passive voice are not recognized.
    """
    phrase: list[str] = []
    parts: list[str | list[str]] = [phrase]  # phrases are lists; prepositions and joints are strings between them
    for piece in pieces(text):
        if piece in _JOINS or piece in _PREPOSITIONS:
            phrase = []
            parts += ["," if piece in _JOINS else piece, phrase]
        elif piece in _ARTICLES:
            phrase = []
            parts.append(phrase)
        elif piece[0].isalnum() and piece not in _SAYS_NOTHING:
            phrase.append(_spelled(piece))
    parts = [part for part in parts if part]
    groups: list[list[str | list[str]]] = []
    for before, part in zip(["", *parts], parts):
        if before == "," and isinstance(part, list) and groups and isinstance(groups[-1][0], list):
            groups[-1].append(part)
        elif part != ",":
            groups.append([part])
    content: list[str] = []
    for before, group in zip([[[]], *groups], groups):
        for part in sorted(group) if isinstance(before[0], list) else group:
            content += part if isinstance(part, list) else [part]
    return content


def _spelled(word: str) -> str:
    """Return one form for words that say the same: grey and gray, two and 2, picture and photo."""
    number = UNITS.get(word, TENS.get(word))
    if number is not None:
        return str(number)
    return COLOURS.get(word, "picture" if word in _PICTURES else word)


def is_among(tag: str, tags: Sequence[str]) -> bool:
    """Return whether a tag is one of several tags, in the singular or the plural."""
    return _singular(tag) in map(_singular, tags)


def _singular(tag: str) -> tuple[str, ...]:
    """Return the words of a tag, without the ending of a plural."""
    return tuple(
        word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] not in "su" else word for word in words(tag)
    )


def _overlap(text_words: set[str], true_words: Sequence[str]) -> float:
    """Return the share of the true caption's words that the text has, without words that say nothing."""
    content = set(true_words) - _SAYS_NOTHING
    return len(content & text_words) / len(content) if content else 1.0
