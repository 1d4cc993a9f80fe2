"""What a report holds, and how it is written: JSON for scripts, Markdown for notes; `diversity.page.page` makes its page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diversity.columns import labels
from diversity.measures import catalogue
from diversity.measures.measure import Measure
from diversity.verdict.compare import Difference, Estimate
from diversity.verdict.mixes import Mixes
from diversity.verdict.winner import Verdict
from imagetext.shown import in_markdown

KIND = "capsmith diversity report"


class ExampleCaption(NamedTuple):
    """A caption, why it is degenerate, and where known its true and stated facts and its CLIPScore."""

    text: str
    reasons: tuple[str, ...]
    facts: tuple[int, int] | None = None
    clip_score: float | None = None


@dataclass(frozen=True)
class Example:
    """A picture of the report with the captions of each column."""

    key: str
    image: bytes | None
    why: str  # best | worst | random, by the fidelity of the columns that are no references
    captions: Mapping[str, tuple[ExampleCaption, ...]]


@dataclass(frozen=True)
class DiversityReport:
    """Measures of each column on the same pictures: `rows[column]`, read by `diversity.measures.catalogue`."""

    rows: Mapping[str, Mapping[str, Any]]
    references: str | None  # the row of human captions
    intervals: Mapping[str, Mapping[str, Estimate]]  # column -> scores by picture -> their mean
    distributions: Mapping[str, Mapping[str, Sequence[float]]]  # column -> scores by picture -> 41 quantiles, 0 to 1
    differences: tuple[Difference, ...]
    verdict: Verdict  # which is best, by what, and which are suspect
    fidelity: str  # the scores that stand for fidelity, and
    spread: str | None  # for spread; None with one caption a picture
    mixes: Mixes | None
    answer: tuple[str, ...]  # the sentences that open the page
    notes: tuple[str, ...]  # what a reader must know before the numbers
    degenerate_examples: Mapping[str, Mapping[str, Sequence[str]]]  # column -> reason -> captions
    # column -> score -> keys of the pictures without it
    unscored: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> Mapping[str, str]:
        """The columns' names as tables show them."""
        return labels(self.rows, self.references)

    @property
    def headline(self) -> tuple[Measure, ...]:
        """The measures of the first table."""
        return catalogue.headline(self.rows.values())

    @property
    def measured(self) -> tuple[Measure, ...]:
        """Every measure that has a value in some row."""
        return tuple(
            measure for measure in catalogue.ALL if any(measure.value(row) is not None for row in self.rows.values())
        )

    def to_json(self) -> str:
        """Everything but the example pictures, in full precision."""
        content = {
            "kind": KIND,
            "settings": self.settings,
            "answer": self.answer,
            "notes": self.notes,
            "references": self.references,
            "columns": self.rows,
            "intervals": {
                name: {score: estimate._asdict() for score, estimate in estimates.items()}
                for name, estimates in self.intervals.items()
            },
            "differences": [
                {**difference._asdict(), "estimate": difference.estimate._asdict()} for difference in self.differences
            ],
            "verdict": self.verdict.as_json(),
            "fidelity": self.fidelity,
            "spread": self.spread,
            "mixes": self.mixes and {**self.mixes._asdict(), "steps": [_plain(step) for step in self.mixes.steps]},
            "unscored": {
                name: {score: len(keys) for score, keys in scores.items()} for name, scores in self.unscored.items()
            },
            "degenerate_examples": self.degenerate_examples,
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The answer, the first table and the notes."""

        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(map(in_markdown, cells))} |"

        lines = [
            line(["Captions", *(f"{m.label} {m.arrow}".strip() for m in self.headline)]),
            f"| --- |{' ---: |' * len(self.headline)}",
        ]
        lines += [line([self.labels[name], *(m.text(row) for m in self.headline)]) for name, row in self.rows.items()]
        answer, notes = (list(map(in_markdown, texts)) for texts in (self.answer, self.notes))
        return "\n".join([*answer, "", *lines, "", *(f"- {note}" for note in notes)]) + "\n"


def _plain(step: NamedTuple) -> dict[str, Any]:
    return {name: value._asdict() if isinstance(value, Estimate) else value for name, value in step._asdict().items()}
