"""From answers to a report: the scores of each model with their intervals, and which model is best if any is shown to be.

P: pictures   K: answers kept of a picture, best first
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diversity.verdict.compare import Estimate, differences, estimates
from diversity.verdict.winner import decide
from finetune.zero_shot.models import Mistake
from finetune.zero_shot.pictures import Classes
from finetune.zero_shot.report import ModelResult, Supported, Unsure, ZeroShotReport
from finetune.zero_shot.scores import TOP1, class_accuracy, confusions, picture_scores
from finetune.zero_shot.support import ALONE


def make_report(
    answers: Mapping[str, np.ndarray],
    reranked: Mapping[str, tuple[np.ndarray, np.ndarray] | None],
    adapted: Mapping[str, Mapping[tuple[str, int], np.ndarray]],
    mistakes: Mapping[str, Sequence[Mistake]],
    labels: np.ndarray,
    classes: Classes,
    *,
    failed: int,
    notes: Sequence[str],
    settings: Mapping[str, Any],
    seed: int,
) -> ZeroShotReport:
    """The report of models' answers (P, K), best first, to pictures whose classes have the numbers `labels` (P,).

    reranked: which pictures a model is unsure of, and the classes after these are ranked anew, (P,) each.
    adapted: the first answers (P,) by support pictures, see `Asked.adapted`.
    """
    count = len(classes.labels)
    scores = {name: picture_scores(found, labels, count) for name, found in answers.items()}
    intervals = {
        name: {score: _within(one) for score, one in estimates(of, seed).items()} for name, of in scores.items()
    }
    between = differences(scores, [TOP1.score], seed)
    return ZeroShotReport(
        {
            name: ModelResult(
                intervals[name],
                [None if np.isnan(share) else float(share) for share in class_accuracy(of["top1"], labels, count)],
                confusions(answers[name][:, 0], labels),
                mistakes[name],
                unsure_of(of["top1"], *anew, labels, seed) if (anew := reranked.get(name)) else None,
                supported(adapted[name], labels, seed) if adapted.get(name) else None,
            )
            for name, of in scores.items()
        },
        classes,
        np.bincount(labels, minlength=count).tolist(),
        failed,
        between,
        decide("accuracy", [TOP1], None, list(answers), intervals, between, {}),
        notes,
        settings,
    )


def unsure_of(first: np.ndarray, unsure: np.ndarray, reranked: np.ndarray, labels: np.ndarray, seed: int) -> Unsure:
    """How right a model is (first, (P,) 1 or 0) where it is sure and where not, and there by the reranked classes (P,), too."""
    after = (reranked == labels).astype(float)
    found = estimates(
        {
            "share": unsure.astype(float),
            "total": after,
            "sure": np.where(unsure, np.nan, first),
            "before": np.where(unsure, first, np.nan),
            "after": np.where(unsure, after, np.nan),
            "gain": np.where(unsure, after - first, np.nan),
        },
        seed,
    )
    return Unsure(
        share=found["share"],
        total=found["total"],
        sure=found.get("sure"),
        before=found.get("before"),
        after=found.get("after"),
        gain=found.get("gain"),
    )


def supported(adapted: Mapping[tuple[str, int], np.ndarray], labels: np.ndarray, seed: int) -> Supported:
    """The accuracy of first answers (P,) by descriptions and support pictures a class."""
    right = {key: (answers == labels).astype(float) for key, answers in adapted.items()}
    top1: dict[str, dict[int, Estimate]] = {}
    for (name, count), estimate in estimates(right, seed).items():
        top1.setdefault(name, {})[count] = estimate
    most = max(count for _, count in right)
    last = {name: {TOP1.score: right[name, most]} for name in top1}
    between = differences(last, [TOP1.score], seed)
    of_columns = {name: {TOP1.score: of[most]} for name, of in top1.items() if name != ALONE}
    return Supported(top1, between, decide("accuracy", [TOP1], None, list(of_columns), of_columns, between, {}))


def _within(estimate: Estimate) -> Estimate:
    """The same within 0 and 1, which a linear score's interval may leave."""
    return Estimate(*(min(1.0, max(0.0, value)) for value in estimate))
