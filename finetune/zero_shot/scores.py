"""Accuracy: top-1, top-5 and the mean over classes, each as a mean over pictures.

P: pictures, K: answers for each picture, best first
"""

from collections import Counter
from typing import Any

import numpy as np

from diversity.measures.measure import Measure

TOP1 = Measure(
    ("top1",),
    "Top-1",
    "Pictures whose class is the first answer ÷ pictures. 0 to 100 %; guessing among n classes is right for 1 in n.",
    unit="percent",
    better="higher",
    score="top1",
)
TOP5 = Measure(
    ("top5",),
    "Top-5",
    "Pictures whose class is among the first five answers ÷ pictures. 0 to 100 %; only for six or more classes.",
    unit="percent",
    better="higher",
    score="top5",
)
PER_CLASS = Measure(
    ("per_class",),
    "Mean per class",
    "Top-1 of the pictures of each class, mean over the classes that have pictures: a class with many "
    "pictures counts no more than a class with few. 0 to 100 %.",
    unit="percent",
    better="higher",
    score="per_class",
)
MEASURES = (TOP1, TOP5, PER_CLASS)


def picture_scores(answers: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Return scores (P,) of each picture, whose means are top-1, top-5 and the mean per class.

    answers (P, K) and labels (P,) are class indices; classes: the number of classes. There is a top-5 only if there
    are more than K classes. The per_class score of a picture is the mean per class plus the picture's influence on it.
    So its mean is exactly the mean per class, and its spread gives the mean's uncertainty (the infinitesimal
    jackknife, Efron 1982).
    """
    right = answers == labels[:, None]  # (P, K)
    first_right = right[:, 0].astype(float)
    accuracies = class_accuracy(first_right, labels, classes)
    counts = np.bincount(labels, minlength=classes)
    weight = len(labels) / (np.count_nonzero(counts) * counts[labels])
    scores = {"top1": first_right}
    if classes > answers.shape[1]:
        scores["top5"] = right.any(axis=1).astype(float)
    return scores | {"per_class": np.nanmean(accuracies) + weight * (first_right - accuracies[labels])}


def class_accuracy(right: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the share of each class's pictures for which `right` (P,) is 1; NaN for classes without pictures."""
    with np.errstate(invalid="ignore"):
        return np.bincount(labels, right, classes) / np.bincount(labels, minlength=classes)


def accuracy(answers: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """Return the means of `picture_scores`."""
    return {name: float(values.mean()) for name, values in picture_scores(answers, labels, classes).items()}


def confusions(first: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Return the confusions (class and wrong answer), the commonest first.

    Each has its number of pictures, and that number's share of the class's pictures. first (P,): the first answers.
    """
    class_sizes = Counter(labels.tolist())
    pairs = zip(labels.tolist(), first.tolist(), strict=True)
    wrong = Counter((label, answer) for label, answer in pairs if label != answer)
    return [
        {"class": label, "answered": answer, "pictures": count, "share": count / class_sizes[label]}
        for (label, answer), count in sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    ]
