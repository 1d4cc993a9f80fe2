"""Self-CIDEr: into how many directions the captions of a picture go, by CIDEr's similarity of each two.

P: pictures   C: captions   R: runs (one n-gram in one caption)   D: different n-grams   k: captions of the picture that has most
"""

import numpy as np

from diversity.measures.pairs import Groups, batches, ngram_runs, pair_sums
from diversity.words.tokens import Tokens

ORDERS = (1, 2, 3, 4)
ROUNDING = 1e-12  # of the greatest eigenvalue; a smaller one is zero, for its root would not be small


class DocumentFrequency:
    """Under how many pictures each n-gram stands: CIDEr's weights, built once for all columns that are compared.

    `groups` are the captions of each picture: the references where there are some, else all columns' captions together.
    Raises `ValueError` without a picture.
    """

    def __init__(self, groups: Groups) -> None:
        if not groups:
            raise ValueError("document frequencies need the captions of at least one picture")
        found = []
        for tokens in batches(groups):
            for n in ORDERS:
                runs = ngram_runs(tokens, n)
                found.append(np.delete(runs.ngrams, runs.alike(1)))  # leaves one of each picture
        ngrams, counts = np.unique(np.concatenate(found), return_counts=True)
        self.unseen = np.log(len(groups))
        self.ngrams = np.append(
            np.uint64(0), ngrams
        )  # (D + 1,) sorted; a first one, so that no hash stands before all
        self.weights = np.append(self.unseen, np.log(len(groups) / counts))  # (D + 1,)

    def weigh(self, ngrams: np.ndarray) -> np.ndarray:
        """ln(pictures / those with the n-gram) of each hash (R,); those of no picture weigh as much as those of one."""
        at = np.searchsorted(self.ngrams, ngrams, side="right") - 1
        return np.where(self.ngrams[at] == ngrams, self.weights[at], self.unseen)


def self_cider(tokens: Tokens, document_frequency: DocumentFrequency) -> np.ndarray:
    """Self-CIDEr of the captions of each picture (P,), NaN for fewer than two captions; P k² numbers are held at once.

    For m captions, -log_m(√λ₁ / Σ √λᵢ), where λᵢ are the eigenvalues, λ₁ the greatest, of the m × m matrix of the captions'
    CIDEr similarities: K(a, b) = Σ over n = 1..4 of cos(gₙ(a), gₙ(b)) ÷ √(Nₐ N_b), gₙ(a) the counts of a's n-grams times
    ln(pictures / pictures with the n-gram), Nₐ how many of these four vectors are not zero: 4 but for short captions, and then
    this is the paper's mean over n. In [0, 1], higher is more spread: 0 where all captions are equal, 1 where no two share an
    n-gram. A caption without a word, or with words of every picture alone, adds no direction; where all are such, NaN.
    Wang and Chan 2019, "Describing like Humans: on Diversity in Image Captioning". Their script takes CIDEr-D instead, which
    clips counts and punishes other lengths; its matrix can have negative eigenvalues.
    """
    cosines = sum(_cosines(tokens, n, document_frequency) for n in ORDERS)  # (P, k, k)
    orders = np.diagonal(cosines, axis1=1, axis2=2)  # (P, k)
    scale = np.divide(1, np.sqrt(orders), out=np.zeros_like(orders), where=orders > 0)  # (P, k)
    eigenvalues = np.linalg.eigvalsh(
        cosines * scale[:, :, None] * scale[:, None, :]
    )  # (P, k) rising; of the lower triangle
    roots = np.sqrt(np.where(eigenvalues > ROUNDING * eigenvalues[:, -1:], eigenvalues, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(roots.sum(axis=1) / roots[:, -1]) / np.log(
            tokens.counts
        )  # 0 / 0 for one caption, and without a weight


def _cosines(tokens: Tokens, n: int, document_frequency: DocumentFrequency) -> np.ndarray:
    """Of every two captions of a picture, as `pair_sums` has them, the cosine of their weighed n-grams (P, k, k)."""
    runs = ngram_runs(tokens, n)
    weights = runs.counts * document_frequency.weigh(runs.ngrams)  # (R,)
    norms = np.sqrt(np.bincount(runs.captions, weights**2, len(tokens.lengths)))[runs.captions]  # (R,)
    return pair_sums(tokens, runs, np.divide(weights, norms, out=np.zeros_like(weights), where=norms > 0))
