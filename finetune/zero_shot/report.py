"""The result of a run in numbers and in words: each model's scores, and the best model if one is shown to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from diversity.measures.measure import PERCENT
from diversity.page.differences import interval
from diversity.verdict.answer import FEW
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.evidence import listed
from diversity.verdict.winner import Verdict
from finetune.zero_shot.models import Mistake
from finetune.zero_shot.pictures import Classes
from finetune.zero_shot.scores import PER_CLASS, TOP1, TOP5
from finetune.zero_shot.support import ALONE

KIND = "capsmith zero-shot"
PAIRS = 3  # number of confusions that a sentence names


class Unsure(NamedTuple):
    """The effect of a hierarchy on a model, with intervals.

    share: share of the pictures that the model is unsure of. total: accuracy on all pictures after reranking. sure:
    accuracy on the pictures that it is sure of. before, after: accuracy on the others before and after reranking.
    gain: after less before.
    """

    share: Estimate
    total: Estimate
    sure: Estimate | None
    before: Estimate | None
    after: Estimate | None
    gain: Estimate | None


class Supported(NamedTuple):
    """The effect of support pictures on a model.

    top1: top-1 by column of descriptions ("pictures alone" first) and by number of support pictures of each class.
    differences: differences in top-1 between the columns with the most pictures of each class, corrected for all
    pairs.
    verdict: the column with the best descriptions.
    """

    top1: Mapping[str, Mapping[int, Estimate]]
    differences: Sequence[Difference]
    verdict: Verdict

    @property
    def most(self) -> int:
        """The largest number of support pictures of each class."""
        return max(self.top1[ALONE])


@dataclass(frozen=True)
class ModelResult:
    """The result of one model."""

    intervals: Mapping[str, Estimate]  # scores
    by_class: Sequence[float | None]  # top-1 of each class, None if it has no pictures
    confusions: Sequence[Mapping[str, Any]]  # the commonest first, with class indices
    mistakes: Sequence[Mistake]  # the surest first
    unsure: Unsure | None = None  # with a hierarchy
    support: Supported | None = None  # with support pictures


@dataclass(frozen=True)
class ZeroShotReport:
    """The result of a run; `models` are in the order of the flags."""

    models: Mapping[str, ModelResult]
    classes: Classes
    class_sizes: Sequence[int]  # number of classified pictures of each class
    failed: int  # number of pictures that cannot be used
    differences: Sequence[Difference]
    verdict: Verdict
    notes: Sequence[str]
    settings: Mapping[str, Any]

    @property
    def pictures(self) -> int:
        """The number of classified pictures."""
        return sum(self.class_sizes)

    @property
    def best(self) -> str:
        """The model that ranks first, whether or not it is shown to be best."""
        return self.verdict.ranking[0]

    @property
    def chance(self) -> float:
        """The accuracy of always answering the commonest class, or of guessing, whichever is higher."""
        return max(1 / len(self.class_sizes), max(self.class_sizes) / self.pictures)

    @property
    def answer(self) -> tuple[str, ...]:
        """The result in sentences, the first of which says which model is best."""
        sentences = (
            _best_model(self),
            _other_figures(self),
            _chance(self),
            _confusions(self),
            _unsure(self),
            _support(self),
            _few_pictures(self),
        )
        return tuple(filter(None, sentences))

    def to_json(self) -> dict[str, Any]:
        """Return the whole report without images; classes are given by their labels in the set."""
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
                for label, name, pictures in zip(labels, self.classes.names, self.class_sizes, strict=True)
            ],
            "models": {
                name: {
                    **{score: estimate._asdict() for score, estimate in model.intervals.items()},
                    "by_class": dict(zip(labels, model.by_class, strict=True)),
                    **({"unsure": _plain(model.unsure)} if model.unsure else {}),
                    **({"support": _plain_support(model.support)} if model.support else {}),
                    "confusions": [
                        {**pair, "class": labels[pair["class"]], "answered": labels[pair["answered"]]}
                        for pair in model.confusions
                    ],
                }
                for name, model in self.models.items()
            },
            "differences": [difference.as_json() for difference in self.differences],
            "verdict": _plain_verdict(self.verdict),
            "settings": dict(self.settings),
        }


def _plain(unsure: Unsure) -> dict[str, Any]:
    return {name: estimate and estimate._asdict() for name, estimate in unsure._asdict().items()}


def _plain_support(support: Supported) -> dict[str, Any]:
    return {
        "top1": {
            name: {count: estimate._asdict() for count, estimate in by_count.items()}
            for name, by_count in support.top1.items()
        },
        "differences": [difference.as_json() for difference in support.differences],
        "verdict": _plain_verdict(support.verdict),
    }


def _plain_verdict(verdict: Verdict) -> dict[str, Any]:
    return {"winner": verdict.winner, "ranking": verdict.ranking, "not_behind": verdict.not_behind}


# --- in words ------------------------------------------------------------------------------------------------------


def _figure(report: ZeroShotReport, name: str, *, long: bool = False) -> str:
    """Return the top-1 of a model with its interval; `long` says what the interval is."""
    estimate = report.models[name].intervals[TOP1.score]
    limits = interval(TOP1, estimate, "–")
    if not limits:
        return TOP1.written(estimate.mean)
    return f"{TOP1.written(estimate.mean)} ({'95 % interval ' if long else ''}{limits})"


def _best_model(report: ZeroShotReport) -> str:
    best, others = report.best, "the others" if len(report.models) > 2 else "the other"
    result = (
        f"gives the right class at its first answer for {_figure(report, best, long=True)} of {report.pictures:,} "
        f"pictures of {len(report.class_sizes):,} classes"
    )
    if len(report.models) == 1:
        return f"{best} {result}."
    if report.verdict.winner:
        return f"{best} is the best: it {result}, clearly more than {others}."
    not_behind = listed(report.verdict.not_behind)
    return f"No model is shown to be the best: {best} {result}, not clearly more than {not_behind}."


def _other_figures(report: ZeroShotReport) -> str:
    """Return the figures of the other models; if there is only one model, its other scores."""
    if len(report.models) > 1:
        return "; ".join(f"{name}: {_figure(report, name)}" for name in report.verdict.ranking[1:]) + "."
    (model,) = report.models.values()
    figures = []
    if top5 := model.intervals.get(TOP5.score):
        figures.append(f"the right class is among its first five answers for {TOP5.written(top5.mean)}")
    if per_class := model.intervals.get(PER_CLASS.score):
        figures.append(f"the mean over classes is {PER_CLASS.written(per_class.mean)}")
    sentence = ", and ".join(figures)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _chance(report: ZeroShotReport) -> str:
    poor = [name for name, model in report.models.items() if model.intervals[TOP1.score].low <= report.chance]
    chance = f"Without a look at the pictures {TOP1.written(report.chance)} of the answers would be right"
    return f"{chance}; it is not shown that {listed(poor)} can do more." if poor else f"{chance}."


def _confusions(report: ZeroShotReport) -> str:
    names, confusions = report.classes.names, report.models[report.best].confusions[:PAIRS]
    if not confusions:
        return f"{report.best} mistakes no class for another."
    pairs = []
    for pair in confusions:
        pictures = f"{pair['pictures']:,} of {report.class_sizes[pair['class']]:,}"
        pairs.append(f"{names[pair['class']]} for {names[pair['answered']]} ({pictures})")
    return f"Most often, {report.best} mistakes {listed(pairs)}."


def _unsure(report: ZeroShotReport) -> str:
    """Return what the hierarchy does for the best model."""
    unsure = report.models[report.best].unsure
    if not unsure:
        return ""
    if not (unsure.gain and unsure.before and unsure.after):
        return f"{report.best} is sure of all pictures, so the hierarchy changes nothing."
    gain = TOP1.written(unsure.gain.mean).replace(PERCENT, " points").replace("-", "−")
    limits = interval(TOP1, unsure.gain, " to ").removesuffix(PERCENT)
    shown = unsure.gain.low > 0 or unsure.gain.high < 0
    return (
        f"{report.best} is unsure of {TOP1.written(unsure.share.mean)} of the pictures. Of these, its answer is right "
        f"for {TOP1.written(unsure.before.mean)}, and with the help of child and parent classes for "
        f"{TOP1.written(unsure.after.mean)}, a difference of {gain}{f' ({limits})' if limits else ''}"
        f"{'' if shown else ', so no effect is shown'}."
    )


def _support(report: ZeroShotReport) -> str:
    """Return what support pictures, and their descriptions in addition, do for the best model."""
    support = report.models[report.best].support
    if not support:
        return ""
    right = TOP1.written(support.top1[ALONE][support.most].mean)
    sentence = f"With up to {support.most:,} labelled pictures of each class, {report.best} is right for {right}"
    gains = support_gains(support)
    if not gains:
        return f"{sentence}."
    some_shown = any(sign for _, sign in gains.values())
    figures = [
        f"{name} {signed(gain.mean)}" + (", not shown to be more than chance" if some_shown and not sign else "")
        for name, (gain, sign) in gains.items()
    ]
    sentence += f". Descriptions of these pictures add: {'; '.join(figures)}"
    if some_shown:
        return f"{sentence}.{_best_descriptions(support.verdict)}"
    which = "none of which is" if len(gains) > 1 else "which is not"
    return f"{sentence}, {which} shown to be more than chance."


def support_gains(support: Supported) -> dict[str, tuple[Estimate, int]]:
    """Return, for each column, the gain of its descriptions over pictures alone, and 0 if the gain may be chance."""
    gains = {}
    for difference in support.differences:
        if difference.first == ALONE:
            gains[difference.second] = (-difference.estimate, difference.sign)
        elif difference.second == ALONE:
            gains[difference.first] = (difference.estimate, difference.sign)
    return gains


def _best_descriptions(verdict: Verdict) -> str:
    """Return which of several columns has the best descriptions."""
    best, *others = verdict.ranking
    if not others:
        return ""
    if verdict.winner:
        return f" The descriptions in {best} are the best, clearly better than those in {listed(others)}."
    return (
        f" No column is shown to have the best descriptions: those in {best} are not clearly better than those in "
        f"{listed(verdict.not_behind)}."
    )


def _few_pictures(report: ZeroShotReport) -> str:
    if report.pictures >= FEW:
        return ""
    return f"{report.pictures:,} pictures are few: the intervals are too narrow for so few."


def signed(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{round(100 * value, 1) + 0.0:+.1f} points".replace("-", "−")  # + 0.0 turns -0.0 into 0.0
