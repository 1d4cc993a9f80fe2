"""Measure how well captions compress: one number for repetition of every kind and length."""

import lzma
from collections.abc import Iterable

import numpy as np

PRESET = 6
COMPRESSOR = f"xz, preset {PRESET} (looks back 8 MB)"  # gzip looks back only 32 KB


def compression_ratio(captions: Iterable[str], seed: int) -> float | None:
    """Return the bytes of the captions, one per line, ÷ their bytes compressed by `COMPRESSOR`; None without a byte.

    The captions are put into a seeded order that does not depend on the order in which they come. Above 0, higher is
    more repetitive. The ratio grows with the number of captions and is below 1 for a few, so compare it for equal
    numbers only. Shaib et al. 2024, "Standardizing the Measurement of Text Diversity".
    """
    captions = sorted(captions)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(captions))
    text = "\n".join(captions[index] for index in order.tolist()).encode("utf-8", "surrogatepass")
    return len(text) / len(lzma.compress(text, preset=PRESET)) if text else None
