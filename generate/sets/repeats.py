"""Which captions stand for many pictures: counts that fit into a shard's marker and add up over shards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

SIZE = 128  # captions kept


class Repeats:
    """The captions of one column that stand for the most pictures.

    One that is kept stands for `counts[caption]` to `counts[caption] + absent` pictures, any other for at most `absent`, which
    is at most 1 / (SIZE + 1) of all that was counted, each picture's different captions. Sums of parts keep that promise
    (Misra and Gries 1982; merged as in Agarwal et al. 2013, "Mergeable Summaries").
    """

    def __init__(self) -> None:
        self.pictures = self.absent = 0
        self.counts: Counter[str] = Counter()

    def update(self, captions: Sequence[str]) -> None:
        """Counts the captions of one picture, each once."""
        self.pictures += 1
        self.counts.update(set(captions))
        if len(self.counts) > 100 * SIZE:  # bounds the memory of a shard
            self._cut()

    def merge(self, other: Self) -> None:
        self.pictures += other.pictures
        self.absent += other.absent
        self.counts.update(other.counts)
        self._cut()

    def most(self, number: int) -> list[tuple[str, int]]:
        """The commonest captions, each with the least number of pictures that it stands for."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:number]

    def state(self) -> dict[str, Any]:
        """All of it, in JSON's types."""
        self._cut()
        return {"pictures": self.pictures, "absent": self.absent, "counts": dict(self.most(SIZE))}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """What `state` gave."""
        repeats = cls()
        repeats.pictures, repeats.absent = int(state["pictures"]), int(state["absent"])
        repeats.counts.update({str(caption): int(count) for caption, count in state["counts"].items()})
        return repeats

    def _cut(self) -> None:
        if len(self.counts) > SIZE:
            least = sorted(self.counts.values(), reverse=True)[SIZE]
            self.counts = Counter({caption: count - least for caption, count in self.counts.items() if count > least})
            self.absent += least
