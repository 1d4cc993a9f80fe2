"""How many answers the gate refused, or did not come at all, and why: counts that fit into a shard's marker and add up over shards."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from generate.captions.said import Said

EXAMPLE = 300  # characters of a reason


class Refused:
    """Of each column: its answers, those that were drawn anew included, and how many were refused for each reason."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()  # by column
        self.refused: Counter[str] = Counter()
        self.reasons: dict[str, Counter[str]] = {}
        self.missing: Counter[str] = (
            Counter()
        )  # records of which no answer came: they lack what the instruction names, say
        self.example: dict[str, str] = {}  # the first of these, with its reason

    def update(self, column: str, said: Iterable[Said]) -> None:
        """Counts the answers to one request."""
        for one in said:
            refused = [*one.refused, *([one.reasons] if one.failing else [])]
            self.answers[column] += len(one.refused) + 1
            self.refused[column] += len(refused)
            for reasons in refused:
                self.reasons.setdefault(column, Counter()).update(reasons)

    def without(self, column: str, example: str) -> None:
        """Counts a record to which there is no answer; example: its key and the reason."""
        self.missing[column] += 1
        self.example.setdefault(column, example[:EXAMPLE])

    def state(self) -> dict[str, dict[str, object]]:
        """All of it, in JSON's types."""
        return {
            column: {
                "answers": self.answers[column],
                "refused": self.refused[column],
                "reasons": dict(sorted(self.reasons.get(column, Counter()).items())),
            }
            | ({"missing": self.missing[column], "example": self.example[column]} if self.missing[column] else {})
            for column in self.answers | self.missing
        }

    def add(self, state: Mapping[str, Mapping]) -> None:
        """Adds what another's `state` gave."""
        for column, counts in state.items():
            self.answers[column] += counts["answers"]
            self.refused[column] += counts["refused"]
            self.reasons.setdefault(column, Counter()).update(counts["reasons"])
            if missing := counts.get("missing"):
                self.missing[column] += missing
                self.example.setdefault(column, counts["example"])

    def lines(self) -> Sequence[str]:
        """In words, a line for each column of which answers were refused, and one for each of which some did not come."""
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
