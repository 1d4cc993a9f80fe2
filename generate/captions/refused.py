"""How many answers the gate refused, or never came, and why: counts that fit into a marker and add up over shards."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from generate.captions.judged_answers import JudgedAnswer

EXAMPLE = 300  # characters of an example's reason


class Refused:
    """For each column: its answers, redraws included, and how many of them were refused for each reason.

    missing: records without an answer, because they lack what the instruction names, for instance.
    example: the first of these records, with its reason.
    """

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.reasons: dict[str, Counter[str]] = {}
        self.missing: Counter[str] = Counter()
        self.example: dict[str, str] = {}

    def update(self, column: str, answers: Iterable[JudgedAnswer]) -> None:
        """Count the answers to one request."""
        for answer in answers:
            refused = [*answer.refused, *([answer.reasons] if answer.failing else [])]
            self.answers[column] += len(answer.refused) + 1
            self.refused[column] += len(refused)
            for reasons in refused:
                self.reasons.setdefault(column, Counter()).update(reasons)

    def add_missing(self, column: str, example: str) -> None:
        """Count a record without an answer; example: its key and the reason."""
        self.missing[column] += 1
        self.example.setdefault(column, example[:EXAMPLE])

    def state(self) -> dict[str, dict[str, object]]:
        """Return all counts as JSON types."""
        state = {}
        for column in self.answers | self.missing:
            state[column] = {
                "answers": self.answers[column],
                "refused": self.refused[column],
                "reasons": dict(sorted(self.reasons.get(column, Counter()).items())),
            }
            if self.missing[column]:
                state[column] |= {"missing": self.missing[column], "example": self.example[column]}
        return state

    def add(self, state: Mapping[str, Mapping]) -> None:
        """Add the counts of another `state`."""
        for column, counts in state.items():
            self.answers[column] += counts["answers"]
            self.refused[column] += counts["refused"]
            self.reasons.setdefault(column, Counter()).update(counts["reasons"])
            if missing := counts.get("missing"):
                self.missing[column] += missing
                self.example.setdefault(column, counts["example"])

    def lines(self) -> Sequence[str]:
        """Return a sentence for each column with refused answers, and for each column with missing ones."""
        lines = []
        for column, answers in self.answers.items():
            if refused := self.refused[column]:
                reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons[column].most_common())
                lines.append(f"  {column}: {refused:,} of {answers:,} answers were refused ({reasons})")
        lines += [
            f"  {column}: no answer for {count:,} of the records, such as {self.example[column]}"
            for column, count in self.missing.items()
        ]
        return lines
