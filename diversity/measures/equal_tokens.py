"""Measure columns at equal length: vocabulary, distinct-n, entropy and compression of equally many words."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from diversity.measures.compression import compression_ratio
from diversity.measures.lexical import ngram_hashes
from diversity.measures.pairs import Groups
from diversity.words.tokens import encode, words


def equal_tokens(
    columns: Mapping[str, Groups], seed: int, *, ratios: Mapping[str, float | None] | None = None
) -> dict[str, dict[str, Any]]:
    """Cut each column to as many words as the shortest column has, and measure these words.

    All columns have the same pictures. Their captions are taken in one seeded order of the pictures until the number
    of words is reached, if necessary within a caption.

    words: that number. vocabulary: different words. distinct_1 .. distinct_4: different n-grams ÷ n-grams, in [0, 1]
    (Li et al. 2016). entropy_1 .. entropy_4: -Σ p log₂ p over the n-grams, in bits, from 0 to log₂ of their number. Of
    all these higher is more spread. compression: see `compression_ratio`, lower is more spread. None where there is
    nothing to measure.

    ratios: the `compression_ratio` of each whole column with this seed, if known; one that is not cut has it, too.
    Raises `ValueError` where columns differ in their number of pictures.
    """
    pictures = {name: len(groups) for name, groups in columns.items()}
    if len(set(pictures.values())) > 1:
        raise ValueError(f"columns must have the same pictures, not {pictures}")
    rng = np.random.Generator(np.random.Philox(seed))
    order: list[int] = rng.permutation(max(pictures.values(), default=0)).tolist()
    captions = {
        name: [caption for picture in order for caption in groups[picture]] for name, groups in columns.items()
    }
    ends = {name: list(accumulate(len(words(caption)) for caption in texts)) for name, texts in captions.items()}
    limit = min((column[-1] if column else 0 for column in ends.values()), default=0)
    measured = {}
    for name, texts in captions.items():
        kept = _cut(texts, ends[name], limit)
        ratio = ratios[name] if ratios and ends[name][-1:] == [limit] else None
        measured[name] = _measures(kept) | {"compression": ratio or compression_ratio(kept, seed)}
    return measured


def _cut(captions: Sequence[str], ends: Sequence[int], limit: int) -> list[str]:
    """Return the captions cut after `limit` words; `ends` holds the number of words up to the end of each caption."""
    count = bisect_right(ends, limit)
    cut = list(captions[:count])
    missing = limit - (ends[count - 1] if count else 0)
    if missing:
        cut.append(" ".join(words(captions[count])[:missing]))
    return cut


def _measures(captions: Sequence[str]) -> dict[str, Any]:
    """Return all but the compression."""
    tokens = encode([captions])
    counts = {n: np.unique(ngram_hashes(tokens, n)[0], return_counts=True)[1] for n in (1, 2, 3, 4)}
    return {
        "words": int(counts[1].sum()),
        "vocabulary": len(counts[1]),
        **{f"distinct_{n}": len(ngrams) / int(ngrams.sum()) if len(ngrams) else None for n, ngrams in counts.items()},
        **{f"entropy_{n}": _entropy(ngrams) for n, ngrams in counts.items()},
    }


def _entropy(counts: np.ndarray) -> float | None:
    """Return the entropy in bits of n-grams that occur so many times; None without an n-gram."""
    if not len(counts):
        return None
    shares = counts / counts.sum()
    return float(shares @ np.log2(1 / shares))
