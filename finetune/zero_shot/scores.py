"""How often answers are right: top-1, top-5 and the mean over classes, each as a mean over pictures.

P: pictures   K: answers kept of a picture, best first
"""

from collections import Counter
from typing import Any

import numpy as np

from diversity.measures.measure import Measure

TOP1 = Measure(
    ("top1",),
    "Top-1",
    "Pictures whose class is the first answer ÷ pictures. 0 to 100 %; a guess is right for one in as many as there are classes.",
    "percent",
    "higher",
    "top1",
)
TOP5 = Measure(
    ("top5",),
    "Top-5",
    "Pictures whose class is among the first five answers ÷ pictures. 0 to 100 %; of six classes and more.",
    "percent",
    "higher",
    "top5",
)
PER_CLASS = Measure(
    ("per_class",),
    "Mean per class",
    "Top-1 of the pictures of each class, mean over the classes that have pictures: a class of many "
    "pictures counts no more than one of few. 0 to 100 %.",
    "percent",
    "higher",
    "per_class",
)
MEASURES = (TOP1, TOP5, PER_CLASS)


def picture_scores(answers: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """The scores of pictures (P,) whose means are top-1, top-5 and the mean per class.

    answers (P, K) and labels (P,) are numbers of classes. top5 is there with more than five of these. per_class is linear: the
    mean per class, and how much it would rise if the picture counted more. So its mean is exact, and its spread over pictures
    that of the mean per class (the infinitesimal jackknife, Efron 1982).
    """
    right = answers == labels[:, None]  # (P, K)
    first = right[:, 0].astype(float)
    of_class = class_accuracy(first, labels, classes)
    counts = np.bincount(labels, minlength=classes)
    weight = len(labels) / (np.count_nonzero(counts) * counts[labels])
    scores = {"top1": first}
    if classes > answers.shape[1]:
        scores["top5"] = right.any(axis=1).astype(float)
    return scores | {"per_class": np.nanmean(of_class) + weight * (first - of_class[labels])}


def class_accuracy(right: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The share of each class's pictures for which `right` (P,) is 1; NaN of classes without pictures."""
    with np.errstate(invalid="ignore"):
        return np.bincount(labels, right, classes) / np.bincount(labels, minlength=classes)


def accuracy(answers: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """The means of `picture_scores`."""
    return {name: float(values.mean()) for name, values in picture_scores(answers, labels, classes).items()}


def confusions(first: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Which class is taken for which, the commonest first, with the number of pictures and their share of the class's."""
    of_class = Counter(labels.tolist())
    wrong = Counter(
        (label, answer) for label, answer in zip(labels.tolist(), first.tolist(), strict=True) if label != answer
    )
    return [
        {"class": label, "answered": answer, "pictures": count, "share": count / of_class[label]}
        for (label, answer), count in sorted(wrong.items(), key=lambda one: (-one[1], one[0]))
    ]
