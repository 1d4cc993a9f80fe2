"""The case `vendi-100k` of `benchmarks.diversity`: Vendi scores of 100,000 embeddings of 384 dimensions, float32.

The embeddings lie around 500 centres and have a falling spectrum, like those of captions. The peer is vendi-score
0.0.3's `score_dual(X, q, normalize=True)`, in its own environment; both take turns. Both scale the rows to length 1
and multiply in float32. Values of all orders must be equal to a relative 1e-6.

- `ratio`: only the score of q = 1. Both compute one product Xᵀ X in float32, which is three quarters of the peer's
time. - `ratio_orders`: the four scores of a report, q = 1/2, 1, 2 and infinity. The peer computes each from the
embeddings.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from diversity.measures.semantic import ORDERS, VendiAccumulator

ROWS, DIMENSION, CENTRES, REPEATS = 100_000, 384, 500, 7
SAME = 1e-6
PINS = ("vendi-score==0.0.3",)


def vendi_100k() -> dict[str, Any]:
    """Our time compared with the peer's; RuntimeError if values differ."""
    from benchmarks.side_by_side import (  # imports torch; late, so that the other cases do not load it
        Peer,
        alternate,
        peer_python,
    )

    rows = drawn_embeddings()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        np.save(file, rows)
        ours_scores, costs = scores(rows), {}
        for name, orders in (("ratio", ["1"]), ("ratio_orders", list(ORDERS))):
            with Peer(peer_python("vendi", PINS), "vendi_peer.py", rows=str(file), orders=orders) as peer:
                expected = peer.ask("scores")
                differences = {q: abs(ours_scores[q] - expected[q]) / expected[q] for q in orders}
                if not max(differences.values()) <= SAME:
                    raise RuntimeError(f"ours are {ours_scores}, the peer's {expected}")
                costs[name] = alternate(lambda: scores(rows), peer, REPEATS)
    cost, peer_cost = costs["ratio"]
    return {
        **{name: round(peer_time.seconds / our_time.seconds, 2) for name, (our_time, peer_time) in costs.items()},
        "scores": {q: round(score, 4) for q, score in ours_scores.items()},
        "apart": float(f"{max(differences.values()):.1e}"),
        "seconds": round(cost.seconds, 3),
        "peer_seconds": round(peer_cost.seconds, 3),
        "peer_seconds_orders": round(costs["ratio_orders"][1].seconds, 3),
        "mb": round(cost.peak / 1e6),
        "peer_mb": round(peer_cost.peak / 1e6),
    }


def scores(rows: np.ndarray) -> dict[str, float]:
    sums = VendiAccumulator(rows.shape[1])
    sums.update(rows)
    return sums.result()["vendi"]


def drawn_embeddings() -> np.ndarray:
    """Embeddings (ROWS, DIMENSION) in float32, whose lengths are not 1."""
    draw = np.random.default_rng(0)
    scale = np.arange(1, DIMENSION + 1) ** -0.5
    centres = scale * draw.standard_normal((CENTRES, DIMENSION))
    noise = scale * draw.standard_normal((ROWS, DIMENSION), np.float32)
    return (centres[draw.integers(CENTRES, size=ROWS)] + 0.5 * noise).astype(np.float32)
