"""How true the facts are that captions of built-in pictures state."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def count_true(caption: str, scene: Mapping[str, Any]) -> tuple[int, int]:
    """How many of the facts that a caption of a built-in picture states are true, and how many it states."""
    from imagetext.scenes.facts import facts_of, true_facts

    stated = facts_of(caption)
    return len(stated & true_facts(scene)), len(stated)


class FactCounts:
    """Facts of captions against the truth, by kind; a sum over pictures, so shards add up in any order.

    precision = true stated facts / stated facts, over captions; recall = key facts of the pictures that some of their
    captions state / key facts. Both in [0, 1], higher is better; None where there is nothing to divide by.
    """

    def __init__(self) -> None:
        self.captions = 0
        self.stated, self.true, self.key, self.found = Counter(), Counter(), Counter(), Counter()

    def update(self, captions: Sequence[str], scene: Mapping[str, Any]) -> None:
        """Counts the captions of one built-in picture, whose description is `scene`."""
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
        self.captions += other.captions
        for mine, theirs in zip(
            (self.stated, self.true, self.key, self.found),
            (other.stated, other.true, other.key, other.found),
            strict=True,
        ):
            mine.update(theirs)

    def result(self) -> dict[str, Any] | None:
        """Precision and recall of all facts and of each kind, or None where no picture's truth is known."""
        if not self.captions:
            return None
        from imagetext.scenes.facts import KINDS

        kinds = {
            kind: _scores(self.stated[kind], self.true[kind], self.key[kind], self.found[kind])
            for kind in KINDS
            if self.stated[kind] or self.key[kind]
        }
        total = _scores(*(counts.total() for counts in (self.stated, self.true, self.key, self.found)))
        return {**total, "stated_per_caption": self.stated.total() / self.captions, "kinds": kinds}


def _scores(stated: int, true: int, key: int, found: int) -> dict[str, float | None]:
    return {
        "precision": true / stated if stated else None,
        "recall": found / key if key else None,
        "stated": stated,
        "true": true,
        "key": key,
        "found": found,
    }
