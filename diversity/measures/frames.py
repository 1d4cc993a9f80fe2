"""How captions begin, and the frames that they fill: what a captioner says again and again."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from diversity.words.tokens import words
from imagetext.hashes import name_hash

OPENING = 3  # words
GAP = "…"
FUNCTION_WORDS = frozenset(
    "a an the this that these those some it its he she his her him they their them there who which "
    "and or but while as than not no "
    "of in on at by for from to into onto with without over under near behind beside between above below across along around "
    "through up down out off against inside outside "
    "next front top "  # next to, in front of, on top of
    "is are was were be being been has have had having".split()
)


def frames(captions: Iterable[str], most: int = 10) -> dict[str, list[list[Any]]]:
    """The commonest `templates`, [template, share of the captions, a caption], and `openings`, [words, share].

    An opening is a caption's first three words. A template is its words with those that are no English function words (see
    `FUNCTION_WORDS`) replaced, run by run, by "…": "a red cat on the mat" is "a … on the …". The commonest first, those
    equally common by alphabet; a share in [0, 1] of all captions, lower is more spread. In other languages templates say little.
    """
    openings, templates = Counter(), Counter()
    examples: dict[str, tuple[int, str]] = {}
    total = 0
    for caption in captions:
        total += 1
        if found := words(caption):
            template = _template(found)
            openings[" ".join(found[:OPENING])] += 1
            templates[template] += 1
            shuffled = name_hash(caption, "example"), caption  # so that order does not choose the example
            examples[template] = min(shuffled, examples.get(template, shuffled))
    return {
        "templates": [[text, count / total, examples[text][1]] for text, count in _commonest(templates, most)],
        "openings": [[text, count / total] for text, count in _commonest(openings, most)],
    }


def _template(found: list[str]) -> str:
    parts: list[str] = []
    for word in found:
        if word in FUNCTION_WORDS:
            parts.append(word)
        elif parts[-1:] != [GAP]:
            parts.append(GAP)
    return " ".join(parts)


def _commonest(counts: Counter[str], most: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
