"""The case `within-image-10k` of `benchmarks.diversity`: self-CIDEr and mBLEU-4 of 10,000 pictures with five captions
each.

The peers run in this process: self-CIDEr by dicts and loops, as written below; mBLEU-4 by nltk's sentence BLEU with
smoothing method 3, caption by caption. Both sides split the same captions with our `words`. Pictures are drawn with
replacement from the COCO pictures in CAPSMITH_DATA; for each, five captions are drawn with replacement from its human
and machine captions. Values must be equal to 1e-9.
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
    """Our time for both measures, compared with one turn of the plain references.

    Raises: RuntimeError, if values differ
    """
    groups = drawn_pictures()
    values = measure(groups)  # warms up
    seconds = statistics.median(timed(lambda: measure(groups))[0] for _ in range(REPEATS))
    result: dict[str, Any] = {"pictures": len(groups), "captions": CAPTIONS, "seconds": round(seconds, 3)}
    peer_seconds = 0.0
    for name, plain in (("self_cider", plain_self_cider), ("mbleu_4", plain_mbleu)):
        cost, expected = timed(lambda: plain(groups))
        if not (difference := float(np.abs(values[name] - expected).max())) <= SAME:
            raise RuntimeError(f"{name}: ours and the plain reference's values are up to {difference} apart")
        result[name] = {
            "mean": round(float(values[name].mean()), 4),
            "apart": difference,
            "peer_seconds": round(cost, 2),
        }
        peer_seconds += cost
    return {"ratio": round(peer_seconds / seconds, 2), **result}


def measure(groups: Groups) -> dict[str, np.ndarray]:
    """Our scores of each picture; this includes counting document frequencies."""
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
    result = function()
    return time.perf_counter() - start, result


def plain_mbleu(groups: Groups) -> list[float]:
    smoothing = SmoothingFunction().method3
    scores = []
    for group in tqdm(groups, "mBLEU by nltk", mininterval=2):
        texts = [words(caption) for caption in group]
        scores.append(
            statistics.fmean(
                sentence_bleu(
                    texts[:index] + texts[index + 1 :], text, smoothing_function=smoothing, auto_reweigh=True
                )
                for index, text in enumerate(texts)
            )
        )
    return scores


def plain_self_cider(groups: Groups) -> list[float]:
    """Self-CIDEr as `diversity.measures.self_cider` defines it, with the document frequencies of the same captions."""
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
    return [tuple(text[start : start + n]) for n in (1, 2, 3, 4) for start in range(len(text) - n + 1)]


def unit_vectors(text: Sequence[str], pictures_with: Counter[Words], pictures: int) -> dict[int, dict[Words, float]]:
    """The weights of a caption's 1- to 4-grams by order, scaled to length 1; orders without a weight are left out."""
    orders: dict[int, dict[Words, float]] = {1: {}, 2: {}, 3: {}, 4: {}}
    for ngram, count in Counter(ngrams(text)).items():
        orders[len(ngram)][ngram] = count * math.log(pictures / pictures_with[ngram])
    lengths = {n: math.sqrt(sum(weight**2 for weight in weights.values())) for n, weights in orders.items()}
    return {
        n: {ngram: weight / lengths[n] for ngram, weight in weights.items()}
        for n, weights in orders.items()
        if lengths[n]
    }


def similarity(vectors: dict[int, dict[Words, float]], other_vectors: dict[int, dict[Words, float]]) -> float:
    """CIDEr's of two captions: the cosine of each order, their mean over the orders that both could have."""
    cosines = (
        sum(weight * other_vectors[n].get(ngram, 0.0) for ngram, weight in vectors[n].items())
        for n in vectors.keys() & other_vectors.keys()
    )
    return sum(cosines) / math.sqrt(len(vectors) * len(other_vectors)) if vectors and other_vectors else 0.0
