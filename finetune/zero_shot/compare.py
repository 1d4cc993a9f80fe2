"""Turns answers into a report: the scores of each model with intervals, and the best model if one is shown to be best.

P: pictures, K: answers for each picture, best first
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diversity.verdict.compare import Difference, Estimate, differences, estimates
from diversity.verdict.winner import Verdict, decide
from finetune.zero_shot.models import Mistake
from finetune.zero_shot.pictures import Classes
from finetune.zero_shot.report import ModelResult, Supported, Unsure, ZeroShotReport
from finetune.zero_shot.scores import TOP1, class_accuracy, confusions, picture_scores
from finetune.zero_shot.support import ALONE


def make_report(
    answers: Mapping[str, np.ndarray],
    *,
    reranked: Mapping[str, tuple[np.ndarray, np.ndarray] | None],
    adapted: Mapping[str, Mapping[tuple[str, int], np.ndarray]],
    mistakes: Mapping[str, Sequence[Mistake]],
    labels: np.ndarray,
    classes: Classes,
    failed: int,
    notes: Sequence[str],
    settings: Mapping[str, Any],
    seed: int,
) -> ZeroShotReport:
    """Return the report of the models' answers (P, K), by model.

    labels (P,): the index of each picture's class.
    reranked: which pictures a model is unsure of, and all classes after reranking, (P,) each.
    adapted: the first answers (P,) with support pictures, see `Classifier.adapted`.
    """
    count = len(classes.labels)
    scores = {name: picture_scores(model_answers, labels, count) for name, model_answers in answers.items()}
    intervals = {
        name: {score: _clipped(estimate) for score, estimate in estimates(model_scores, seed).items()}
        for name, model_scores in scores.items()
    }
    model_differences = differences(scores, [TOP1.score], seed)
    models = {}
    for name, model_scores in scores.items():
        first_right = model_scores["top1"]
        accuracies = class_accuracy(first_right, labels, count)
        unsure = reranked.get(name)
        models[name] = ModelResult(
            intervals=intervals[name],
            by_class=[None if np.isnan(share) else float(share) for share in accuracies],
            confusions=confusions(answers[name][:, 0], labels),
            mistakes=mistakes[name],
            unsure=unsure_of(first_right, *unsure, labels=labels, seed=seed) if unsure else None,
            support=supported(adapted[name], labels, seed) if adapted.get(name) else None,
        )
    return ZeroShotReport(
        models=models,
        classes=classes,
        class_sizes=np.bincount(labels, minlength=count).tolist(),
        failed=failed,
        differences=model_differences,
        verdict=_verdict(list(answers), intervals, model_differences),
        notes=notes,
        settings=settings,
    )


def _verdict(
    names: Sequence[str], intervals: Mapping[str, Mapping[str, Estimate]], pairs: Sequence[Difference]
) -> Verdict:
    """Return which of these models, or columns, is best in top-1, if one is shown to be best."""
    return decide("accuracy", [TOP1], None, names=names, intervals=intervals, differences=pairs, suspects={})


def unsure_of(
    first_right: np.ndarray, unsure: np.ndarray, reranked: np.ndarray, *, labels: np.ndarray, seed: int
) -> Unsure:
    """Return a model's accuracy where it is sure, and where it is unsure before and after reranking.

    first_right (P,): 1 if the first answer is right, otherwise 0. unsure (P,): whether the model is unsure.
    reranked (P,): the first answers after reranking. labels (P,): the right classes.
    """
    after = (reranked == labels).astype(float)
    accuracies = estimates(
        {
            "share": unsure.astype(float),
            "total": after,
            "sure": np.where(unsure, np.nan, first_right),
            "before": np.where(unsure, first_right, np.nan),
            "after": np.where(unsure, after, np.nan),
            "gain": np.where(unsure, after - first_right, np.nan),
        },
        seed,
    )
    return Unsure(
        share=accuracies["share"],
        total=accuracies["total"],
        sure=accuracies.get("sure"),
        before=accuracies.get("before"),
        after=accuracies.get("after"),
        gain=accuracies.get("gain"),
    )


def supported(adapted: Mapping[tuple[str, int], np.ndarray], labels: np.ndarray, seed: int) -> Supported:
    """Return the accuracy of first answers (P,) by column of descriptions and support pictures of each class."""
    right = {key: (answers == labels).astype(float) for key, answers in adapted.items()}
    top1: dict[str, dict[int, Estimate]] = {}
    for (name, count), estimate in estimates(right, seed).items():
        top1.setdefault(name, {})[count] = estimate
    most = max(count for _, count in right)
    most_support = {name: {TOP1.score: right[name, most]} for name in top1}
    column_differences = differences(most_support, [TOP1.score], seed)
    columns = {name: {TOP1.score: by_count[most]} for name, by_count in top1.items() if name != ALONE}
    return Supported(top1, column_differences, _verdict(list(columns), columns, column_differences))


def _clipped(estimate: Estimate) -> Estimate:
    """Return the estimate clipped to 0 and 1, which the interval of a linear score may exceed."""
    return Estimate(*(min(1.0, max(0.0, value)) for value in estimate))
