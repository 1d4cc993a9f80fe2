"""Measure the meaning of captions by their embeddings: distances, the number of different meanings, and coverage.

N: captions   D: dimension of their embedding   P: pictures   k: captions of a picture   M: human captions
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diversity.measures.agreement import SAME, means, share_behind, strange
from diversity.measures.embedders import Embedder
from diversity.measures.pairs import Groups
from imagetext.shown import Progress

ORDERS = {"0.5": 0.5, "1": 1.0, "2": 2.0, "inf": np.inf}  # the orders q of Vendi scores
NEIGHBOUR = 5  # captions nearer than this nearest neighbour are near enough, as in Naeem et al.
ROWS_AT_ONCE = 4096  # bounds the memory of a step
SUMMED = 16  # rows that are summed in float32, which is three times as fast as float64 and loses two bits at most
PAIRS_AT_ONCE = 512  # captions that are compared with all others at once; bounds the memory


class VendiAccumulator:
    """The Vendi score and the mean cosine distance of any number of embeddings, from sums of D² numbers.

    Products are computed in the precision of the embeddings, and sums in float64. The error of scores is below 1e-6
    for float32 rows, except for q < 1 where nearly all rows are equal, and is only rounding for float64 rows. The
    order and the split of the rows change the result by rounding only.
    """

    def __init__(self, dimension: int):
        self.count = 0
        self.total = np.zeros(dimension)  # (D,) sum of the rows
        self.moments = np.zeros((dimension, dimension))  # (D, D) sum of their outer products
        self.precision = float(np.finfo(np.float64).eps)  # precision of the least precise rows

    def update(self, embeddings: np.ndarray) -> None:
        """Add rows (N, D), which are scaled to length 1; raise ValueError for a row of length 0."""
        precision = np.result_type(embeddings, np.float32)  # at least float32, so that half precision is not summed
        space = np.empty((min(len(embeddings), ROWS_AT_ONCE), len(self.total)), precision)  # new memory costs time
        for start in range(0, len(embeddings), ROWS_AT_ONCE):
            block = embeddings[start : start + ROWS_AT_ONCE].astype(precision, copy=False)
            rows = unit(block, out=space[: len(block)])
            self.count += len(rows)
            self.total += _sum(rows)
            self.moments += rows.T @ rows
        self.precision = max(self.precision, float(np.finfo(precision).eps))

    def merge(self, other: "VendiAccumulator") -> None:
        """Add the rows of another accumulator; raise ValueError where its dimension differs."""
        if len(self.total) != len(other.total):
            raise ValueError(f"embeddings of {len(self.total)} and of {len(other.total)} dimensions")
        self.count += other.count
        self.total += other.total
        self.moments += other.moments
        self.precision = max(self.precision, other.precision)

    def result(self) -> dict[str, Any]:
        """Return `captions`, `vendi` for each order q, and `cosine_distance` of all pairs; None where undefined.

        Let λ be the eigenvalues of the covariance Σ x xᵀ / n, which are, apart from zeros, those of the n × n matrix
        of cosines ÷ n. The Vendi score is exp(-Σ λ ln λ) for q = 1, 1 / max λ for q = ∞, and otherwise (Σ λ^q)^(1 / (1
        - q)): the effective number of different rows, from 1, where all are equal, to min(n, D). The mean distance is
        (n² - |Σ x|²) / (n (n - 1)), from 0, where all are equal, to 2. Higher is more spread. Friedman and Dieng 2022,
        "The Vendi Score"; orders: Pasarkar and Dieng 2023, "Cousins of the Vendi Score".
        """
        n = self.count
        vendi = vendi_scores(np.linalg.eigvalsh(self.moments), self.precision) if n else dict.fromkeys(ORDERS)
        distance = max(0.0, float(n**2 - self.total @ self.total) / (n * (n - 1))) if n > 1 else None
        return {
            "captions": n,
            "vendi": {q: None if score is None else float(score) for q, score in vendi.items()},
            "cosine_distance": distance,
        }


def vendi_scores(eigenvalues: np.ndarray, precision: float) -> dict[str, np.ndarray]:
    """Return the Vendi scores (...) of spectra (..., D) for each order.

    `precision` is the precision of the products in the matrix. Eigenvalues that may be zero but for rounding count as
    zero, because for a small q their powers would not be small.
    """
    largest = eigenvalues.max(axis=-1, keepdims=True)
    shares = np.where(eigenvalues > 10 * precision * largest, eigenvalues, 0)
    shares = shares / shares.sum(axis=-1, keepdims=True)
    scores = {}
    for name, q in ORDERS.items():
        if q == 1:
            scores[name] = np.exp(-(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=-1))
        elif q == np.inf:
            scores[name] = 1 / shares.max(axis=-1)
        else:
            scores[name] = (shares**q).sum(axis=-1) ** (1 / (1 - q))
    return scores


def within_picture(embeddings: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """Return `cosine_distance` (P,) and `vendi` (P,) for each order of each picture's captions, NaN for a single one.

    embeddings (N, D): the captions, picture by picture. counts (P,): the number of captions of each picture. The
    measures are those of `VendiAccumulator.result`, for the k × k cosines of a picture's captions: Vendi scores are
    from 1 to k, and the distance, a mean over pairs, is from 0 to 2.
    """
    firsts = np.cumsum(counts) - counts
    distance = np.full(len(counts), np.nan)
    vendi = {q: np.full(len(counts), np.nan) for q in ORDERS}
    for k in np.unique(counts[counts > 1]).tolist():
        having = np.flatnonzero(counts == k)
        for start in range(0, len(having), ROWS_AT_ONCE):
            pictures = having[start : start + ROWS_AT_ONCE]
            rows = unit(embeddings[firsts[pictures, None] + np.arange(k)].astype(np.float64))  # (P, k, D)
            cosines = rows @ rows.transpose(0, 2, 1)  # (P, k, k)
            distance[pictures] = np.maximum(0, (k**2 - cosines.sum(axis=(1, 2))) / (k * (k - 1)))
            for q, scores in vendi_scores(np.linalg.eigvalsh(cosines), np.finfo(np.float64).eps).items():
                vendi[q][pictures] = scores
    return {"cosine_distance": distance, "vendi": vendi}


def _sum(rows: np.ndarray) -> np.ndarray:
    """Return the sum (D,) of rows (N, D) in float64; only SUMMED rows at a time are summed in their own precision."""
    groups = len(rows) // SUMMED
    sums = rows[: SUMMED * groups].reshape(groups, SUMMED, rows.shape[1]).sum(axis=1)
    return sums.sum(axis=0, dtype=np.float64) + rows[SUMMED * groups :].sum(axis=0, dtype=np.float64)


def unit(rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return the rows (..., D) scaled to length 1, in `out` where given.

    Raises ValueError for a row of length 0 or not finite.
    """
    lengths = np.sqrt(np.einsum("...d,...d->...", rows, rows))
    if not ((lengths > 0) & np.isfinite(lengths)).all():
        raise ValueError("an embedding of length 0, or with a number that is not finite")
    return np.divide(rows, lengths[..., None], out=out)


# --- columns of captions ---------------------------------------------------------------------------------------------


class SemanticScores(NamedTuple):
    """The scores of one column."""

    # (P,), NaN where undefined: cosine_distance, vendi (q = 1), and with references coverage and found_meaning
    pictures: dict[str, np.ndarray]
    row: dict[str, Any]  # the block `semantic` of the column's row in the report
    signs: dict[str, np.ndarray]  # strange_meaning: (P,); `diversity.verdict.suspicions` reads it


def semantic_scores(
    embedder: Embedder, columns: Mapping[str, Groups], references: Groups | None = None, human: str | None = None
) -> dict[str, SemanticScores]:
    """Measure the spread in meaning of each column, within pictures and over the set, and its coverage of references.

    columns[column][p] are the captions of picture p, references[p] all its human captions. human: the column that
    contains some of these references; none of its captions covers itself.

    found_meaning: the share of other pictures whose human captions are less like a caption (mean cosine) than those of
    its own picture, mean over the picture's captions. In [0, 1]: ½ for captions of other pictures, higher is better.
    """
    vectors = encode_columns(embedder, list(columns.values()) + ([references] if references is not None else []))
    human_captions = HumanCaptions(vectors.pop(), sizes(references)) if references is not None else None
    scores_of = {}
    for (name, groups), embeddings in zip(columns.items(), vectors, strict=True):
        within = within_picture(embeddings, sizes(groups))
        pictures, signs = {"cosine_distance": within["cosine_distance"], "vendi": within["vendi"]["1"]}, {}
        if human_captions:
            pictures["coverage"] = human_captions.covered(embeddings, sizes(groups), themselves=name == human)
            shares = human_captions.shares_behind(embeddings, sizes(groups), themselves=name == human)
            owners = np.repeat(np.arange(len(groups)), sizes(groups))
            pictures["found_meaning"] = means(shares, owners, len(groups))
            signs["strange_meaning"] = means(strange(shares), owners, len(groups))
        sums = VendiAccumulator(embeddings.shape[1])
        sums.update(embeddings.astype(np.float64))
        of_set = sums.result()
        row = {
            "cosine_distance": mean(within["cosine_distance"]),
            "set_cosine_distance": of_set["cosine_distance"],
            "vendi": {q: mean(scores) for q, scores in within["vendi"].items()},
            "set_vendi": of_set["vendi"],
            "captions": of_set["captions"],
            "coverage": mean(pictures["coverage"]) if human_captions else None,
            "found_meaning": mean(pictures["found_meaning"]) if human_captions else None,
        }
        scores_of[name] = SemanticScores(pictures, row, signs)
    return scores_of


class HumanCaptions:
    """The human captions of pictures, with which the captions of columns are compared.

    A caption covers a human caption of its picture if it is at least as near as the fifth nearest human caption of
    another picture. This is the coverage of Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative
    Models", with one change: there every caption can cover, so that captions of wrong pictures cover as much as those
    of right ones. Here a caption covers human captions of its own picture only, and the neighbours are those of other
    pictures.
    """

    def __init__(self, embeddings: np.ndarray, counts: np.ndarray):
        """`embeddings` (M, D) are of length 1, picture by picture; `counts` (P,) are the captions of each picture."""
        owners = np.repeat(np.arange(len(counts)), counts)  # (M,)
        # (M,) the cosine that is near enough; -inf where other pictures have too few captions
        enough = np.full(len(owners), -np.inf)
        for start in Progress(
            range(0, len(owners), PAIRS_AT_ONCE), desc="nearest human captions", unit="block", delay=2
        ):
            rows = slice(start, start + PAIRS_AT_ONCE)
            cosines = np.where(owners[rows, None] == owners, -np.inf, embeddings[rows] @ embeddings.T)  # (rows, M)
            if len(owners) >= NEIGHBOUR:
                enough[rows] = np.partition(cosines, -NEIGHBOUR, axis=1)[:, -NEIGHBOUR]
        self._of_picture, self._enough = split_rows(embeddings, counts), split_rows(enough, counts)
        self._means = np.stack([vectors.mean(axis=0) for vectors in self._of_picture])  # (P, D)

    def covered(self, embeddings: np.ndarray, counts: np.ndarray, themselves: bool = False) -> np.ndarray:
        """Return the share of each picture's human captions that its captions cover (P,), NaN where undefined.

        `themselves`: the captions are human captions of the picture, and equal captions do not cover each other.
        """
        scores = np.full(len(counts), np.nan)
        pictures = zip(self._of_picture, self._enough, split_rows(embeddings, counts), strict=True)
        for picture, (human, enough, captions) in enumerate(pictures):
            cosines = human @ captions.T  # (M, k) of the picture
            if themselves:
                cosines = np.where(cosines > 1 - SAME, -np.inf, cosines)
            nearest = cosines.max(axis=1, initial=-np.inf)  # (M,)
            counted = np.isfinite(nearest) & np.isfinite(enough)
            if counted.any():
                scores[picture] = (nearest >= enough - SAME)[counted].mean()
        return scores

    def shares_behind(self, embeddings: np.ndarray, counts: np.ndarray, themselves: bool = False) -> np.ndarray:
        """Return for each caption (N,) the share of other pictures that are less like it than its own picture.

        The likeness of a picture is the mean cosine between the caption and the picture's human captions.

        `themselves`: the captions are human captions of the picture, and each is compared with the others.
        """
        shares = np.full(len(embeddings), np.nan)
        owners = np.repeat(np.arange(len(counts)), counts)
        for start in range(0, len(owners), PAIRS_AT_ONCE):
            rows = slice(start, start + PAIRS_AT_ONCE)
            likeness_of_rows = embeddings[rows] @ self._means.T  # (rows, P)
            for number, (likeness, picture) in enumerate(zip(likeness_of_rows, owners[rows]), start):
                human = len(self._of_picture[picture])
                if themselves and human > 1:  # take the caption itself, with its cosine of 1, out of the mean
                    likeness[picture] = (human * likeness[picture] - 1) / (human - 1)
                shares[number] = share_behind(likeness, picture)
        return shares


def encode_columns(embedder: Embedder, columns: Sequence[Groups], prompt: str = "") -> list[np.ndarray]:
    """Return the embeddings (N, D) of each column's captions after the prompt; equal captions are embedded once."""
    texts = [[prompt + caption for group in groups for caption in group] for groups in columns]
    vectors = embedder.encode([text for column_texts in texts for text in column_texts])
    return split_rows(vectors, [len(column_texts) for column_texts in texts])


def sizes(groups: Groups) -> np.ndarray:
    """Return how many captions each picture has (P,)."""
    return np.array([len(group) for group in groups], int)


def mean(scores: np.ndarray) -> float | None:
    """Return the mean of the scores that are not NaN; None where all are NaN."""
    return None if np.isnan(scores).all() else float(np.nanmean(scores))


def split_rows(rows: np.ndarray, counts: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Split rows into groups of so many rows each, for example by picture."""
    return np.split(rows, np.cumsum(counts))[:-1]
