"""The content of a report, written as JSON for scripts and as Markdown; `diversity.page.page` makes the HTML page."""

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
    """A caption of an example picture, with its faults and its scores."""

    text: str
    reasons: tuple[str, ...]  # names of the reasons why it is degenerate
    # how many stated facts are true, and how many facts are stated; None: not known
    facts: tuple[int, int] | None = None
    clip_score: float | None = None  # None: not measured


@dataclass(frozen=True)
class ExamplePicture:
    """A picture that the report shows with the captions of each column."""

    key: str
    image: bytes | None
    why: str  # best | worst | random, by the fidelity of the captioners' columns
    captions: Mapping[str, tuple[ExampleCaption, ...]]


@dataclass(frozen=True)
class DiversityReport:
    """The measures of all columns on the same pictures, and what follows from them.

    `rows[column]` holds the numbers of one column; the measures of `diversity.measures.catalogue` read them.
    """

    rows: Mapping[str, Mapping[str, Any]]
    references: str | None  # the column of human captions
    intervals: Mapping[str, Mapping[str, Estimate]]  # column -> score of pictures -> its mean and interval
    # column -> score of pictures -> 41 quantiles from 0 to 1
    distributions: Mapping[str, Mapping[str, Sequence[float]]]
    differences: tuple[Difference, ...]
    verdict: Verdict  # which column is best, on what evidence, and which columns are suspect
    fidelity: str  # name of the score that stands for fidelity
    spread: str | None  # name of the score that stands for spread; None where each picture has one caption
    mixes: Mixes | None
    answer: tuple[str, ...]  # the sentences that open the page
    notes: tuple[str, ...]  # sentences that a reader must know before the numbers
    degenerate_examples: Mapping[str, Mapping[str, Sequence[str]]]  # column -> reason -> captions
    # column -> score -> keys of the pictures without the score
    unscored: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    examples: tuple[ExamplePicture, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> Mapping[str, str]:
        """The label of each column in tables."""
        return labels(self.rows, self.references)

    @property
    def headline(self) -> tuple[Measure, ...]:
        """The measures of the first table."""
        return catalogue.headline(self.rows.values())

    @property
    def measured(self) -> tuple[Measure, ...]:
        """All measures that have a value in at least one row."""
        return tuple(
            measure for measure in catalogue.ALL if any(measure.value(row) is not None for row in self.rows.values())
        )

    def to_json(self) -> str:
        """Return everything except the example pictures as JSON, in full precision."""
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
            "differences": [difference.as_json() for difference in self.differences],
            "verdict": self.verdict.as_json(),
            "fidelity": self.fidelity,
            "spread": self.spread,
            "mixes": self.mixes
            and {**self.mixes._asdict(), "steps": [_step_as_dict(step) for step in self.mixes.steps]},
            "unscored": {
                name: {score: len(keys) for score, keys in scores.items()} for name, scores in self.unscored.items()
            },
            "degenerate_examples": self.degenerate_examples,
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return the answer, the first table and the notes as Markdown."""

        def table_line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(map(in_markdown, cells))} |"

        headline = self.headline
        table = [
            table_line(["Captions", *(f"{measure.label} {measure.arrow}".strip() for measure in headline)]),
            f"| --- |{' ---: |' * len(headline)}",
        ]
        for name, row in self.rows.items():
            table.append(table_line([self.labels[name], *(measure.text(row) for measure in headline)]))
        answer = [in_markdown(sentence) for sentence in self.answer]
        notes = [f"- {in_markdown(note)}" for note in self.notes]
        return "\n".join([*answer, "", *table, "", *notes]) + "\n"


def _step_as_dict(step: NamedTuple) -> dict[str, Any]:
    return {name: value._asdict() if isinstance(value, Estimate) else value for name, value in step._asdict().items()}
