"""What a run found: the scores of each model, which is best if any is shown to be, and all that in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from diversity.page.page import interval
from diversity.verdict.answer import FEW
from diversity.verdict.compare import Difference, Estimate, differences, estimates
from diversity.verdict.winner import Verdict, decide
from finetune.zero_shot.models import Mistake
from finetune.zero_shot.pictures import Classes
from finetune.zero_shot.scores import PER_CLASS, TOP1, TOP5, class_accuracy, confusions, picture_scores

KIND = "capsmith zero-shot"
PAIRS = 3  # of classes taken for one another, that a sentence names


@dataclass(frozen=True)
class ModelResult:
    """One model: its scores with their intervals, top-1 of each class (None without pictures), and its mistakes."""

    intervals: Mapping[str, Estimate]
    by_class: Sequence[float | None]
    confusions: Sequence[Mapping[str, Any]]  # the commonest first; classes by number
    mistakes: Sequence[Mistake]  # the surest first


@dataclass(frozen=True)
class ZeroShotReport:
    """What a run found; `models` in the order given, `asked` are the pictures that every model answered for."""

    models: Mapping[str, ModelResult]
    classes: Classes
    asked: Sequence[int]  # pictures of each class
    failed: int
    differences: Sequence[Difference]
    verdict: Verdict
    notes: Sequence[str]
    settings: Mapping[str, Any]

    @property
    def pictures(self) -> int:
        return sum(self.asked)

    @property
    def best(self) -> str:
        """The model that ranks first, shown to be best or not."""
        return self.verdict.ranking[0]

    @property
    def chance(self) -> float:
        """The accuracy of who always answers the commonest class, or guesses, if that is more."""
        return max(1 / len(self.asked), max(self.asked) / self.pictures)

    @property
    def answer(self) -> tuple[str, ...]:
        """The result in sentences, the first of which says who is best."""
        return tuple(filter(None, (_best(self), _rest(self), _against_chance(self), _confused(self), _few(self))))

    def to_json(self) -> dict[str, Any]:
        """All of it but pictures, classes by what stands in the set."""
        labels = self.classes.labels
        return {
            "kind": KIND,
            "version": version("capsmith"),
            "answer": list(self.answer),
            "notes": list(self.notes),
            "pictures": self.pictures,
            "failed": self.failed,
            "chance": self.chance,
            "classes": [
                {"class": label, "name": name, "pictures": pictures}
                for label, name, pictures in zip(labels, self.classes.names, self.asked, strict=True)
            ],
            "models": {
                name: {
                    **{score: estimate._asdict() for score, estimate in model.intervals.items()},
                    "by_class": dict(zip(labels, model.by_class, strict=True)),
                    "confusions": [
                        {**pair, "class": labels[pair["class"]], "answered": labels[pair["answered"]]}
                        for pair in model.confusions
                    ],
                }
                for name, model in self.models.items()
            },
            "differences": [
                {**difference._asdict(), "estimate": difference.estimate._asdict()} for difference in self.differences
            ],
            "verdict": {
                "winner": self.verdict.winner,
                "ranking": self.verdict.ranking,
                "not_behind": self.verdict.not_behind,
            },
            "settings": dict(self.settings),
        }


def make_report(
    answers: Mapping[str, np.ndarray],
    mistakes: Mapping[str, Sequence[Mistake]],
    labels: np.ndarray,
    classes: Classes,
    *,
    failed: int,
    notes: Sequence[str],
    settings: Mapping[str, Any],
    seed: int,
) -> ZeroShotReport:
    """The report of models' answers (P, K), best first, to pictures whose classes have the numbers `labels` (P,)."""
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


def _within(estimate: Estimate) -> Estimate:
    """The same within 0 and 1, which a linear score's interval may leave."""
    return Estimate(*(min(1.0, max(0.0, value)) for value in estimate))


# --- in words ------------------------------------------------------------------------------------------------------


def _figure(report: ZeroShotReport, name: str, long: bool = False) -> str:
    estimate = report.models[name].intervals[TOP1.score]
    between = interval(TOP1, estimate, "–")
    said = f"{'95 % interval ' if long else ''}{between}"
    return TOP1.written(estimate.mean) + (f" ({said})" if between else "")


def _best(report: ZeroShotReport) -> str:
    best, others = report.best, "the others" if len(report.models) > 2 else "the other"
    told = (
        f"tells the class of {_figure(report, best, long=True)} of {report.pictures:,} pictures of {len(report.asked):,} classes "
        "at its first answer"
    )
    if len(report.models) == 1:
        return f"{best} {told}."
    if report.verdict.winner:
        return f"{best} is the best: it {told}, clearly more than {others}."
    return f"No model is shown to be the best: {best} {told}, not clearly more than {_and(report.verdict.not_behind)}."


def _rest(report: ZeroShotReport) -> str:
    """The other models' figures; of a single one, its other scores."""
    if len(report.models) > 1:
        return "; ".join(f"{name}: {_figure(report, name)}" for name in report.verdict.ranking[1:]) + "."
    (model,) = report.models.values()
    figures = [
        f"{words} {measure.written(estimate.mean)}"
        for measure, words in (
            (TOP5, "among the first five answers the right one is for"),
            (PER_CLASS, "the mean over classes is"),
        )
        if (estimate := model.intervals.get(measure.score))
    ]
    said = ", and ".join(figures)
    return f"{said[0].upper()}{said[1:]}."


def _against_chance(report: ZeroShotReport) -> str:
    poor = [name for name, model in report.models.items() if model.intervals[TOP1.score].low <= report.chance]
    guess = f"Without a look at the pictures {TOP1.written(report.chance)} of the answers would be right"
    return f"{guess}; that {_and(poor)} can do more is not shown." if poor else f"{guess}."


def _confused(report: ZeroShotReport) -> str:
    names, found = report.classes.names, report.models[report.best].confusions[:PAIRS]
    if not found:
        return f"{report.best} takes no class for another."
    pairs = [
        f"{names[pair['class']]} for {names[pair['answered']]} ({pair['pictures']:,} of {report.asked[pair['class']]:,})"
        for pair in found
    ]
    return f"Most often {report.best} takes {_and(pairs)}."


def _few(report: ZeroShotReport) -> str:
    return (
        f"{report.pictures:,} pictures are few: intervals of so few are too narrow." if report.pictures < FEW else ""
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
