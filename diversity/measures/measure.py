"""One number of a report: where it stands in a row, what it is called and means, and how it is written."""

from collections.abc import Mapping
from typing import Any, NamedTuple

PERCENT = "\N{NARROW NO-BREAK SPACE}%"


class Measure(NamedTuple):
    """One number of a report's row: where it stands, its label, what it is, and how it is written."""

    path: tuple[str, ...]
    label: str
    definition: str
    unit: str = "ratio"  # ratio | percent | count | words
    better: str = ""  # higher | lower | "" where neither is
    score: str = ""  # name of its scores by picture, whose mean it is; "" where it is one of the whole set

    def value(self, row: Mapping[str, Any]) -> float | None:
        """The number in full precision, None where it is undefined or was not measured."""
        found: Any = row
        for name in self.path:
            found = None if found is None else found.get(name)
        return found

    def text(self, row: Mapping[str, Any]) -> str:
        """The number as a table shows it."""
        return self.written(self.value(row))

    def written(self, value: float | None) -> str:
        """A value of this measure, or a difference of two, as a table shows it."""
        if value is None:
            return "–"
        if self.unit == "percent":
            return f"{100 * value:.1f}{PERCENT}"
        if self.unit == "count":
            return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        return f"{value:.1f}" if self.unit == "words" else f"{value:.3f}"

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")
