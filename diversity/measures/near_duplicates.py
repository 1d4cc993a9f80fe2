"""Captions that say nearly the same words as an earlier one of their picture.

P: pictures   k: captions of the picture that has most
"""

import numpy as np

from diversity.measures.pairs import ngram_runs, pair_sums
from diversity.words.tokens import Tokens

NEAR = 0.8  # of the words of two captions


def near_duplicates(tokens: Tokens) -> np.ndarray:
    """The share of each picture's captions that nearly repeat an earlier one (P,), NaN for fewer than two captions; P
    k² numbers at once.

    A caption nearly repeats another where four fifths or more of the different words of the two stand in both (Jaccard
    similarity of their sets of words ≥ 0.8); so do two captions without a word, and every exact duplicate. Word order is left
    out. In [0, 1 - 1/m] for m captions, lower is more spread.
    """
    runs = ngram_runs(tokens, 1)
    common = pair_sums(tokens, runs, np.ones(len(runs.counts)))  # (P, k, k) different words
    sizes = np.diagonal(common, axis1=1, axis2=2)  # (P, k)
    either = sizes[:, :, None] + sizes[:, None, :] - common  # (P, k, k)
    near = np.any(np.tril(common >= NEAR * either, -1), axis=2)  # (P, k)
    near &= np.arange(near.shape[1]) < tokens.counts[:, None]  # captions that there are
    with np.errstate(invalid="ignore"):
        return np.where(tokens.counts > 1, near.sum(axis=1) / tokens.counts, np.nan)
