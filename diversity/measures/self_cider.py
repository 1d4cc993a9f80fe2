"""Self-CIDEr: measure in how many directions the captions of a picture vary, by the CIDEr similarity of each two.

P: pictures   C: captions   k: captions of the picture that has most
R: runs (one n-gram in one caption)   D: different n-grams
"""

import numpy as np

from diversity.measures.pairs import Groups, batches, ngram_runs, pair_sums
from diversity.words.tokens import Tokens

ORDERS = (1, 2, 3, 4)
ROUNDING = 1e-12  # eigenvalues below this share of the greatest one count as 0, because their roots would not be small


class DocumentFrequency:
    """CIDEr's weights, from the number of pictures that have each n-gram, counted once for all compared columns.

    `groups` are the captions of each picture: the references where there are any, else the captions of all columns
    together. Raises `ValueError` without a picture.
    """

    def __init__(self, groups: Groups) -> None:
        if not groups:
            raise ValueError("document frequencies need the captions of at least one picture")
        ngrams_of_pictures = []
        for tokens in batches(groups):
            for n in ORDERS:
                runs = ngram_runs(tokens, n)
                ngrams_of_pictures.append(np.delete(runs.ngrams, runs.alike(1)))  # each n-gram once per picture
        ngrams, counts = np.unique(np.concatenate(ngrams_of_pictures), return_counts=True)
        self.unseen = np.log(len(groups))
        # (D + 1,) sorted; the additional 0 comes first, so that every hash has a predecessor
        self.ngrams = np.append(np.uint64(0), ngrams)
        self.weights = np.append(self.unseen, np.log(len(groups) / counts))  # (D + 1,)

    def weigh(self, ngrams: np.ndarray) -> np.ndarray:
        """Return ln(pictures / pictures with the n-gram) of each hash (R,); an n-gram of no picture counts as of 1."""
        index = np.searchsorted(self.ngrams, ngrams, side="right") - 1
        return np.where(self.ngrams[index] == ngrams, self.weights[index], self.unseen)


def self_cider(tokens: Tokens, document_frequency: DocumentFrequency) -> np.ndarray:
    """Return the Self-CIDEr of each picture's captions (P,), NaN for fewer than two. Memory: P k² numbers.

    For m captions it is -log_m(√λ₁ / Σ √λᵢ), where λᵢ are the eigenvalues, λ₁ the greatest, of the m × m matrix of the
    captions' CIDEr similarities: K(a, b) = Σ over n = 1..4 of cos(gₙ(a), gₙ(b)) ÷ √(Nₐ N_b). gₙ(a) is the vector of
    the counts of a's n-grams times ln(pictures / pictures with the n-gram). Nₐ is how many of these four vectors are
    not zero; it is 4, except for short captions, and then K is the paper's mean over n. In [0, 1], higher is more
    spread: 0 where all captions are equal, 1 where no two share an n-gram. A caption without a word, or only with
    words that every picture has, adds no direction; NaN where all captions are such. Wang and Chan 2019, "Describing
    like Humans: on Diversity in Image Captioning". Their script uses CIDEr-D instead, which clips counts and penalizes
    other lengths; its matrix can have negative eigenvalues.
    """
    cosines = sum(_cosines(tokens, n, document_frequency) for n in ORDERS)  # (P, k, k) lower triangle
    vectors = np.diagonal(cosines, axis1=1, axis2=2)  # (P, k) how many vectors of a caption are not zero
    scale = np.divide(1, np.sqrt(vectors), out=np.zeros_like(vectors), where=vectors > 0)  # (P, k)
    similarities = cosines * scale[:, :, None] * scale[:, None, :]  # (P, k, k) lower triangle
    eigenvalues = np.linalg.eigvalsh(similarities)  # (P, k) ascending; it reads the lower triangle only
    roots = np.sqrt(np.where(eigenvalues > ROUNDING * eigenvalues[:, -1:], eigenvalues, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        # 0 / 0 for a single caption, and where no n-gram has a weight
        return np.log(roots.sum(axis=1) / roots[:, -1]) / np.log(tokens.counts)


def _cosines(tokens: Tokens, n: int, document_frequency: DocumentFrequency) -> np.ndarray:
    """Return the cosines of the weighted n-grams of every two captions of a picture (P, k, k), as in `pair_sums`."""
    runs = ngram_runs(tokens, n)
    weights = runs.counts * document_frequency.weigh(runs.ngrams)  # (R,)
    norms = np.sqrt(np.bincount(runs.captions, weights**2, len(tokens.lengths)))[runs.captions]  # (R,)
    return pair_sums(tokens, runs, np.divide(weights, norms, out=np.zeros_like(weights), where=norms > 0))
