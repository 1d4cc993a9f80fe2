"""The held-out choice between a true caption of a picture and a hard negative that `rules:negatives` makes from it.

P: pictures, T: captions, N: pairs, E: dimension of embeddings
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from captioners.base import Request, SamplingConfig
from captioners.load import load_captioner
from captioners.rules.changes import KINDS
from captioners.rules.negatives import NEGATIVES
from imagetext.sample import Record
from imagetext.scenes.facts import facts_of, true_facts


class Pair(NamedTuple):
    """A caption, by its number among the captions of all pictures, a negative of it, and the kind of change (of
    KINDS).
    """

    picture: int
    caption: int
    negative: str
    kind: str


def held_out_pairs(samples: Sequence[Record]) -> list[Pair]:
    """Pairs of each picture's captions with one negative each, without negatives of which nothing is known to be
    false.
    """
    captions = [(number, text) for number, sample in enumerate(samples) for text in sample.captions]
    requests = (Request(f"{number:06}-{index:06}", None, text) for index, (number, text) in enumerate(captions))
    answers = load_captioner(NEGATIVES).caption(requests, SamplingConfig(num_captions=1), column="neg_text_rules")
    truths = [true_facts(sample.meta["scene"]) for sample in samples]
    pairs = []
    for index, ((number, _), answer) in enumerate(zip(captions, answers, strict=True)):
        for negative in answer.captions:
            if facts_of(negative.text) - truths[number]:
                pairs.append(Pair(picture=number, caption=index, negative=negative.text, kind=negative.kind))
    return pairs


def choices(
    pictures: np.ndarray, captions: np.ndarray, negatives: np.ndarray, pairs: Iterable[Pair]
) -> dict[str, float]:
    """How often a picture of (P, E) is nearer to its caption of (T, E) than to the negative of (N, E).

    Returns the share for each kind, and the mean of these shares.
    """
    won: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for pair, negative in zip(pairs, negatives, strict=True):
        picture = pictures[pair.picture]
        won[pair.kind].append(bool(captions[pair.caption] @ picture > negative @ picture))
    shares = {f"choice_{kind}": float(np.mean(of_kind)) for kind, of_kind in won.items() if of_kind}
    return {**shares, "choice": float(np.mean(list(shares.values())))} if shares else {}
