"""Repeats, which counts common captions in bounded memory, against a plain count."""

import json
import random
from collections import Counter

import pytest

from generate.sets.repeats import SIZE, Repeats


def skewed(pictures: int, seed: int) -> list[list[str]]:
    """Most pictures have one of a few captions, the others one of very many; some pictures have a caption twice."""
    draw = random.Random(seed)
    return [[f"caption {int(draw.paretovariate(0.4)) % 100_000}" for _ in range(3)] for _ in range(pictures)]


def counted(pictures) -> Repeats:
    repeats = Repeats()
    for captions in pictures:
        repeats.update(captions)
    return repeats


def test_few_captions_are_counted_exactly_each_once_a_picture():
    repeats = counted([["a", "b", "a"], ["a"], [], ["c", "a"]])
    assert repeats.most(2) == [("a", 3), ("b", 1)] and (repeats.pictures, repeats.absent) == (4, 0)


@pytest.mark.parametrize("parts", [1, 7])
def test_every_count_lies_within_its_bounds_however_it_was_split(parts):
    pictures = skewed(40_000, seed=parts)
    exact = Counter(caption for captions in pictures for caption in set(captions))
    merged = Repeats()
    for part in range(parts):
        merged.merge(Repeats.of(json.loads(json.dumps(counted(pictures[part::parts]).state()))))
    assert merged.pictures == 40_000 and len(merged.counts) <= SIZE
    assert 0 < merged.absent <= sum(exact.values()) / (SIZE + 1)
    assert all(
        merged.counts[caption] <= count <= merged.counts[caption] + merged.absent for caption, count in exact.items()
    )
    assert [caption for caption, _ in merged.most(5)] == [caption for caption, _ in exact.most_common(5)]


def test_a_state_is_small_and_the_same_in_any_order():
    pictures = skewed(3000, seed=3)
    assert len(json.dumps(counted(pictures).state())) < 40 * SIZE
    assert counted(pictures).state() == counted(pictures[::-1]).state()  # no cut before the last picture
