"""Draw captions from a pool so that a column has a given mean length, and is otherwise as similar to the pool as
possible.

P: pictures, M: candidates of a picture, k: captions of a picture that are kept
"""

from collections.abc import Sequence

import numpy as np

from diversity.words.sentences import sentences
from diversity.words.tokens import words
from imagetext.hashes import name_hash

TOLERANCE = 0.05  # words
STEEPEST = 8.0  # strongest pull to long or short captions, in nats per word; a stronger one changes nothing
HALVINGS = 30


def candidates(pool: Sequence[str], parts: int, name: str) -> list[str]:
    """Candidates for captions: each has `parts` different sentences of a picture's pool.

    There are as many candidates as the pool has sentences, and no sentence is cut. With `parts` = 1 the candidates are
    the sentences of the pool, repeated as often as they occur. With more parts, sentences are drawn at random, seeded
    by the name and without repeats within a candidate, and joined.
    """
    of_pool = [sentence for caption in pool for sentence in sentences(caption)]
    if parts == 1 or not of_pool:
        return of_pool
    different = list(dict.fromkeys(of_pool))
    random = _random(name, "parts")
    texts = []
    for _ in of_pool:
        chosen = random.permutation(len(different))[:parts]
        texts.append(" ".join(_closed(different[index]) for index in chosen))
    return texts


def _closed(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def draw_to_length(
    pools: Sequence[Sequence[str]], keys: Sequence[str], k: int, length: float, name: str
) -> list[list[str]]:
    """Draw k of each picture's candidates, or all if there are fewer, so that their mean length is `length` words.

    A candidate of n words is drawn without replacement with weight exp(pull * n). Among all ways to draw with this
    mean, this one changes the pool least in relative entropy (an exponential tilt). The pull is the same for the whole
    column. It is found by bisection, because with fixed random numbers the mean grows with the pull. The random
    numbers depend on the column's name, the key and the position. Raises: ValueError, if a picture has no candidate,
    or the length cannot be reached
    """
    if lacking := [key for key, pool in zip(keys, pools) if not pool]:
        raise ValueError(f"{name}: {len(lacking)} pictures without a caption, such as {lacking[0]}")
    counts = [np.array([len(words(text)) for text in pool]) for pool in pools]  # (M,) for each picture
    chances = [
        _random(f"{name}/{key}", "chances").gumbel(size=len(pool)) for key, pool in zip(keys, pools, strict=True)
    ]

    def kept(pull: float) -> list[np.ndarray]:
        return [np.argsort(-(pull * n + chance), kind="stable")[:k] for n, chance in zip(counts, chances)]

    def mean(pull: float) -> float:
        return float(np.mean(np.concatenate([n[indices] for n, indices in zip(counts, kept(pull))])))

    low, high = -STEEPEST, STEEPEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < length else (low, middle)
    if abs(mean(high) - length) > TOLERANCE:
        raise ValueError(
            f"{name}: {mean(-STEEPEST):.2f} to {mean(STEEPEST):.2f} words can be had of its pools, not {length}"
        )
    return [[pool[index] for index in sorted(indices)] for pool, indices in zip(pools, kept(high))]


def _random(name: str, purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(name_hash(name, purpose)))
