"""Few labelled pictures and their descriptions as an adapter that needs no training (Ye et al. 2025, IDEA, arXiv 2501.08816).

B: pictures of a batch   C: classes   S: support pictures   E: embedding
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
CAPTIONS = "captions"  # the originals of a record
THETAS, ALPHAS, BETAS = (0.1, 0.3, 0.5, 0.7, 0.9), (1.0, 3.0, 10.0, 30.0, 100.0), (1.0, 3.0, 5.5, 10.0, 30.0)
OF_ONE = (0.5, 1.0, 5.5)  # theta, alpha and beta where a class has one picture, and so nothing to choose them by


class Shot(NamedTuple):
    """A support picture: its class by number, and its place among those of the class, which are drawn in that order."""

    record: Record
    label: int
    place: int


def draw_shots(
    records: Iterable[Record], number: Mapping[str, int], shots: int, seed: int, asked: Collection[bytes]
) -> tuple[list[Shot], int]:
    """So many pictures of each class, drawn by their keys, and how many are left out, being among those asked for.

    Records with an error or a picture that does not decode are passed over. Raises ValueError where none is left.
    """
    drawn: dict[int, list[tuple[int, str, Record]]] = {}
    held = 0
    for record in records:
        if record.error or record.label is None or record.label not in number:
            continue
        if picture_hash(record.image) in asked:
            held += 1
            continue
        try:
            decode_image(record.image)
        except ValueError:
            continue
        of_class = drawn.setdefault(number[record.label], [])
        of_class.append((name_hash(record.key, "shots", seed=seed), record.key, record))
        of_class[:] = nsmallest(shots, of_class, key=lambda one: one[:2])
    if not drawn:
        raise ValueError(
            f"--support: no picture that can be used; {held:,} are among those of --input"
            if held
            else "--support: no picture that can be used"
        )
    return [
        Shot(record, label, place) for label in sorted(drawn) for place, (*_, record) in enumerate(drawn[label])
    ], held


def described(shots: Sequence[Shot], asked: Sequence[str]) -> dict[str, list[tuple[str, ...]]]:
    """The descriptions of each picture in each column asked for; unless any is, of all that hold captions.

    Raises ValueError for a column that no picture has.
    """
    there = dict.fromkeys(column for shot in shots for column in shot.record.syn_text)
    all_columns = [*([CAPTIONS] if any(shot.record.captions for shot in shots) else []), *there]
    columns = list(asked) or all_columns
    found = {
        column: [shot.record.captions if column == CAPTIONS else shot.record.columns.get(column, ()) for shot in shots]
        for column in columns
    }
    if empty := [column for column, texts in found.items() if not any(map(any, texts))]:
        raise ValueError(
            f"--column {', '.join(empty)}: no picture of --support has any; there are {', '.join(there) or 'none'}"
        )
    return found


def embed_descriptions(embed_texts: EmbedTexts, texts: Sequence[Sequence[str]], pictures: Tensor) -> Tensor:
    """The mean of each picture's descriptions (S, E), of length 1; of one without any, the picture's own."""
    return torch.stack(
        [
            F.normalize(embed_texts(list(of)).mean(dim=0), dim=0) if of else picture
            for of, picture in zip(texts, pictures, strict=True)
        ]
    )


class Adapter:
    """Adds to a model's logits how near the support pictures, and their descriptions, of each class are."""

    def __init__(self, keys: Tensor, labels: Tensor, classes: int, alpha: float, beta: float):
        self.keys, self.alpha, self.beta = keys, alpha, beta  # (S, E)
        self.values = F.one_hot(labels, classes).to(keys.dtype)  # (S, C)

    def near(self, pictures: Tensor) -> Tensor:
        """(B, E) -> (B, S)."""
        return torch.exp(self.beta * (pictures @ self.keys.T - 1))

    def __call__(self, pictures: Tensor, classes: Tensor) -> Tensor:
        """The logits (B, C) of pictures (B, E), with classes' features (C, E)."""
        return SCALE * pictures @ classes.T + self.alpha * self.near(pictures) @ self.values

    def right_of_others(self, pictures: Tensor, classes: Tensor, labels: Tensor) -> float:
        """How many of the support pictures (S, E) are told by the others, each left out of its own support."""
        near = self.near(pictures).fill_diagonal_(0)
        logits = SCALE * pictures @ classes.T + self.alpha * near @ self.values
        return (logits.argmax(dim=1) == labels).double().mean().item()


def adapter_keys(pictures: Tensor, texts: Tensor | None, theta: float) -> Tensor:
    """One key for each support picture: its affinity is that of the picture and that of its text, by 1 - theta and theta."""
    return pictures if texts is None else (1 - theta) * pictures + theta * texts


def adapters(
    pictures: Tensor, texts: Tensor | None, labels: Tensor, places: Tensor, classes: Tensor
) -> dict[int, Adapter]:
    """An adapter for 1, 2, 4, … pictures a class, and for all of these.

    theta, alpha and beta are those by which most of all support pictures are told by the others: no picture that is asked for
    has a say in them.
    """
    most, count = int(places.max()) + 1, len(classes)
    theta, alpha, beta = OF_ONE
    if most > 1:
        theta, alpha, beta = max(
            product(THETAS if texts is not None else (0.0,), ALPHAS, BETAS),
            key=lambda one: Adapter(adapter_keys(pictures, texts, one[0]), labels, count, *one[1:]).right_of_others(
                pictures, classes, labels
            ),
        )
    keys = adapter_keys(pictures, texts, theta)
    steps = [2**power for power in range(most.bit_length()) if 2**power < most]
    return {step: Adapter(keys[places < step], labels[places < step], count, alpha, beta) for step in (*steps, most)}
