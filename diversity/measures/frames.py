"""Count the openings and the templates that a captioner uses again and again."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from diversity.words.tokens import words
from imagetext.hashes import name_hash

OPENING = 3  # words at the beginning of a caption
GAP = "…"
FUNCTION_WORDS = frozenset(
    "a an the this that these those some it its he she his her him they their them there who which and or but while "
    "as than not no of in on at by for from to into onto with without over under near behind beside between above "
    "below across along around through up down out off against inside outside next front "
    "top "  # next to, in front of, on top of
    "is are was were be being been has have had having".split()
)


def frames(captions: Iterable[str], most: int = 10) -> dict[str, list[list[Any]]]:
    """Return the commonest `templates`, [template, share of the captions, a caption], and `openings`, [words, share].

    An opening is the first three words of a caption. A template is a caption in which "…" stands for each run of words
    that are no English function words (see `FUNCTION_WORDS`): "a red cat on the mat" has the template "a … on the …".
    The commonest come first, and equally common ones in alphabetical order. Shares of all captions are in [0, 1],
    lower is more spread. In other languages than English templates say little.
    """
    openings, templates = Counter(), Counter()
    examples: dict[str, tuple[int, str]] = {}
    total = 0
    for caption in captions:
        total += 1
        if caption_words := words(caption):
            template = _template(caption_words)
            openings[" ".join(caption_words[:OPENING])] += 1
            templates[template] += 1
            candidate = name_hash(caption, "example"), caption  # so that the example does not depend on the order
            examples[template] = min(candidate, examples.get(template, candidate))
    return {
        "templates": [[text, count / total, examples[text][1]] for text, count in _commonest(templates, most)],
        "openings": [[text, count / total] for text, count in _commonest(openings, most)],
    }


def _template(caption_words: list[str]) -> str:
    parts: list[str] = []
    for word in caption_words:
        if word in FUNCTION_WORDS:
            parts.append(word)
        elif parts[-1:] != [GAP]:
            parts.append(GAP)
    return " ".join(parts)


def _commonest(counts: Counter[str], most: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
