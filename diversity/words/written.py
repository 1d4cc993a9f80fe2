"""What a text that was made of words is refused for beside them: reasons that no look at the text alone can find.

Precision comes first: each is for what is certain, and leaves out what may be right. Facts are those of English. Each takes time in
proportion to the length of the text and of what it is judged beside.
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
    """What a text is judged beside, all of its own record; "" or () where there is none.

    text: what it was made of; several captions stand on lines of their own. instruction: as it was rendered. examples: all their
    texts. positive: for what is not true of the picture, what is: captions or tags, on lines of their own. tag: whether it is one.
    """

    text: str = ""
    instruction: str = ""
    examples: tuple[str, ...] = ()
    positive: str = ""
    tag: bool = False


class Example(NamedTuple):
    """A text that has a reason, beside its source, where it is asked for: keywords of `written_reasons`."""

    text: str
    source: Source = Source()
    asked: Mapping[str, Any] = {}


class Written(NamedTuple):
    """Why a written text is refused: what the reason means, and texts that have it."""

    meaning: str
    examples: tuple[Example, ...]


_ASKED = "Rewrite the caption in other words.\nCaption: dog on grass\nRewritten:"
_EXAMPLES = ("man on horse", "A man rides a brown horse along the beach.")
WRITTEN: Mapping[str, Written] = {
    "unparsed": Written(
        "JSON was asked for, and the answer is none that has the fields", (Example('{"positive": "A dog'),)
    ),
    "long": Written(
        "more words, or tokens of CLIP's tokenizer with start and end, than allowed",
        (
            Example("A dog runs on green grass.", asked={"max_words": 5}),
            Example("A dog runs on green grass.", asked={"max_clip_tokens": 8}),
        ),
    ),
    "echo": Written(
        "the instruction, an example or the marks between them given back",
        (
            Example("Rewrite the caption in other words.", Source("dog on grass", _ASKED)),
            Example("A dog on grass. Rewritten: A dog.", Source("dog on grass", _ASKED)),
            Example("a man rides a brown horse along the beach", Source("dog on grass", _ASKED, _EXAMPLES)),
            Example("dog on grass => A dog runs on grass.", Source("dog on grass")),
        ),
    ),
    "unchanged": Written(
        "the words of its source, where other words are asked for",
        (Example("Dog on grass.", Source("dog on grass"), {"must_change": True}),),
    ),
    "unlike_source": Written(
        "in English, a number, a colour or a name that its source has not, where none may be added",
        (
            Example("Two dogs run on grass.", Source("dogs run on grass"), {"keep_facts": True}),
            Example("A brown dog runs on grass.", Source("a dog runs on grass"), {"keep_facts": True}),
            Example("A dog runs through Hyde Park.", Source("a dog runs in a park"), {"keep_facts": True}),
        ),
    ),
    "same": Written(
        "meant to be false of the picture, and says what the true caption says",
        (
            Example("The dog is running on the grass.", Source(positive="a dog running on grass")),
            Example("a cat and a dog", Source(positive="A dog and a cat.")),
            Example("2 gray cats", Source(positive="two grey cats")),
        ),
    ),
    "far": Written(
        "meant to be false of the picture by a little, and shares too few words with the true caption",
        (Example("Three boats in a harbour.", Source(positive="a dog runs on grass"), {"min_overlap": 0.5}),),
    ),
    "both_lists": Written(
        "a tag that is said to be in the picture and not to be in it",
        (Example("Dogs", Source(positive="grass\ndog", tag=True)),),
    ),
}


def written_reasons(
    text: str,
    source: Source | None,
    found: Sequence[str] | None = None,
    *,
    max_words: int | None = None,
    max_clip_tokens: int | None = None,
    must_change: bool = False,
    keep_facts: bool = False,
    min_overlap: float | None = None,
) -> tuple[str, ...]:
    """The names of `WRITTEN` for which the text is refused beside its source, in their order, but `unparsed`, which is no text's.

    source: None for a text that was made of none. found: its words, where they are known. The keywords are what is asked of it: at most so many words or tokens, not the words of
    its source, no facts that this has not, and so large a share of the true caption's words.
    """
    found = words(text) if found is None else found
    source = source or Source()
    if not found:
        return ()
    if source.tag:
        return ("both_lists",) if is_among(text, source.positive.splitlines()) else ()
    true, made_of = [line for line in source.positive.splitlines() if line.strip()], source.text
    said = _said(text) if true else []
    tests = {
        "long": max_words is not None
        and len(found) > max_words
        or max_clip_tokens is not None
        and is_longer_than(text, max_clip_tokens),
        "echo": source != Source() and echoes(text, found, source),
        "unchanged": must_change and any(words(line) == found for line in made_of.splitlines()),
        "unlike_source": keep_facts and bool(made_of) and bool(additions(text, made_of)),
        "same": any(_said(line) == said for line in true),
        "far": min_overlap is not None
        and bool(true)
        and max(_kept(set(found), words(line)) for line in true) < min_overlap,
    }
    return tuple(reason for reason, holds in tests.items() if holds)


# ---- what stands in the instruction ------------------------------------------------------------------------------------

RUN = 8  # words in a row that nobody writes twice by chance; of Chinese and the like, twice as many characters
WHOLE = 3  # words that a text has at least which stands in the instruction as a whole
_MARKS = ("=>", "{{", "}}", "{%", "```")
_LABEL = re.compile(r"^[ \t#*-]*([^\W\d][\w ]{1,30})[*]*[:：]", re.MULTILINE)


def echoes(text: str, found: Sequence[str], source: Source) -> bool:
    """Whether the text gives back an example, a part of the instruction, or the marks or labels in it.

    What stands in the source, too, is none: "A sign: open" of a picture with this sign.
    """
    if any(mark in text and mark not in source.text for mark in _MARKS):
        return True
    labels = {label.lower() for label in _LABEL.findall(source.instruction)}
    own = {label.lower() for label in _LABEL.findall(source.text)}
    if any(label.lower() in labels - own for label in re.findall(r"([^\W\d][\w ]{1,30})[*]*[:：]", text)):
        return True
    mine = [words(line) for line in source.text.splitlines()]
    if any(found == words(example) for example in source.examples) and found not in mine:
        return True
    size = min(RUN * (1 + is_written_without_blanks(found[0])), len(found))
    if size < WHOLE:
        return False
    asked, shown = ([words(line) for line in lines] for lines in (source.instruction.splitlines(), source.examples))
    own_words = _runs(asked, size) - _runs(shown, size) - _runs(mine, size)
    return not own_words.isdisjoint(_runs([found], size))


def _runs(texts: Sequence[Sequence[str]], size: int) -> set[tuple[str, ...]]:
    return {tuple(text[at : at + size]) for text in texts for at in range(len(text) - size + 1)}


# ---- facts that were added ---------------------------------------------------------------------------------------------

# Capitals that name nobody: things that are written so.
_NO_NAMES = frozenset(
    "i tv tvs bbq dj pc cd dvd led lcd suv suvs rv atm t x iv usb ac hd vr ad diy mr mrs ms dr frisbee frisbees man woman boy girl "
    "people person dog cat street road avenue st".split()
)


def additions(text: str, source: str) -> list[str]:
    """The numbers, colours and names of an English text that its source has not; none where the source is in another language."""
    known, new = words(source), words(text)
    languages = languages_of(known)
    added = _new_numbers(text, source, known)
    if languages and "en" not in languages:
        return [number for number in added if number in folded(text)]  # in digits
    colours = colours_in(known)
    if not NO_COLOURS.isdisjoint(known):
        colours |= {"black", "white", "grey"}
    return [*added, *sorted(colours_in(new) - colours), *_new_names(text, known)]


def _new_numbers(text: str, source: str, known: Sequence[str]) -> list[str]:
    """Numbers that the source has in no form; one is no number ("one of them"), and a list counts what is in it.

    "A man and a woman" are two people, "two men and a woman" three.
    """
    written = numbers_in(folded(source))
    given = {"0", "1", *written, *(str(AS_MUCH[word]) for word in known if word in AS_MUCH)}
    if joined := sum(piece in ("and", ",", "&", "with") for piece in pieces(source)):
        in_all = sum(int(number) for number in written if len(number) < 3 and number.isdecimal())
        given |= {str(1 + joined), str(in_all), str(in_all + 1)}
    return [number for number in dict.fromkeys(numbers_in(folded(text))) if number not in given]


def _new_names(text: str, known: Sequence[str]) -> list[str]:
    """Words with capitals within sentences that the source has in no form; none in a text of which most words have one."""
    plain = [piece for piece in pieces(text, fold=False) if piece[0].isalpha() and len(piece) > 3]
    if len(plain) > 2 and 2 * sum(piece[0].isupper() for piece in plain) > len(plain):
        return []
    begins = {word[:4] for word in known}
    added = []
    for sentence in sentences(text):
        parts = pieces(sentence, fold=False)
        for capital, run in groupby(zip(parts, ["", *parts]), key=lambda pair: pair[0][0].isupper()):
            run = [word for word, before in run if before and (before[0].isalnum() or before == ",")]
            if not capital or "".join(word[0] for word in run).lower() in known:  # NYC
                continue
            added += [
                word
                for word in run
                if (name := folded(word).removesuffix("'s")) not in _NO_NAMES and name[:4] not in begins
            ]
    return added


# ---- negatives and tags ------------------------------------------------------------------------------------------------

_ARTICLES = frozenset("a an the some these those".split())
_SAYS_NOTHING = _ARTICLES | frozenset("is are was were be been being there that which who it its this one".split())
_PREPOSITIONS = frozenset(
    "of on in at by with from to into onto under over above below behind near beside between through along across against "
    "around inside outside for".split()
)
_JOINS = frozenset(("and", ",", "&"))
_PICTURES = frozenset("picture image photo photograph".split())


def says_the_same(negative: str, positive: str) -> bool:
    """Whether a text says what another says: the same words in their order, articles, forms of "be" and spellings aside.

    What "and" joins may stand in any order, but not after a preposition: "a dog on a mat and a cat" is not "a dog on a cat and a
    mat". Synonyms are beyond it, and so is the passive voice.
    """
    return _said(negative) == _said(positive)


def _said(text: str) -> list[str]:
    """The text's words in one spelling, those that say nothing left out, and joined phrases in the order of the alphabet."""
    phrase: list[str] = []
    parts: list[str | list[str]] = [phrase]  # phrases are lists; prepositions and joins stand between them
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
    said: list[str] = []
    for before, group in zip([[[]], *groups], groups):
        for part in sorted(group) if isinstance(before[0], list) else group:
            said += part if isinstance(part, list) else [part]
    return said


def _spelled(word: str) -> str:
    """One word for all that say the same: grey and gray, two and 2, picture and photo."""
    number = UNITS.get(word, TENS.get(word))
    return COLOURS.get(word, "picture" if word in _PICTURES else word) if number is None else str(number)


def is_among(tag: str, tags: Sequence[str]) -> bool:
    """Whether a tag is one of several, in the singular or the plural."""
    return _singular(tag) in map(_singular, tags)


def _singular(tag: str) -> tuple[str, ...]:
    return tuple(
        word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] not in "su" else word for word in words(tag)
    )


def _kept(found: set[str], true: Sequence[str]) -> float:
    """The share of the true caption's words that are among those found."""
    wanted = set(true) - _SAYS_NOTHING
    return len(wanted & found) / len(wanted) if wanted else 1.0
