"""Compare our loss for reinforced sets with the official trainer's loss.

Usage: `python -m benchmarks.compat.loss --peer-python PATH`, with the interpreter that `trainer.py` describes.

The student's features and the embeddings of two teachers are drawn at random. The reference computes its loss in one
process, and in two processes (gloo, half of the batch each) with `--local-loss`. Ours is computed over the whole
batch, as `capsmith train-student` does in each process. The losses and their gradients with respect to the student's
features are compared in float64. Exit code 1 means that they differ by more than 1e-6: a loss relative to its value, a
gradient relative to its largest number.

In two processes without `--local-loss`, the reference computes a different loss: it uses the transpose of the
teachers' probabilities of texts given pictures as the probabilities of pictures given texts. The output shows this
loss too, beside ours with the same transpose.

B: pictures in the batch, E: dimension of the student's embedding, D: dimensions of all teachers together
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.compat.sets import RUNS
from benchmarks.side_by_side import Peer
from finetune.student.model import reinforced_losses
from finetune.student.teachers import Teachers

BATCH, EMBEDDING = 32, 48
WEIGHTS = {"contrastive": 0.25, "distill": 0.75}
TEACHERS = Teachers(("one", "two"), (64, 40), (70.0, 60.0))
LIMIT = 1e-6


def draw_features(seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw features (B, E) of the student and (B, D) of the teachers, by the reference's names for them.

    Texts are near their pictures.
    """
    random = torch.Generator().manual_seed(seed)

    def rows(size: int, near: torch.Tensor | float = 0.0) -> torch.Tensor:
        return F.normalize(
            near + 3 * torch.randn(BATCH, size, generator=random, dtype=torch.float64) / size**0.5, dim=1
        )

    image, of_pictures = rows(EMBEDDING), [rows(size) for size in TEACHERS.dimensions]
    of_texts = [
        torch.cat([rows(size, near) for size, near in zip(TEACHERS.dimensions, of_pictures)], 1) for _ in range(2)
    ]
    return {
        "image_features": image,
        "text_features": rows(EMBEDDING, image),
        "syn_text_features": rows(EMBEDDING, image),
        "dist_image_features": torch.cat(of_pictures, 1),
        "dist_text_features": of_texts[0],
        "dist_syn_text_features": of_texts[1],
        "logit_scale": torch.tensor(1 / 0.07, dtype=torch.float64),
    }


def ours(features: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Our losses, each times its weight, and the gradients of their sum with respect to the student's features."""
    names = ("image_features", "text_features", "syn_text_features")
    students = {name: features[name].clone().requires_grad_() for name in names}
    image, *texts = students.values()
    losses = reinforced_losses(
        image,
        torch.stack(texts, 1),
        features["logit_scale"],
        pictures=torch.arange(BATCH),
        teachers=TEACHERS,
        text_weights=(1.0, 1.0),
        image_emb=features["dist_image_features"],
        text_emb=torch.stack([features["dist_text_features"], features["dist_syn_text_features"]], 1),
    )
    losses = {name: WEIGHTS[name] * loss for name, loss in losses.items()}
    sum(losses.values()).backward()
    return {
        "contrastive_loss": losses["contrastive"].detach().numpy(),
        "distill_loss": losses["distill"].detach().numpy(),
        **{f"gradient_{name}": rows.grad.numpy() for name, rows in students.items()},
    }


def transposed_distillation(features: dict[str, torch.Tensor]) -> float:
    """Our distillation loss, times its weight, with transposed text probabilities in place of those of pictures."""
    total = 0.0
    for kind in ("", "syn_"):
        image, text = (
            features[name].split(TEACHERS.dimensions, 1)
            for name in ("dist_image_features", f"dist_{kind}text_features")
        )
        target = (
            sum((scale * rows @ texts.T).softmax(1) for scale, rows, texts in zip(TEACHERS.logit_scales, image, text))
            / 2
        )
        logits = features["logit_scale"] * features["image_features"] @ features[f"{kind}text_features"].T
        total += (F.cross_entropy(logits, target) - (target.T * logits.T.log_softmax(1)).sum(1).mean()) / 2
    return WEIGHTS["distill"] * float(total)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter of the trainer's environment")
    python = parser.parse_args().peer_python
    folder = (RUNS / "loss").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    features = draw_features()
    np.savez(folder / "features.npz", **{name: rows.numpy() for name, rows in features.items()})
    mine, worst = ours(features), 0.0
    for processes, local in ((1, False), (2, True), (2, False)):
        options = {
            "features": str(folder / "features.npz"),
            "dimensions": TEACHERS.dimensions,
            "weights": list(WEIGHTS.values()),
            "logit_scales": TEACHERS.logit_scales,
            "processes": processes,
            "local_loss": local,
            "answer": str(folder / "answer.npz"),
        }
        with Peer(python, "compat/loss_peer.py", **options) as peer:
            versions = peer.ready
        with np.load(folder / "answer.npz", allow_pickle=False) as arrays:
            theirs = dict(arrays)
        differing = {
            name: float(np.abs(mine[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in mine
        }
        print(
            f"processes: {processes}{', local loss' if local else ''}: distillation {mine['distill_loss']:.9f} and "
            f"{theirs['distill_loss']:.9f}, contrastive {mine['contrastive_loss']:.9f} and "
            f"{theirs['contrastive_loss']:.9f}; "
            f"differences: {', '.join(f'{name} {value:.1e}' for name, value in differing.items())}"
        )
        if processes == 1 or local:
            worst = max(worst, *differing.values())
        else:
            print(f"  distillation with transposed probabilities: {transposed_distillation(features):.9f}")
    print(
        f"torch {torch.__version__} and {versions['torch']}; "
        f"largest difference in one process or with local loss: {worst:.1e}"
    )
    return worst > LIMIT


if __name__ == "__main__":
    sys.exit(main())
