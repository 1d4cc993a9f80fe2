"""How much two columns say the same of a picture, to the letter: counts that fit into a shard's marker and add up over shards."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations


class Overlap:
    """For each pair of columns, the captions that both have of one picture, and how many could be: those of the one with fewer."""

    def __init__(self) -> None:
        self.same: Counter[tuple[str, str]] = Counter()
        self.most: Counter[tuple[str, str]] = Counter()

    def update(self, captions: Mapping[str, Sequence[str]]) -> None:
        """Counts the captions of one picture by column, each different one once."""
        texts = {column: set(of_column) for column, of_column in captions.items()}
        for one, other in combinations(texts, 2):
            self.same[one, other] += len(texts[one] & texts[other])
            self.most[one, other] += min(len(texts[one]), len(texts[other]))

    def state(self) -> list[tuple[str, str, int, int]]:
        """All of it, in JSON's types."""
        return [(*pair, self.same[pair], most) for pair, most in self.most.items()]

    def add(self, state: Iterable[tuple[str, str, int, int]]) -> None:
        """Adds what another's `state` gave."""
        for one, other, same, most in state:
            self.same[one, other] += same
            self.most[one, other] += most

    def lines(self) -> list[str]:
        """In words, a line for each pair that has captions."""
        return [
            f"  {one} and {other}: {self.same[one, other] / most:.1%} of a picture's captions in one are in the other, too, "
            "to the letter"
            for (one, other), most in self.most.items()
            if most
        ]
