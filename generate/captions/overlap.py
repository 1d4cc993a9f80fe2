"""How many captions two columns share, to the letter: counts that fit into a marker and add up over shards."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations


class Overlap:
    """For each pair of columns: the captions that both have for the same picture, and how many these could be.

    They could be as many as the column with fewer captions has.
    """

    def __init__(self) -> None:
        self.same: Counter[tuple[str, str]] = Counter()
        self.most: Counter[tuple[str, str]] = Counter()

    def update(self, captions: Mapping[str, Sequence[str]]) -> None:
        """Count the captions of one picture, given by column; a repeated caption counts once."""
        texts = {column: set(column_captions) for column, column_captions in captions.items()}
        for first, second in combinations(texts, 2):
            self.same[first, second] += len(texts[first] & texts[second])
            self.most[first, second] += min(len(texts[first]), len(texts[second]))

    def state(self) -> list[tuple[str, str, int, int]]:
        """Return all counts as JSON types."""
        return [(*pair, self.same[pair], most) for pair, most in self.most.items()]

    def add(self, state: Iterable[tuple[str, str, int, int]]) -> None:
        """Add the counts of another `state`."""
        for first, second, same, most in state:
            self.same[first, second] += same
            self.most[first, second] += most

    def lines(self) -> list[str]:
        """Return a sentence for each pair of columns with captions."""
        return [
            f"  {first} and {second}: {self.same[first, second] / most:.1%} of a picture's captions in one are also "
            "in the other, letter for letter"
            for (first, second), most in self.most.items()
            if most
        ]
