"""The case `within-image-10k` of `benchmarks.diversity`: self-CIDEr and mBLEU-4 of 10,000 pictures with five captions
each.

Peers, in this process: self-CIDEr by dicts and loops, written down below; mBLEU-4 by nltk's sentence BLEU with
smoothing method 3, caption by caption. Both split captions with our `words`, from the same text: five draws with
replacement from the human and machine captions of a COCO picture in CAPSMITH_DATA, itself drawn with replacement.
Values must be equal to 1e-9.
"""

import json
import math
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from tqdm import tqdm

from diversity.measures.lexical import within_picture
from diversity.measures.pairs import Groups, batches
from diversity.measures.self_cider import DocumentFrequency, self_cider
from diversity.words.tokens import words

PICTURES, CAPTIONS, REPEATS = 10_000, 5, 3
SAME = 1e-9
DATA = Path(os.environ.get("CAPSMITH_DATA", "../shared/data"))

Words = tuple[str, ...]


def within_image_10k() -> dict[str, Any]:
    """Our time for both measures against the plain references', which take one turn; raises `RuntimeError` if values
    differ.
    """
    groups = drawn_pictures()
    found = measure(groups)  # warms up
    seconds = statistics.median(timed(lambda: measure(groups))[0] for _ in range(REPEATS))
    result: dict[str, Any] = {"pictures": len(groups), "captions": CAPTIONS, "seconds": round(seconds, 3)}
    peer_seconds = 0.0
    for name, plain in (("self_cider", plain_self_cider), ("mbleu_4", plain_mbleu)):
        cost, expected = timed(lambda: plain(groups))
        if not (apart := float(np.abs(found[name] - expected).max())) <= SAME:
            raise RuntimeError(f"{name}: ours and the plain reference's values are up to {apart} apart")
        result[name] = {"mean": round(float(found[name].mean()), 4), "apart": apart, "peer_seconds": round(cost, 2)}
        peer_seconds += cost
    return {"ratio": round(peer_seconds / seconds, 2), **result}


def measure(groups: Groups) -> dict[str, np.ndarray]:
    """Our scores of each picture, document frequencies and all."""
    world = DocumentFrequency(groups)
    scores = [(self_cider(tokens, world), within_picture(tokens)["mbleu_4"]) for tokens in batches(groups)]
    return dict(zip(("self_cider", "mbleu_4"), map(np.concatenate, zip(*scores)), strict=True))


def drawn_pictures() -> list[list[str]]:
    annotated = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    captions = [[*picture["references"], *picture["candidates"]] for picture in annotated]
    draw = random.Random(0)
    return [draw.choices(draw.choice(captions), k=CAPTIONS) for _ in range(PICTURES)]


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def plain_mbleu(groups: Groups) -> list[float]:
    smoothing = SmoothingFunction().method3
    scores = []
    for group in tqdm(groups, "mBLEU by nltk", mininterval=2):
        texts = [words(caption) for caption in group]
        scores.append(
            statistics.fmean(
                sentence_bleu(texts[:at] + texts[at + 1 :], text, smoothing_function=smoothing, auto_reweigh=True)
                for at, text in enumerate(texts)
            )
        )
    return scores


def plain_self_cider(groups: Groups) -> list[float]:
    """Self-CIDEr as `diversity.measures.self_cider` defines it, over the document frequencies of the same captions."""
    texts = [[words(caption) for caption in group] for group in groups]
    pictures_with = Counter(ngram for group in texts for ngram in {ngram for text in group for ngram in ngrams(text)})
    scores = []
    for group in tqdm(texts, "self-CIDEr by loops", mininterval=2):
        vectors = [unit_vectors(text, pictures_with, len(groups)) for text in group]
        kernel = np.array([[similarity(one, other) for other in vectors] for one in vectors])
        eigenvalues = np.linalg.eigvalsh(kernel)
        roots = np.sqrt(eigenvalues[eigenvalues > 1e-12 * eigenvalues.max()])
        scores.append(-math.log(roots.max() / roots.sum(), len(group)))
    return scores


def ngrams(text: Sequence[str]) -> list[Words]:
    return [tuple(text[at : at + n]) for n in (1, 2, 3, 4) for at in range(len(text) - n + 1)]


def unit_vectors(text: Sequence[str], pictures_with: Counter[Words], pictures: int) -> dict[int, dict[Words, float]]:
    """The weights of a caption's 1-, 2-, 3- and 4-grams, each order of length 1; orders without a weight are left out.
    """
    orders: dict[int, dict[Words, float]] = {1: {}, 2: {}, 3: {}, 4: {}}
    for ngram, count in Counter(ngrams(text)).items():
        orders[len(ngram)][ngram] = count * math.log(pictures / pictures_with[ngram])
    lengths = {n: math.sqrt(sum(weight**2 for weight in weights.values())) for n, weights in orders.items()}
    return {
        n: {ngram: weight / lengths[n] for ngram, weight in weights.items()}
        for n, weights in orders.items()
        if lengths[n]
    }


def similarity(one: dict[int, dict[Words, float]], other: dict[int, dict[Words, float]]) -> float:
    """CIDEr's of two captions: the cosine of each order, their mean over the orders that both could have."""
    cosines = (
        sum(weight * other[n].get(ngram, 0.0) for ngram, weight in one[n].items()) for n in one.keys() & other.keys()
    )
    return sum(cosines) / math.sqrt(len(one) * len(other)) if one and other else 0.0
