"""What a run found: the scores of each model, which is best if any is shown to be, and all that in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from diversity.measures.measure import PERCENT
from diversity.page.differences import interval
from diversity.verdict.answer import FEW
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.winner import Verdict
from finetune.zero_shot.models import Mistake
from finetune.zero_shot.pictures import Classes
from finetune.zero_shot.scores import PER_CLASS, TOP1, TOP5
from finetune.zero_shot.support import ALONE

KIND = "capsmith zero-shot"
PAIRS = 3  # of classes taken for one another, that a sentence names


class Unsure(NamedTuple):
    """What a hierarchy did for a model: the share of pictures that it is unsure of, and the accuracy of all, with intervals.

    sure: of those that it is sure of; before and after: of the others, by all templates and ranked anew; gain: after less
    before; total: of all pictures, after.
    """

    share: Estimate
    total: Estimate
    sure: Estimate | None
    before: Estimate | None
    after: Estimate | None
    gain: Estimate | None


class Supported(NamedTuple):
    """What support pictures did for a model: top-1 by the descriptions that help, "pictures alone" first, and pictures a class.

    differences: of these in top-1 with the most pictures a class, corrected for all pairs; verdict: whose are the best.
    """

    top1: Mapping[str, Mapping[int, Estimate]]
    differences: Sequence[Difference]
    verdict: Verdict

    @property
    def most(self) -> int:
        """Pictures a class at most."""
        return max(self.top1[ALONE])


@dataclass(frozen=True)
class ModelResult:
    """One model: its scores with their intervals, top-1 of each class (None without pictures), and its mistakes."""

    intervals: Mapping[str, Estimate]
    by_class: Sequence[float | None]
    confusions: Sequence[Mapping[str, Any]]  # the commonest first; classes by number
    mistakes: Sequence[Mistake]  # the surest first
    unsure: Unsure | None = None  # where there is a hierarchy
    support: Supported | None = None  # where there are support pictures


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
        return tuple(
            filter(
                None,
                (
                    _best(self),
                    _rest(self),
                    _against_chance(self),
                    _confused(self),
                    _unsure(self),
                    _support(self),
                    _few(self),
                ),
            )
        )

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
                    **({"unsure": _plain(model.unsure)} if model.unsure else {}),
                    **({"support": _plain_support(model.support)} if model.support else {}),
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
            "verdict": _plain_verdict(self.verdict),
            "settings": dict(self.settings),
        }


def _plain(unsure: Unsure) -> dict[str, Any]:
    return {name: estimate and estimate._asdict() for name, estimate in unsure._asdict().items()}


def _plain_support(support: Supported) -> dict[str, Any]:
    return {
        "top1": {name: {count: one._asdict() for count, one in of.items()} for name, of in support.top1.items()},
        "differences": [{**one._asdict(), "estimate": one.estimate._asdict()} for one in support.differences],
        "verdict": _plain_verdict(support.verdict),
    }


def _plain_verdict(verdict: Verdict) -> dict[str, Any]:
    return {"winner": verdict.winner, "ranking": verdict.ranking, "not_behind": verdict.not_behind}


# --- in words ------------------------------------------------------------------------------------------------------


def _figure(report: ZeroShotReport, name: str, long: bool = False) -> str:
    estimate = report.models[name].intervals[TOP1.score]
    between = interval(TOP1, estimate, "–")
    said = f"{'95 % interval ' if long else ''}{between}"
    return TOP1.written(estimate.mean) + (f" ({said})" if between else "")


def _best(report: ZeroShotReport) -> str:
    best, others = report.best, "the others" if len(report.models) > 2 else "the other"
    told = (
        f"tells the class of {_figure(report, best, long=True)} of {report.pictures:,} pictures of "
        f"{len(report.asked):,} classes "
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


def _unsure(report: ZeroShotReport) -> str:
    """What the hierarchy does for the best model."""
    unsure = report.models[report.best].unsure
    if not unsure:
        return ""
    if not (unsure.gain and unsure.before and unsure.after):
        return f"{report.best} is sure of all pictures: the hierarchy has nothing to do."
    gain = TOP1.written(unsure.gain.mean).replace(PERCENT, " points").replace("-", "−")
    between = interval(TOP1, unsure.gain, " to ").removesuffix(PERCENT)
    clear = "" if unsure.gain.low > 0 or unsure.gain.high < 0 else ", so no effect is shown"
    return (
        f"{report.best} is unsure of {TOP1.written(unsure.share.mean)} of the pictures: there it is right for "
        f"{TOP1.written(unsure.before.mean)}, "
        f"and by children and parents of the classes for {TOP1.written(unsure.after.mean)}, a difference of {gain}"
        + (f" ({between})" if between else "")
        + f"{clear}."
    )


def _support(report: ZeroShotReport) -> str:
    """What support pictures do for the best model, and their descriptions beside them."""
    support = report.models[report.best].support
    if not support:
        return ""
    right = TOP1.written(support.top1[ALONE][support.most].mean)
    said = f"With {support.most:,} labelled pictures a class {report.best} is right for {right}"
    adds = [
        (one.second, -one.estimate.mean, one.sign) if one.first == ALONE else (one.first, one.estimate.mean, one.sign)
        for one in support.differences
        if ALONE in (one.first, one.second)
    ]
    if not adds:
        return f"{said}."
    some = any(sign for *_, sign in adds)
    figures = [
        f"{name} {signed(gain)}" + (", not shown to be more than chance" if some and not sign else "")
        for name, gain, sign in adds
    ]
    none = "" if some else f", {'none of it' if len(adds) > 1 else 'which is not'} shown to be more than chance"
    return (
        f"{said}; what descriptions of these add: {'; '.join(figures)}{none}.{_most(support.verdict) if some else ''}"
    )


def _most(verdict: Verdict) -> str:
    """Which of several columns has the best descriptions."""
    best, *others = verdict.ranking
    if not others:
        return ""
    if verdict.winner:
        return f" Those of {best} are the best, clearly better than those of {_and(others)}."
    return f" Whose are the best is not shown: those of {best} are not clearly better than those of {_and(verdict.not_behind)}."


def _few(report: ZeroShotReport) -> str:
    return (
        f"{report.pictures:,} pictures are few: intervals of so few are too narrow." if report.pictures < FEW else ""
    )


def signed(value: float) -> str:
    """A difference of shares, in points."""
    return f"{round(100 * value, 1) + 0.0:+.1f} points".replace("-", "−")  # no -0.0


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
