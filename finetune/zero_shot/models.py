"""The models that are asked, and what they answer of pictures that come in batches.

B: pictures of a batch   C: classes   E: embedding   K: answers kept of a picture
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
from finetune.zero_shot.classify import Answers, answers, class_features, prompts
from finetune.zero_shot.hierarchy import Doubt, Hierarchy, Reranker
from finetune.zero_shot.pictures import PreparedPicture
from finetune.zero_shot.support import ALONE, Adapter, Shot, adapters, embed_descriptions
from imagetext.sample import decode_image

MISTAKES = 8  # pictures of a model's surest mistakes that are kept


class Mistake(NamedTuple):
    """A picture whose first answer is wrong: how sure the answer was, what is right, what was said, and the encoded picture."""

    probability: float
    key: str
    label: int
    answer: int
    image: bytes | None


class Classifier:
    """A CLIP model that is asked for the class of pictures, and its answers so far."""

    def __init__(self, name: str, clip: OpenClip, dtype: str):
        self.name, self.clip = name, clip
        self.dtype = DTYPES[dtype]
        self.mistakes: list[Mistake] = []
        self.rerank: Reranker | None = None
        self.adapters: dict[str, dict[int, Adapter]] = {}  # by the descriptions that help, and the pictures a class
        self._adapted: dict[tuple[str, int], list[Tensor]] = {}
        self._answers: list[Answers] = []
        self._doubts: list[Doubt] = []

    def embed_texts(self, texts: list[str]) -> Tensor:
        """(N, E) of length 1."""
        with self._precision():
            return self.clip.embed_texts(texts).float()

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, E) of length 1; ValueError where these are no finite numbers."""
        with self._precision():
            features = self.clip.embed_pictures(pixels).float()
        if not features.isfinite().all():
            raise ValueError(f"--model {self.name}: features that are no finite numbers; does {self.dtype} fit it?")
        return features

    def name_classes(self, names: Sequence[str], templates: Sequence[str], hierarchy: Hierarchy | None = None) -> int:
        """Embeds the classes' texts, those of their families, too; returns how many of the former the model's context cuts."""
        if hierarchy:
            self.rerank = Reranker(self.embed_texts, names, templates, hierarchy)
            self.classes = self.rerank.classes  # (C, E)
        else:
            self.classes = class_features(self.embed_texts, names, templates)
        return self.clip.cut(prompts(names, templates))

    @torch.inference_mode()
    def learn(self, shots: Sequence[Shot], columns: Mapping[str, Sequence[Sequence[str]]], batch_size: int) -> None:
        """Makes the adapters of support pictures, alone and with each column's descriptions."""
        features = []
        for at in range(0, len(shots), batch_size):
            pixels = [self.clip.transform(decode_image(shot.record.image)) for shot in shots[at : at + batch_size]]
            features.append(self.embed_pictures(torch.stack(pixels)))
        pictures = torch.cat(features)  # (S, E)
        labels, places = (torch.tensor(part, device=pictures.device) for part in list(zip(*shots, strict=True))[1:])
        for name, texts in {ALONE: None, **columns}.items():
            described = None if texts is None else embed_descriptions(self.embed_texts, texts, pictures)
            self.adapters[name] = adapters(pictures, described, labels, places, self.classes)

    def ask(self, pixels: Tensor, batch: Sequence[PreparedPicture], labels: Sequence[int]) -> None:
        """Answers for the pictures of a batch, of which the labels are numbers of classes."""
        features = self.embed_pictures(pixels)
        found = answers(features, self.classes)
        if self.rerank:
            self._doubts.append(Doubt(*(part.cpu() for part in self.rerank(features, found.classes[:, 0]))))
        for name, by_shots in self.adapters.items():
            for count, adapter in by_shots.items():
                best = adapter(features, self.classes).argmax(dim=1).cpu()
                self._adapted.setdefault((name, count), []).append(best)
        found = Answers(*(part.cpu() for part in found))
        self._answers.append(found)
        wrong = [
            Mistake(probability, one.record.key, label, answer, one.record.image)
            for one, label, answer, probability in zip(
                batch, labels, found.classes[:, 0].tolist(), found.probabilities[:, 0].tolist(), strict=True
            )
            if answer != label
        ]
        self.mistakes = nlargest(MISTAKES, [*self.mistakes, *wrong], key=lambda mistake: mistake.probability)

    @property
    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all pictures asked for, in their order, the classes (P, K), best first, and their probabilities (P, K)."""
        classes, probabilities = (torch.cat(part).numpy() for part in zip(*self._answers, strict=True))
        return classes, probabilities

    @property
    def doubts(self) -> Doubt | None:
        """Of all pictures asked for; None without hierarchy."""
        return Doubt(*(torch.cat(part) for part in zip(*self._doubts, strict=True))) if self._doubts else None

    @property
    def reranked(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Which pictures the model is unsure of, and the classes after a new ranking, (P,) each; None without hierarchy."""
        if (doubts := self.doubts) is None:
            return None
        unsure = doubts.unsure.numpy()
        return unsure, np.where(unsure, doubts.ranked[:, 0], self.answers[0][:, 0])

    @property
    def adapted(self) -> dict[tuple[str, int], np.ndarray]:
        """The first answers (P,) by the adapters, by the descriptions that help and the support pictures a class."""
        return {key: torch.cat(found).numpy() for key, found in self._adapted.items()}

    def _precision(self) -> torch.autocast:
        return torch.autocast(torch.device(self.clip.device).type, self.dtype, enabled=self.dtype is not torch.float32)


def load_models(names: Sequence[str], device: str, dtype: str) -> list[Classifier]:
    """The models of these names; ValueError that names every one that cannot be had, and why."""
    found, problems = [], []
    for name in names:
        try:
            folder = str(SHIPPED / name) if name in shipped_models() else name
            found.append(Classifier(name, OpenClip(folder, device), dtype))
        except ValueError as error:
            problems.append(f"--model {name}: {error}")
    if problems:
        raise ValueError("\n  ".join(problems))
    return found
