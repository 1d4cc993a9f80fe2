"""Check the facts that captions of built-in pictures state against the truth."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def count_true(caption: str, scene: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many facts of a caption of a built-in picture are true, and how many facts it states."""
    from imagetext.scenes.facts import facts_of, true_facts

    stated = facts_of(caption)
    return len(stated & true_facts(scene)), len(stated)


class FactCounts:
    """Counts of true and stated facts by kind; they are sums over pictures, so shards can be added in any order.

    precision = true stated facts / stated facts, over captions. recall = key facts of pictures that at least one of
    their captions states / key facts. Both are in [0, 1], higher is better; None where there is nothing to divide by.
    """

    def __init__(self) -> None:
        self.captions = 0
        self.stated, self.true, self.key, self.found = Counter(), Counter(), Counter(), Counter()

    def update(self, captions: Sequence[str], scene: Mapping[str, Any]) -> None:
        """Count the captions of one built-in picture, whose description is `scene`."""
        from imagetext.scenes.facts import facts_of, key_facts, true_facts

        true, key = true_facts(scene), key_facts(scene)
        stated = [facts_of(caption) for caption in captions]
        self.captions += len(captions)
        for facts in stated:
            self.stated.update(fact.kind for fact in facts)
            self.true.update(fact.kind for fact in facts & true)
        self.key.update(fact.kind for fact in key)
        self.found.update(fact.kind for fact in key & frozenset().union(*stated))

    def merge(self, other: "FactCounts") -> None:
        """Add the facts that `other` counted."""
        self.captions += other.captions
        self.stated.update(other.stated)
        self.true.update(other.true)
        self.key.update(other.key)
        self.found.update(other.found)

    def result(self) -> dict[str, Any] | None:
        """Return precision and recall of all facts and of each kind; None where no picture's truth is known."""
        if not self.captions:
            return None
        from imagetext.scenes.facts import KINDS

        kinds = {}
        for kind in KINDS:
            if self.stated[kind] or self.key[kind]:
                kinds[kind] = _scores(
                    stated=self.stated[kind], true=self.true[kind], key=self.key[kind], found=self.found[kind]
                )
        total = _scores(
            stated=self.stated.total(), true=self.true.total(), key=self.key.total(), found=self.found.total()
        )
        return {**total, "stated_per_caption": self.stated.total() / self.captions, "kinds": kinds}


def _scores(*, stated: int, true: int, key: int, found: int) -> dict[str, float | None]:
    return {
        "precision": true / stated if stated else None,
        "recall": found / key if key else None,
        "stated": stated,
        "true": true,
        "key": key,
        "found": found,
    }
