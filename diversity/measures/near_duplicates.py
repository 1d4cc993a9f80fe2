"""Find captions with nearly the same words as an earlier caption of their picture.

P: pictures   k: captions of the picture that has most
"""

import numpy as np

from diversity.measures.pairs import ngram_runs, pair_sums
from diversity.words.tokens import Tokens

NEAR = 0.8  # share of the words of two captions that both have


def near_duplicates(tokens: Tokens) -> np.ndarray:
    """Return the share of each picture's captions that nearly repeat an earlier one (P,), NaN for a single caption.

    A caption nearly repeats another one if both have at least four fifths of the different words of the two (Jaccard
    similarity of their sets of words ≥ 0.8), in any order. Two captions without a word count as near duplicates, and
    so do exact duplicates. In [0, 1 - 1/m] for m captions, lower is more spread. Memory: P k² numbers.
    """
    runs = ngram_runs(tokens, 1)
    common = pair_sums(tokens, runs, np.ones(len(runs.counts)))  # (P, k, k) different words in both captions
    sizes = np.diagonal(common, axis1=1, axis2=2)  # (P, k) different words of each caption
    either = sizes[:, :, None] + sizes[:, None, :] - common  # (P, k, k) different words in at least one of both
    near = np.any(np.tril(common >= NEAR * either, -1), axis=2)  # (P, k)
    near &= np.arange(near.shape[1]) < tokens.counts[:, None]  # without the padding of pictures with fewer captions
    with np.errstate(invalid="ignore"):
        return np.where(tokens.counts > 1, near.sum(axis=1) / tokens.counts, np.nan)
