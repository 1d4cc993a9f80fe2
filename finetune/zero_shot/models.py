"""The CLIP models that classify pictures in batches, and their answers.

B: pictures in a batch, P: all pictures, C: classes, S: support pictures, E: embedding dimension,
K: answers for each picture, best first
"""

from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioners.resolve import SHIPPED, shipped_models
from captioners.weights import DTYPES
from diversity.measures.embedders import OpenClip
from finetune.zero_shot.classify import Answers, class_features, nearest_classes, prompts
from finetune.zero_shot.hierarchy import Doubt, Hierarchy, Reranker
from finetune.zero_shot.pictures import PreparedPicture
from finetune.zero_shot.support import ALONE, Adapter, Shot, adapters, embed_descriptions
from imagetext.sample import decode_image

MISTAKES = 8  # number of a model's surest mistakes that are shown


class Mistake(NamedTuple):
    """A picture whose first answer is wrong."""

    probability: float  # the model's probability of its answer
    key: str
    label: int  # index of the right class
    answer: int  # index of the class that the model answered
    image: bytes | None  # encoded


class Classifier:
    """A CLIP model that classifies pictures, and its answers so far."""

    def __init__(self, name: str, clip: OpenClip, dtype: str):
        self.name, self.clip = name, clip
        self.dtype = DTYPES[dtype]
        self.mistakes: list[Mistake] = []
        self.rerank: Reranker | None = None
        self.adapters: dict[str, dict[int, Adapter]] = {}  # by column of descriptions and by pictures of each class
        self._adapted: dict[tuple[str, int], list[Tensor]] = {}
        self._answers: list[Answers] = []
        self._doubts: list[Doubt] = []

    def embed_texts(self, texts: list[str]) -> Tensor:
        """Return the features (N, E) of N texts, of unit length."""
        with self._precision():
            return self.clip.embed_texts(texts).float()

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """Return unit-length features (B, E) of pixels (B, 3, H, W); raises ValueError if they are not finite."""
        with self._precision():
            features = self.clip.embed_pictures(pixels).float()
        if not features.isfinite().all():
            raise ValueError(
                f"--model {self.name}: its features of some pictures are not finite numbers in {self.dtype}; try "
                "another --dtype"
            )
        return features

    def embed_classes(self, names: Sequence[str], templates: Sequence[str], hierarchy: Hierarchy | None = None) -> int:
        """Embed the texts of the classes, and of their families if there is a hierarchy.

        Returns how many texts of classes are longer than the model's context and are cut.
        """
        if hierarchy:
            self.rerank = Reranker(self.embed_texts, names, templates, hierarchy=hierarchy)
            self.classes = self.rerank.classes  # (C, E)
        else:
            self.classes = class_features(self.embed_texts, names, templates)
        return self.clip.count_cut(prompts(names, templates))

    @torch.inference_mode()
    def add_support(
        self, shots: Sequence[Shot], columns: Mapping[str, Sequence[Sequence[str]]], batch_size: int
    ) -> None:
        """Make the adapters of support pictures, without descriptions and with those of each column."""
        features = []
        for start in range(0, len(shots), batch_size):
            batch = shots[start : start + batch_size]
            pixels = [self.clip.transform(decode_image(shot.record.image)) for shot in batch]
            features.append(self.embed_pictures(torch.stack(pixels)))
        pictures = torch.cat(features)  # (S, E)
        labels = torch.tensor([shot.label for shot in shots], device=pictures.device)
        ranks = torch.tensor([shot.rank for shot in shots], device=pictures.device)
        for name, texts in {ALONE: None, **columns}.items():
            descriptions = None if texts is None else embed_descriptions(self.embed_texts, texts, pictures)
            self.adapters[name] = adapters(pictures, descriptions, labels=labels, ranks=ranks, classes=self.classes)

    def classify(self, pixels: Tensor, batch: Sequence[PreparedPicture], labels: Sequence[int]) -> None:
        """Classify the pictures of a batch; labels: the index of the right class of each picture."""
        features = self.embed_pictures(pixels)
        answers = nearest_classes(features, self.classes)
        if self.rerank:
            self._doubts.append(Doubt(*(part.cpu() for part in self.rerank(features, answers.classes[:, 0]))))
        for name, adapters_by_count in self.adapters.items():
            for count, adapter in adapters_by_count.items():
                best = adapter(features, self.classes).argmax(dim=1).cpu()
                self._adapted.setdefault((name, count), []).append(best)
        answers = Answers(*(part.cpu() for part in answers))
        self._answers.append(answers)
        first_answers = zip(answers.classes[:, 0].tolist(), answers.probabilities[:, 0].tolist(), strict=True)
        wrong = [
            Mistake(probability, picture.record.key, label, answer=answer, image=picture.record.image)
            for picture, label, (answer, probability) in zip(batch, labels, first_answers, strict=True)
            if answer != label
        ]
        self.mistakes = nlargest(MISTAKES, [*self.mistakes, *wrong], key=lambda mistake: mistake.probability)

    @property
    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """The answers for all pictures so far, in order: classes (P, K), best first, and probabilities (P, K)."""
        classes, probabilities = (torch.cat(part).numpy() for part in zip(*self._answers, strict=True))
        return classes, probabilities

    @property
    def doubts(self) -> Doubt | None:
        """The doubts about all pictures so far; None without a hierarchy."""
        return Doubt(*(torch.cat(part) for part in zip(*self._doubts, strict=True))) if self._doubts else None

    @property
    def reranked(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Which pictures the model is unsure of, and all first answers after reranking, (P,) each; or None."""
        if (doubts := self.doubts) is None:
            return None
        unsure = doubts.unsure.numpy()
        return unsure, np.where(unsure, doubts.ranked[:, 0], self.answers[0][:, 0])

    @property
    def adapted(self) -> dict[tuple[str, int], np.ndarray]:
        """The adapters' first answers (P,), by column of descriptions and support pictures of each class."""
        return {key: torch.cat(parts).numpy() for key, parts in self._adapted.items()}

    def _precision(self) -> torch.autocast:
        return torch.autocast(torch.device(self.clip.device).type, self.dtype, enabled=self.dtype is not torch.float32)


def load_models(names: Sequence[str], device: str, dtype: str) -> list[Classifier]:
    """Load the models of these names; raises ValueError that names all that cannot be loaded, with the reasons."""
    models, problems = [], []
    for name in names:
        try:
            folder = str(SHIPPED / name) if name in shipped_models() else name
            models.append(Classifier(name, OpenClip(folder, device), dtype))
        except ValueError as error:
            problems.append(f"--model {name}: {error}")
    if problems:
        raise ValueError("\n  ".join(problems))
    return models
