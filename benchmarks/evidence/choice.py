"""The held-out choice: between a true caption of a picture and a hard negative that `rules:negatives` makes of it.

P pictures, T captions, N pairs, E embedding
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from captioners.base import Request, SamplingConfig
from captioners.load import load_captioner
from diversity.words.tokens import words
from imagetext.sample import Record
from imagetext.scenes.facts import BACKGROUNDS, COLOURS, NUMBERS, facts_of, true_facts

RULES = "rules:negatives"
KINDS = ("colour", "count", "relation", "swap")  # what a negative has in another way than its caption


class Pair(NamedTuple):
    """A caption, by its number among all captions of all pictures, with a negative, and in what the two differ."""

    picture: int
    caption: int
    negative: str
    kind: str


def held_out_pairs(samples: Sequence[Record]) -> list[Pair]:
    """A negative of each caption of each picture; those are left out that state nothing false, for all that is known."""
    captions = [(number, text) for number, sample in enumerate(samples) for text in sample.captions]
    requests = (Request(f"{number:06}-{at:06}", None, text) for at, (number, text) in enumerate(captions))
    answers = load_captioner(RULES).caption(requests, SamplingConfig(num_captions=1), column="neg_text_rules")
    truths = [true_facts(sample.meta["scene"]) for sample in samples]
    pairs = []
    for at, ((number, text), answer) in enumerate(zip(captions, answers, strict=True)):
        for negative in answer.captions:
            if (kind := kind_of(text, negative.text)) and facts_of(negative.text) - truths[number]:
                pairs.append(Pair(number, at, negative.text, kind))
    return pairs


def kind_of(caption: str, negative: str) -> str:
    """In what a negative differs from its caption, one of KINDS; "" where it does not."""
    ours, theirs = (Counter(words(text)) for text in (caption, negative))
    changed = {*(ours - theirs), *(theirs - ours)}
    if not changed:
        return "" if words(caption) == words(negative) else "swap"
    if changed & NUMBERS.keys():
        return "count"
    return "colour" if changed & {*COLOURS, *BACKGROUNDS} else "relation"


def choices(
    pictures: np.ndarray, captions: np.ndarray, negatives: np.ndarray, pairs: Iterable[Pair]
) -> dict[str, float]:
    """How often pictures (P, E) are nearer to the caption, of (T, E), than to its negative (N, E): by kind, and their mean."""
    won: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for pair, negative in zip(pairs, negatives, strict=True):
        picture = pictures[pair.picture]
        won[pair.kind].append(bool(captions[pair.caption] @ picture > negative @ picture))
    shares = {f"choice_{kind}": float(np.mean(of)) for kind, of in won.items() if of}
    return {**shares, "choice": float(np.mean(list(shares.values())))} if shares else {}
