"""What the captions of a picture have in common, pair by pair, for many pictures at once.

P: pictures   C: captions   G: n-grams   R: runs (one n-gram in one caption)   k: captions of the picture that has most
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from diversity.measures.lexical import ngram_hashes
from diversity.words.tokens import Tokens, encode

Groups = Sequence[Sequence[str]]  # the captions of each picture

CELLS_AT_ONCE = 2**14  # P k², bounds the memory of a batch


class Runs(NamedTuple):
    """Each n-gram of each caption once, those of one n-gram and one picture side by side, captions in order."""

    ngrams: np.ndarray  # (R,) hashes, nearly sorted
    captions: np.ndarray  # (R,)
    pictures: np.ndarray  # (R,)
    counts: np.ndarray  # (R,) how often the caption has the n-gram

    def alike(self, apart: int) -> np.ndarray:
        """The runs that have their n-gram and picture in common with the run so many further on."""
        return np.flatnonzero(_equal(self.ngrams, apart) & _equal(self.pictures, apart))


def batches(groups: Groups) -> Iterator[Tokens]:
    """The pictures in order, as many at once as their pairs of captions have room."""
    batch, most = [], 1
    for group in groups:
        if batch and (len(batch) + 1) * max(most, len(group)) ** 2 > CELLS_AT_ONCE:
            yield encode(batch)
            batch, most = [], 1
        batch.append(group)
        most = max(most, len(group))
    if batch:
        yield encode(batch)


def ngram_runs(tokens: Tokens, n: int) -> Runs:
    """The captions' n-grams, counted."""
    ngrams, captions = ngram_hashes(tokens, n)
    order = _side_by_side(ngrams)
    ngrams, captions = ngrams[order], captions[order]
    starts = np.delete(np.arange(len(order)), np.flatnonzero(_equal(ngrams, 1) & _equal(captions, 1)) + 1)
    captions = captions[starts]
    return Runs(ngrams[starts], captions, tokens.picture_of_caption[captions], np.diff(np.append(starts, len(order))))


def _side_by_side(hashes: np.ndarray) -> np.ndarray:
    """An order (G,) in which equal hashes stand together, as they came.

    Each hash's last bits give way to its place, so that plain numbers are sorted, ten times as fast as a stable argsort.
    Two n-grams of one picture that share all other bits could come apart: about 50 bits, for 30,000 n-grams.
    """
    bits = np.uint64(len(hashes).bit_length())
    placed = np.sort(hashes >> bits << bits | np.arange(len(hashes), dtype=np.uint64))
    return (placed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


def _equal(values: np.ndarray, apart: int) -> np.ndarray:
    return values[: max(0, len(values) - apart)] == values[apart:]


def pair_sums(tokens: Tokens, runs: Runs, values: np.ndarray) -> np.ndarray:
    """For every two captions of a picture, the sum of values[a] values[b] over their common n-grams, runs a and b.

    (P, k, k), lower triangle and diagonal only; zero where a picture has fewer captions.
    """
    k = int(tokens.counts.max(initial=1))
    places = np.arange(len(tokens.lengths)) - tokens.picture_ends[tokens.picture_of_caption]  # (C,) in its picture
    rows = (tokens.picture_of_caption * k + places) * k  # (C,) first cell of its row
    sums = np.zeros(tokens.pictures * k * k)
    for apart in range(k):
        first = runs.alike(apart)
        if not len(first):
            break  # no n-gram has so many captions
        cells = rows[runs.captions[first + apart]] + places[runs.captions[first]]
        sums += np.bincount(cells, values[first] * values[first + apart], len(sums))
    return sums.reshape(-1, k, k)
