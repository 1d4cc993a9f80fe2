"""What captions mean: how far apart, how many different ones, and which human captions they reach, by their embeddings.

N: captions   D: dimension of their embedding   P: pictures   k: captions of a picture   M: human captions
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diversity.measures.agreement import SAME, means, share_behind, strange
from diversity.measures.embedders import Embedder
from diversity.measures.pairs import Groups
from imagetext.shown import Progress

ORDERS = {"0.5": 0.5, "1": 1.0, "2": 2.0, "inf": np.inf}  # of Vendi scores
NEIGHBOUR = 5  # whose distance is near enough, as in Naeem et al.
ROWS_AT_ONCE = 4096  # bounds the memory of a step
PAIRS_AT_ONCE = 512  # of these with all other captions


class VendiAccumulator:
    """The Vendi score and the mean cosine distance of any number of embeddings, from their sums: D² numbers.

    Products are taken in the embeddings' own precision, sums in float64: float32 rows give scores as good as 1e-6, except for
    q < 1 where nearly all rows are equal; float64 rows give them to rounding, and so do any split and order of the rows.
    """

    def __init__(self, dimension: int):
        self.count = 0
        self.total = np.zeros(dimension)  # (D,) sum of the rows
        self.moments = np.zeros((dimension, dimension))  # (D, D) sum of their outer products
        self.precision = float(np.finfo(np.float64).eps)  # of the least precise rows

    def update(self, embeddings: np.ndarray) -> None:
        """Adds rows (N, D), which are scaled to length 1; ValueError where one has no direction."""
        embeddings = embeddings.astype(
            np.result_type(embeddings, np.float32), copy=False
        )  # so that half precision is not summed
        for start in range(0, len(embeddings), ROWS_AT_ONCE):
            rows = unit(embeddings[start : start + ROWS_AT_ONCE])
            self.count += len(rows)
            self.total += rows.sum(axis=0, dtype=np.float64)
            self.moments += rows.T @ rows
        self.precision = max(self.precision, float(np.finfo(embeddings.dtype).eps))

    def merge(self, other: "VendiAccumulator") -> None:
        """Adds the rows that `other` has seen; ValueError where they have another dimension."""
        if len(self.total) != len(other.total):
            raise ValueError(f"embeddings of {len(self.total)} and of {len(other.total)} dimensions")
        self.count += other.count
        self.total += other.total
        self.moments += other.moments
        self.precision = max(self.precision, other.precision)

    def result(self) -> dict[str, Any]:
        """`captions`; `vendi` by order q; `cosine_distance`, the mean over all pairs of captions. None where undefined.

        With λ the eigenvalues of the covariance Σ x xᵀ / n, which are those of the n × n matrix of cosines ÷ n, less zeros, the
        Vendi score is exp(-Σ λ ln λ) for q = 1, 1 / max λ for q = ∞, else (Σ λ^q)^(1 / (1 - q)): the effective number of
        different rows, from 1, where all are equal, to min(n, D). The mean distance is (n² - |Σ x|²) / (n (n - 1)),
        from 0, where all are equal, to 2. Higher is more spread. Friedman and Dieng 2022, "The Vendi Score"; orders:
        Pasarkar and Dieng 2023, "Cousins of the Vendi Score".
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
    """Vendi scores by order of spectra (..., D), each (...); what rounding may have made of zero is taken for zero.

    `precision` is that of the products in the matrix. For a small q such noise would count, for its root is not small.
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
    """`cosine_distance` (P,) and `vendi` by order (P,) of each picture's captions, NaN for fewer than two.

    `embeddings` (N, D) has the captions picture by picture, `counts` (P,) says how many. As in `VendiAccumulator.result`, of the
    k × k cosines of a picture's captions: Vendi scores go from 1 to k, the distance, a mean over pairs, from 0 to 2.
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


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows (..., D) scaled to length 1; ValueError where one has no direction."""
    lengths = np.sqrt(np.einsum("...d,...d->...", rows, rows))
    if not ((lengths > 0) & np.isfinite(lengths)).all():
        raise ValueError("an embedding of length 0, or with a number that is not finite")
    return rows / lengths[..., None]


# --- columns of captions -----------------------------------------------------------------------------------------------


class SemanticScores(NamedTuple):
    """Of one column: `cosine_distance`, `vendi` (q = 1) and with references `coverage` and `found_meaning` of each
    picture (P,), NaN where undefined; its block `semantic` of the row; and `strange_meaning` (P,), which
    `diversity.verdict.suspicions` looks at."""

    pictures: dict[str, np.ndarray]
    row: dict[str, Any]
    signs: dict[str, np.ndarray]


def semantic_scores(
    embedder: Embedder, columns: Mapping[str, Groups], references: Groups | None = None, human: str | None = None
) -> dict[str, SemanticScores]:
    """Spread in meaning of each column, within its pictures and over the set, and its coverage of the references, if any.

    columns[column][p] are the captions of picture p, references[p] all its human ones. `human` names the column that consists of
    some of them: no caption of it covers itself.

    found_meaning: the share of other pictures to whose human captions a caption is less like (mean cosine) than to its
    own picture's, mean over the picture's captions. In [0, 1]: ½ for captions of other pictures, higher is better.
    """
    vectors = encode_columns(embedder, list(columns.values()) + ([references] if references is not None else []))
    reached = HumanCaptions(vectors.pop(), sizes(references)) if references is not None else None
    found = {}
    for (name, groups), embeddings in zip(columns.items(), vectors, strict=True):
        within = within_picture(embeddings, sizes(groups))
        pictures, signs = {"cosine_distance": within["cosine_distance"], "vendi": within["vendi"]["1"]}, {}
        if reached:
            pictures["coverage"] = reached.covered(embeddings, sizes(groups), themselves=name == human)
            shares = reached.shares_behind(embeddings, sizes(groups), themselves=name == human)
            owners = np.repeat(np.arange(len(groups)), sizes(groups))
            pictures["found_meaning"] = means(shares, owners, len(groups))
            signs["strange_meaning"] = means(strange(shares), owners, len(groups))
        sums = VendiAccumulator(embeddings.shape[1])
        sums.update(embeddings.astype(np.float64))
        whole = sums.result()
        found[name] = SemanticScores(
            pictures,
            {
                "cosine_distance": mean(within["cosine_distance"]),
                "set_cosine_distance": whole["cosine_distance"],
                "vendi": {q: mean(scores) for q, scores in within["vendi"].items()},
                "set_vendi": whole["vendi"],
                "captions": whole["captions"],
                "coverage": None,
                "found_meaning": None,
                **{score: mean(pictures[score]) for score in ("coverage", "found_meaning") if score in pictures},
            },
            signs,
        )
    return found


class HumanCaptions:
    """The human captions of pictures, and how near to each of them is near enough.

    That is as near as the fifth nearest human caption of another picture. Coverage is that of Naeem et al. 2020, "Reliable
    Fidelity and Diversity Metrics for Generative Models", with one change: there anything covers, so that captions under wrong
    pictures cover as much as under right ones; here a caption covers those of its own picture, and neighbours are of another.
    """

    def __init__(self, embeddings: np.ndarray, counts: np.ndarray):
        """`embeddings` (M, D) of length 1, picture by picture; `counts` (P,), how many a picture has."""
        owners = np.repeat(np.arange(len(counts)), counts)  # (M,)
        enough = np.full(len(owners), -np.inf)  # (M,) cosines; -inf where other pictures have too few captions
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
        """The share of each picture's human captions that one of its captions covers (P,), NaN where undefined.

        `themselves`: the captions are human ones of the picture, and equal ones do not cover each other.
        """
        scores = np.full(len(counts), np.nan)
        pictures = zip(self._of_picture, self._enough, split_rows(embeddings, counts), strict=True)
        for at, (human, enough, captions) in enumerate(pictures):
            cosines = human @ captions.T  # (M, k) of the picture
            if themselves:
                cosines = np.where(cosines > 1 - SAME, -np.inf, cosines)
            nearest = cosines.max(axis=1, initial=-np.inf)  # (M,)
            counted = np.isfinite(nearest) & np.isfinite(enough)
            if counted.any():
                scores[at] = (nearest >= enough - SAME)[counted].mean()
        return scores

    def shares_behind(self, embeddings: np.ndarray, counts: np.ndarray, themselves: bool = False) -> np.ndarray:
        """Of each caption (N,) the share of other pictures to whose human captions it is less like than to its own picture's.

        `themselves`: the captions are human ones of the picture, and each is compared with its others.
        """
        shares = np.full(len(embeddings), np.nan)
        owners = np.repeat(np.arange(len(counts)), counts)
        for start in range(0, len(owners), PAIRS_AT_ONCE):
            likeness = embeddings[start : start + PAIRS_AT_ONCE] @ self._means.T  # (rows, P)
            for at, (of_caption, picture) in enumerate(zip(likeness, owners[start : start + PAIRS_AT_ONCE]), start):
                human = len(self._of_picture[picture])
                if themselves and human > 1:
                    of_caption[picture] = (human * of_caption[picture] - 1) / (human - 1)
                shares[at] = share_behind(of_caption, picture)
        return shares


def encode_columns(embedder: Embedder, columns: Sequence[Groups], prompt: str = "") -> list[np.ndarray]:
    """The embeddings (N, D) of each column's captions, each behind the prompt; what several columns say is embedded once."""
    texts = [[prompt + caption for group in groups for caption in group] for groups in columns]
    vectors = embedder.encode([text for of_column in texts for text in of_column])
    return split_rows(vectors, [len(of_column) for of_column in texts])


def sizes(groups: Groups) -> np.ndarray:
    """How many captions each picture has (P,)."""
    return np.array([len(group) for group in groups], int)


def mean(scores: np.ndarray) -> float | None:
    """The mean of those that are defined, None where none is."""
    return None if np.isnan(scores).all() else float(np.nanmean(scores))


def split_rows(rows: np.ndarray, counts: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """The rows of each picture, or whatever else has so many."""
    return np.split(rows, np.cumsum(counts))[:-1]
