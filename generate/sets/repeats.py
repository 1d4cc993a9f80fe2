"""Which captions many pictures share: counts that fit into a shard's marker and add up over shards, and a report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

SIZE = 128  # captions whose counts are kept
REPORTED = 3  # captions of a column that are reported
REPORTED_SHARE = 0.01  # a caption is reported if at least this share of the pictures, and at least ALIKE, have it
ALIKE = 3
COLLAPSED = 10  # pictures from which a caption that many share is a problem: fewer may well look alike


class Repeats:
    """The captions of one column that the most pictures have, counted in bounded memory.

    A caption in `counts` belongs to at least `counts[caption]` and at most `counts[caption] + absent` pictures; any
    other caption to at most `absent`. `absent` is at most 1 / (SIZE + 1) of all that was counted, where a picture's
    equal captions count once. Merged counts keep these bounds (Misra and Gries 1982; merged as in Agarwal et al. 2013,
    "Mergeable Summaries").
    """

    def __init__(self) -> None:
        self.pictures = self.absent = 0
        self.counts: Counter[str] = Counter()

    def update(self, captions: Sequence[str]) -> None:
        """Count the captions of one picture, each once."""
        self.pictures += 1
        self.counts.update(set(captions))
        if len(self.counts) > 100 * SIZE:  # bounds the memory that a shard takes
            self._shorten()

    def merge(self, other: Self) -> None:
        other._shorten()  # as in a shard's marker, so that the bounds are the same without markers
        self.pictures += other.pictures
        self.absent += other.absent
        self.counts.update(other.counts)
        self._shorten()

    def most(self, number: int) -> list[tuple[str, int]]:
        """Return the commonest captions, each with the least number of pictures that have it."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:number]

    def state(self) -> dict[str, Any]:
        """Return all counts as JSON types."""
        self._shorten()
        return {"pictures": self.pictures, "absent": self.absent, "counts": dict(self.most(SIZE))}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Return the counts of a `state`."""
        repeats = cls()
        repeats.pictures, repeats.absent = int(state["pictures"]), int(state["absent"])
        repeats.counts.update({str(caption): int(count) for caption, count in state["counts"].items()})
        return repeats

    def _shorten(self) -> None:
        """Keep the SIZE commonest captions, with their counts lowered by that of the next one."""
        if len(self.counts) > SIZE:
            least = sorted(self.counts.values(), reverse=True)[SIZE]
            self.counts = Counter({caption: count - least for caption, count in self.counts.items() if count > least})
            self.absent += least


def repeated_captions(
    columns: Mapping[str, Repeats], least_share: float = REPORTED_SHARE, *, pictures: int = ALIKE
) -> list[str]:
    """Return a line for each of the commonest captions that this share of a column's pictures, and so many, have."""
    lines = []
    for name, repeats in columns.items():
        for caption, count in repeats.most(REPORTED):
            share = count / repeats.pictures
            if count >= pictures and share >= least_share:
                lines.append(
                    f"{name}: at least {count:,} of {repeats.pictures:,} pictures ({share:.1%}) have {caption!r}"
                )
    return lines
