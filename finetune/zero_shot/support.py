"""A few labelled pictures and their descriptions as an adapter that needs no training.

The method is IDEA (Ye et al. 2025, arXiv 2501.08816).

B: pictures in a batch, C: classes, S: support pictures, E: embedding dimension
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import nsmallest
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.identity import picture_hash
from finetune.zero_shot.classify import SCALE, EmbedTexts
from imagetext.hashes import name_hash
from imagetext.sample import Record, decode_image

ALONE = "pictures alone"
CAPTIONS = "captions"  # the column of a record's original captions
# The values of theta, alpha and beta to choose from. With one picture of each class they cannot be chosen, so ONE_SHOT
# is used.
THETAS, ALPHAS, BETAS = (0.1, 0.3, 0.5, 0.7, 0.9), (1.0, 3.0, 10.0, 30.0, 100.0), (1.0, 3.0, 5.5, 10.0, 30.0)
ONE_SHOT = (0.5, 1.0, 5.5)


class Shot(NamedTuple):
    """A support picture, the index of its class, and its rank within the class; lower ranks are used first."""

    record: Record
    label: int
    rank: int


def draw_shots(
    records: Iterable[Record],
    class_indices: Mapping[str, int],
    shots: int,
    *,
    seed: int,
    input_hashes: Collection[bytes],
) -> tuple[list[Shot], int]:
    """Draw at most `shots` pictures of each class by their keys, and return them with the number of those left out.

    Left out are pictures of --input, by their hashes. Records with an error or a picture that does not decode are
    skipped. Raises ValueError if no picture remains.
    """
    candidates: dict[int, list[tuple[int, str, Record]]] = {}
    left_out = 0
    for record in records:
        if record.error or record.label is None or record.label not in class_indices:
            continue
        if picture_hash(record.image) in input_hashes:
            left_out += 1
            continue
        try:
            decode_image(record.image)
        except ValueError:
            continue
        class_candidates = candidates.setdefault(class_indices[record.label], [])
        class_candidates.append((name_hash(record.key, "shots", seed=seed), record.key, record))
        class_candidates[:] = nsmallest(shots, class_candidates, key=lambda candidate: candidate[:2])
    if not candidates:
        reason = f"; {left_out:,} are among those of --input" if left_out else ""
        raise ValueError(f"--support: no picture that can be used{reason}")
    drawn = [
        Shot(record, label, rank)
        for label in sorted(candidates)
        for rank, (_, _, record) in enumerate(candidates[label])
    ]
    return drawn, left_out


def read_descriptions(shots: Sequence[Shot], columns: Sequence[str]) -> dict[str, list[tuple[str, ...]]]:
    """Return the descriptions of each picture in each of these columns; without columns, in all that hold captions.

    Raises ValueError for a column that no picture has.
    """
    synthetic = dict.fromkeys(column for shot in shots for column in shot.record.syn_text)
    all_columns = [*([CAPTIONS] if any(shot.record.captions for shot in shots) else []), *synthetic]
    descriptions = {
        column: [shot.record.captions if column == CAPTIONS else shot.record.columns.get(column, ()) for shot in shots]
        for column in columns or all_columns
    }
    if empty := [column for column, texts in descriptions.items() if not any(map(any, texts))]:
        raise ValueError(
            f"--column {', '.join(empty)}: no picture of --support has captions in it; there are "
            f"{', '.join(synthetic) or 'none'}"
        )
    return descriptions


def embed_descriptions(embed_texts: EmbedTexts, descriptions: Sequence[Sequence[str]], pictures: Tensor) -> Tensor:
    """Return the mean feature of each picture's descriptions, (S, E) of unit length; its own if it has none."""
    features = [
        F.normalize(embed_texts(list(texts)).mean(dim=0), dim=0) if texts else picture
        for texts, picture in zip(descriptions, pictures, strict=True)
    ]
    return torch.stack(features)


class Adapter:
    """Adds, to a model's logits for each class, the affinity to the support pictures of the class.

    keys (S, E), labels (S,); classes: the number of classes.
    """

    def __init__(self, keys: Tensor, labels: Tensor, classes: int, *, alpha: float, beta: float):
        self.keys, self.alpha, self.beta = keys, alpha, beta  # (S, E)
        self.values = F.one_hot(labels, classes).to(keys.dtype)  # (S, C)

    def affinity(self, pictures: Tensor) -> Tensor:
        """Return the affinities (B, S) of pictures (B, E) to the support pictures."""
        return torch.exp(self.beta * (pictures @ self.keys.T - 1))

    def __call__(self, pictures: Tensor, classes: Tensor) -> Tensor:
        """Return the logits (B, C) of pictures (B, E) for class features (C, E)."""
        return SCALE * pictures @ classes.T + self.alpha * self.affinity(pictures) @ self.values

    def leave_one_out_accuracy(self, pictures: Tensor, classes: Tensor, labels: Tensor) -> float:
        """Return the accuracy on the support pictures (S, E) themselves, each without its own key."""
        affinity = self.affinity(pictures).fill_diagonal_(0)
        logits = SCALE * pictures @ classes.T + self.alpha * affinity @ self.values
        return (logits.argmax(dim=1) == labels).double().mean().item()


def adapter_keys(pictures: Tensor, texts: Tensor | None, theta: float) -> Tensor:
    """Return a key for each support picture: the mean of picture and text, weighted by 1 - theta and theta."""
    return pictures if texts is None else (1 - theta) * pictures + theta * texts


def adapters(
    pictures: Tensor, texts: Tensor | None, *, labels: Tensor, ranks: Tensor, classes: Tensor
) -> dict[int, Adapter]:
    """Return an adapter for 1, 2, 4, … support pictures of each class, and one for all of them.

    Pictures and texts (S, E), labels and ranks (S,), classes (C, E). theta, alpha and beta are chosen for the highest
    leave-one-out accuracy on the support pictures. The pictures to classify have no influence on them.
    """
    most, class_count = int(ranks.max()) + 1, len(classes)

    def accuracy(parameters: tuple[float, float, float]) -> float:
        theta, alpha, beta = parameters
        adapter = Adapter(adapter_keys(pictures, texts, theta), labels, class_count, alpha=alpha, beta=beta)
        return adapter.leave_one_out_accuracy(pictures, classes, labels)

    theta, alpha, beta = ONE_SHOT
    if most > 1:
        theta, alpha, beta = max(product(THETAS if texts is not None else (0.0,), ALPHAS, BETAS), key=accuracy)
    keys = adapter_keys(pictures, texts, theta)
    counts = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    return {
        count: Adapter(keys[ranks < count], labels[ranks < count], class_count, alpha=alpha, beta=beta)
        for count in counts
    }
