import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity import accumulate
from diversity.accumulate import CaptionAccumulator, HashCounts, find_caption, quantile
from diversity.tokens import words

CAPTION = st.lists(st.sampled_from("a red blue dog cat on 2 the".split()), max_size=7).map(" ".join)
GROUPS = st.lists(st.lists(CAPTION, max_size=4), min_size=1, max_size=8)
SCENE = {"background": "sand", "objects": [{"shape": "circle", "colour": "red", "size": "small", "texture": "plain",
                                            "x": 0.2, "y": 0.5, "radius": 0.1}]}


def score(groups, **others):
    accumulator = CaptionAccumulator()
    accumulator.update(groups, **others)
    return accumulator.result()


def assert_same(one, other):
    """Counts exactly, means to rounding."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, float):
            assert value == pytest.approx(other[name], rel=1e-12, abs=1e-15), name
        else:
            assert value == other[name], name


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.integers(0, 2**32))
def test_shards_merged_in_any_order_equal_one_pass(groups, seed):
    rng = random.Random(seed)
    scenes = [SCENE if rng.random() < 0.5 else None for _ in groups]
    truncated = [[rng.random() < 0.2 for _ in group] for group in groups]
    whole = CaptionAccumulator()
    whole.update(groups, truncated, scenes)

    shards = []
    for rows in _split(list(zip(groups, truncated, scenes)), rng):
        shard = CaptionAccumulator()
        shard.update(*([row[part] for row in rows] for part in range(3)))
        shards.append(shard)
    rng.shuffle(shards)
    merged = CaptionAccumulator()
    for shard in shards:
        merged.merge(shard)
    assert_same(merged.result(), whole.result())
    assert merged.examples == whole.examples


def _split(rows, rng):
    while rows:
        size = rng.randint(0, len(rows))
        yield rows[:size]
        rows = rows[size:]


@settings(max_examples=50, deadline=None)
@given(GROUPS, st.integers(1, 9))
def test_batches_do_not_matter(groups, captions_at_once):
    whole = score(groups)
    before, accumulate.CAPTIONS_AT_ONCE = accumulate.CAPTIONS_AT_ONCE, captions_at_once
    try:
        assert_same(score(groups), whole)
    finally:
        accumulate.CAPTIONS_AT_ONCE = before


@settings(max_examples=100, deadline=None)
@given(GROUPS)
def test_set_measures_equal_plain_counting(groups):
    found = score(groups)
    captions = [words(caption) for group in groups for caption in group]
    assert found["words"] == sum(map(len, captions))
    assert found["vocabulary"] == len({word for caption in captions for word in caption})
    assert found["length_histogram"] == Counter(map(len, captions))
    for n in (1, 2, 3, 4):
        grams = [tuple(caption[at:at + n]) for caption in captions for at in range(len(caption) - n + 1)]
        assert found[f"distinct_{n}"] == (len(set(grams)) / len(grams) if grams else None)
    unique = [{tuple(words(caption)) for caption in group} for group in groups]
    stands_for = Counter(caption for group in unique for caption in group)
    total = sum(map(len, unique))
    assert found["duplicates"] == ((len(captions) - total) / len(captions) if captions else None)
    assert found["shared"] == (sum(times for times in stands_for.values() if times > 1) / total if total else None)
    assert found["most_shared"] == max(stands_for.values(), default=0) / len(groups)


def test_one_caption_for_every_picture():
    found = score([["a red dog runs"] * 5] * 20)
    assert found | {"distinct_1": 4 / 400, "distinct_2": 3 / 300, "distinct_4": 1 / 100, "mbleu_4": 1, "duplicates": 0.8,
                    "shared": 1, "most_shared": 1, "degenerate": 0, "length_mean": 4, "vocabulary": 4} == found
    assert found["length_quantiles"] == dict.fromkeys(["0.05", "0.25", "0.5", "0.75", "0.95"], 4)


def test_all_captions_different():
    found = score([[f"w{at}a w{at}b w{at}c w{at}d", f"v{at}a v{at}b v{at}c v{at}d"] for at in range(20)])
    assert found | {"distinct_1": 1, "distinct_4": 1, "mbleu_4": 0, "div_1": 1, "div_2": 0.75, "duplicates": 0, "shared": 0,
                    "most_shared": 1 / 20} == found


def test_doubling_the_set_keeps_what_is_within_pictures_and_halves_distinct():
    groups = [["a red dog", "a dog on grass"], ["two cats", "cats on a mat by the door"]]
    once, twice = score(groups), score(groups * 2)
    for name in ("div_1", "div_2", "mbleu_4", "length_mean", "duplicates", "degenerate", "vocabulary"):
        assert twice[name] == pytest.approx(once[name], rel=1e-12)
    for n in (1, 2, 3, 4):
        assert twice[f"distinct_{n}"] == pytest.approx(once[f"distinct_{n}"] / 2)
    assert twice["shared"] == 1


def test_nothing_at_all():
    found = score([])
    assert found | {"pictures": 0, "captions": 0, "length_mean": None, "mbleu_4": None, "degenerate": None, "facts": None} == found


def test_degenerate_captions_are_counted_by_reason_with_examples():
    accumulator = CaptionAccumulator()
    accumulator.update([["a 2 2 2 2", "a red dog runs"], ["a dog on a", "a cat on the mat"]], [[False, True], [False, False]])
    found = accumulator.result()
    assert found["degenerate"] == 3 / 4
    assert {name: share for name, share in found["degenerate_reasons"].items() if share} == {"loop": 0.25, "cut": 0.5,
                                                                                             "digits": 0.25}
    assert accumulator.examples["loop"] == ["a 2 2 2 2"]
    assert sorted(accumulator.examples["cut"]) == ["a dog on a", "a red dog runs"]


def test_examples_are_few():
    accumulator = CaptionAccumulator()
    accumulator.update([[f"dog{at}"] for at in range(100)])
    assert len(accumulator.examples["short"]) == accumulate.EXAMPLES


def test_marks_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError):
        CaptionAccumulator().update([["a red dog", "a cat"]], [[True]])


def test_the_caption_that_stands_for_most_pictures():
    groups = [["a dog runs", "one"], ["A cat sits.", "two"], ["a cat sits", "a cat sits"]]
    accumulator = CaptionAccumulator()
    accumulator.update(groups)
    assert find_caption(groups, accumulator.most_shared_hash()) == "A cat sits."
    assert find_caption([["other"]], accumulator.most_shared_hash()) is None
    lone = CaptionAccumulator()
    lone.update([["a dog", "a dog"], ["a cat"]])
    assert lone.most_shared_hash() is None


@given(st.lists(st.lists(st.integers(0, 9), max_size=20)), st.integers(0, 5))
def test_hash_counts_count(parts, compact_at):
    counts, expected = HashCounts(), Counter()
    for at, part in enumerate(parts):
        counts.add(np.array(part, np.uint64))
        expected.update(part)
        if at == compact_at:
            counts.compact()
    counts.compact()
    assert dict(zip(counts.hashes.tolist(), counts.counts.tolist())) == expected
    assert counts.hashes.tolist() == sorted(expected)


@given(st.lists(st.integers(0, 30), min_size=1), st.floats(0.01, 1))
def test_quantiles_are_those_of_the_sorted_values(values, q):
    assert quantile(Counter(values), q) == np.quantile(values, q, method="inverted_cdf")
