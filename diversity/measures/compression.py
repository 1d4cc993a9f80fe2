"""How well captions compress: repetition of every kind and length, by one number."""

import lzma
from collections.abc import Iterable

import numpy as np

PRESET = 6
COMPRESSOR = f"xz, preset {PRESET} (looks back 8 MB)"  # gzip looks back 32 KB only


def compression_ratio(captions: Iterable[str], seed: int) -> float | None:
    """Bytes of the captions, a line each, ÷ their bytes compressed by `COMPRESSOR`; None without a byte.

    The captions stand in a seeded order that does not depend on the one they come in. Above 0, higher is more repetitive; it
    grows with the number of captions, and is below 1 for a few, so compare it at equal numbers only. Shaib et al. 2024,
    "Standardizing the Measurement of Text Diversity".
    """
    captions = sorted(captions)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(captions))
    text = "\n".join(captions[at] for at in order.tolist()).encode("utf-8", "surrogatepass")
    return len(text) / len(lzma.compress(text, preset=PRESET)) if text else None
