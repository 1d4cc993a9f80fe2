"""Find what each two captions of a picture have in common, for many pictures at once.

P: pictures   C: captions   G: n-grams   R: runs (one n-gram in one caption)   k: captions of the picture that has most
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from diversity.measures.lexical import ngram_hashes
from diversity.words.tokens import Tokens, encode

Groups = Sequence[Sequence[str]]  # the captions of each picture

CELLS_AT_ONCE = 2**14  # largest P k² of a batch; bounds its memory


class Runs(NamedTuple):
    """Each n-gram of each caption once; runs of one n-gram and picture are next to each other, captions in order."""

    ngrams: np.ndarray  # (R,) hashes, nearly sorted
    captions: np.ndarray  # (R,)
    pictures: np.ndarray  # (R,)
    counts: np.ndarray  # (R,) how often the caption has the n-gram

    def alike(self, distance: int) -> np.ndarray:
        """Return the runs that have the same n-gram and picture as the run `distance` positions later."""
        return np.flatnonzero(_equal(self.ngrams, distance) & _equal(self.pictures, distance))


def batches(groups: Groups) -> Iterator[Tokens]:
    """Yield the pictures in order, in batches whose pairs of captions fit into the memory bound."""
    batch, largest = [], 1
    for group in groups:
        if batch and (len(batch) + 1) * max(largest, len(group)) ** 2 > CELLS_AT_ONCE:
            yield encode(batch)
            batch, largest = [], 1
        batch.append(group)
        largest = max(largest, len(group))
    if batch:
        yield encode(batch)


def ngram_runs(tokens: Tokens, n: int) -> Runs:
    """Count the n-grams of each caption."""
    ngrams, captions = ngram_hashes(tokens, n)
    order = _grouping_order(ngrams)
    ngrams, captions = ngrams[order], captions[order]
    starts = np.delete(np.arange(len(order)), np.flatnonzero(_equal(ngrams, 1) & _equal(captions, 1)) + 1)
    captions = captions[starts]
    counts = np.diff(np.append(starts, len(order)))
    return Runs(ngrams[starts], captions, tokens.picture_of_caption[captions], counts=counts)


def _grouping_order(hashes: np.ndarray) -> np.ndarray:
    """Return an order (G,) in which equal hashes are next to each other, each group in its original order.

    The last bits of each hash are replaced by its position, so that plain numbers are sorted; this is ten times as
    fast as a stable argsort. Different n-grams that share all other bits could be mixed up: these are about 50 bits,
    for 30,000 n-grams.
    """
    bits = np.uint64(len(hashes).bit_length())
    keys = np.sort(hashes >> bits << bits | np.arange(len(hashes), dtype=np.uint64))
    return (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


def _equal(values: np.ndarray, distance: int) -> np.ndarray:
    """Return which values equal the value `distance` positions later."""
    return values[: max(0, len(values) - distance)] == values[distance:]


def pair_sums(tokens: Tokens, runs: Runs, values: np.ndarray) -> np.ndarray:
    """Return for every two captions of a picture the sum of values[a] values[b] over the n-grams that both have.

    a and b are the runs of the n-gram in the two captions; `values` (R,). The result is (P, k, k), with the lower
    triangle and the diagonal only, and 0 where a picture has fewer captions.
    """
    k = int(tokens.counts.max(initial=1))
    positions = np.arange(len(tokens.lengths)) - tokens.picture_ends[tokens.picture_of_caption]  # (C,) in the picture
    rows = (tokens.picture_of_caption * k + positions) * k  # (C,) the first cell of the caption's row
    sums = np.zeros(tokens.pictures * k * k)
    for distance in range(k):
        first = runs.alike(distance)
        if not len(first):
            break  # no n-gram has so many captions
        cells = rows[runs.captions[first + distance]] + positions[runs.captions[first]]
        sums += np.bincount(cells, values[first] * values[first + distance], len(sums))
    return sums.reshape(-1, k, k)
