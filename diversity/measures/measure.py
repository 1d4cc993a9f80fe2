"""The description of one number of a report: its path in a row, its label and definition, and its format."""

from collections.abc import Mapping
from typing import Any, NamedTuple

PERCENT = "\N{NARROW NO-BREAK SPACE}%"


class Measure(NamedTuple):
    """One number of a report's row."""

    path: tuple[str, ...]  # the keys that lead to the number in the row
    label: str
    definition: str  # formula, range, direction and paper, as the report shows them
    unit: str = "ratio"  # ratio | percent | count | words
    better: str = ""  # higher | lower | "" where neither is better
    score: str = ""  # name of the score of pictures whose mean the number is; "" for a number of the whole set

    def value(self, row: Mapping[str, Any]) -> float | None:
        """Return the number in full precision; None where it is undefined or was not measured."""
        value: Any = row
        for name in self.path:
            value = None if value is None else value.get(name)
        return value

    def text(self, row: Mapping[str, Any]) -> str:
        """Return the number of a row as a table shows it."""
        return self.written(self.value(row))

    def written(self, value: float | None) -> str:
        """Return a value of this measure, or a difference between two values, as a table shows it."""
        if value is None:
            return "–"
        if self.unit == "percent":
            return f"{100 * value:.1f}{PERCENT}"
        if self.unit == "count":
            return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        return f"{value:.1f}" if self.unit == "words" else f"{value:.3f}"

    @property
    def direction(self) -> int:
        """-1 where lower is better, else 1: the factor that makes higher better."""
        return -1 if self.better == "lower" else 1

    @property
    def arrow(self) -> str:
        """↑ where higher is better, ↓ where lower is better, "" where neither is."""
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")
