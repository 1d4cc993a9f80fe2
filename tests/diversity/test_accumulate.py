import math
import pickle
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.measures import accumulate
from diversity.measures.accumulate import CaptionAccumulator, find_caption, novelty, quantile
from diversity.words.degenerate import degenerate_reasons
from diversity.words.tokens import words

CAPTION = st.lists(st.sampled_from("a red blue dog cat on 2 the".split()), max_size=7).map(" ".join)
GROUPS = st.lists(st.lists(CAPTION, max_size=4), min_size=1, max_size=8)
SCENE = {
    "background": "sand",
    "objects": [
        {"shape": "circle", "colour": "red", "size": "small", "texture": "plain", "x": 0.2, "y": 0.5, "radius": 0.1}
    ],
}


def counted(groups, cap=1 << 20, **others):
    accumulator = CaptionAccumulator(cap)
    accumulator.update(groups, **others)
    return accumulator


def score(groups, **others):
    return counted(groups, **others).result()


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.integers(0, 2**32))
def test_shards_merged_in_any_order_equal_one_pass(groups, seed):
    whole, merged = _whole_and_merged(groups, seed, cap=1 << 20)
    assert merged.result() == whole.result()
    assert merged.examples == whole.examples


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.integers(0, 2**32), st.sampled_from([1, 4, 16]))
def test_shards_merged_in_any_order_equal_one_pass_above_the_cap(groups, seed, cap):
    """Samples and what is counted exactly; the commonest things keep to their bounds, see test_hash_counts.py."""
    whole, merged = _whole_and_merged(groups, seed, cap)
    results, expected = merged.result(), whole.result()
    estimated = {
        name
        for name in expected
        if name.startswith(("entropy", "rank"))
        or name in ("hapax", "self_repetition", "shared", "most_shared", "sketched")
    }
    counts, expected_counts = (
        {name: value for name, value in result.items() if name not in estimated} for result in (results, expected)
    )
    assert counts == expected_counts
    for mine, theirs in zip([merged.stands_for, *merged.ngrams.values()], [whole.stands_for, *whole.ngrams.values()]):
        assert (mine.level, mine.total, mine.hashes.tolist(), mine.counts.tolist()) == (
            theirs.level,
            theirs.total,
            theirs.hashes.tolist(),
            theirs.counts.tolist(),
        )


def _whole_and_merged(groups, seed, cap):
    rng = random.Random(seed)
    scenes = [SCENE if rng.random() < 0.5 else None for _ in groups]
    truncated = [[rng.random() < 0.2 for _ in group] for group in groups]
    shards = []
    for rows in _split(list(zip(groups, truncated, scenes)), rng):
        shard = CaptionAccumulator(cap)
        shard.update(*([row[part] for row in rows] for part in range(3)))
        shards.append(pickle.loads(pickle.dumps(shard)))  # as between our own processes
    rng.shuffle(shards)
    merged = CaptionAccumulator(cap)
    for shard in shards:
        merged.merge(shard)
    return counted(groups, cap, truncated=truncated, scenes=scenes), merged


def _split(rows, rng):
    while rows:
        size = rng.randint(0, len(rows))
        yield rows[:size]
        rows = rows[size:]


@settings(max_examples=50, deadline=None)
@given(GROUPS, st.integers(1, 9))
def test_batches_do_not_matter(groups, characters_at_once):
    whole = score(groups)
    before, accumulate.CHARACTERS_AT_ONCE = accumulate.CHARACTERS_AT_ONCE, characters_at_once
    try:
        assert score(groups) == whole
    finally:
        accumulate.CHARACTERS_AT_ONCE = before


@settings(max_examples=100, deadline=None)
@given(GROUPS)
def test_set_measures_equal_plain_counting(groups):
    results = score(groups)
    captions = [words(caption) for group in groups for caption in group]
    assert results["words"] == sum(map(len, captions))
    assert results["vocabulary"] == len({word for caption in captions for word in caption})
    assert results["length_histogram"] == Counter(map(len, captions))
    for n in (1, 2, 3, 4):
        grams = [tuple(caption[index : index + n]) for caption in captions for index in range(len(caption) - n + 1)]
        assert results[f"distinct_{n}"] == (len(set(grams)) / len(grams) if grams else None)
        bits = (
            -sum(times / len(grams) * math.log2(times / len(grams)) for times in Counter(grams).values())
            if grams
            else None
        )
        assert results[f"entropy_{n}"] == pytest.approx(bits, abs=1e-12)
        if n == 4:
            again = sum(times for times in Counter(grams).values() if times > 1)
            assert results["self_repetition"] == (again / len(grams) if grams else None)
    times = Counter(word for caption in captions for word in caption)
    assert results["rank_frequency"] == [(rank, n) for rank, (_, n) in enumerate(times.most_common(), 1)]
    assert results["hapax"] == (list(times.values()).count(1) / len(times) if times else None)
    assert results["sketched"] == {}
    unique = [{tuple(words(caption)) for caption in group} for group in groups]
    stands_for = Counter(caption for group in unique for caption in group)
    total = sum(map(len, unique))
    again = [(len(group) - len(different)) / len(group) for group, different in zip(groups, unique) if len(group) > 1]
    assert results["duplicates"] == (pytest.approx(sum(again) / len(again), rel=1e-12) if again else None)
    assert results["shared"] == (sum(times for times in stands_for.values() if times > 1) / total if total else None)
    assert results["most_shared"] == max(stands_for.values(), default=0) / len(groups)


def test_one_caption_for_every_picture():
    results = score([["a red dog runs"] * 5] * 20)
    assert (
        results
        | {
            "distinct_1": 4 / 400,
            "distinct_2": 3 / 300,
            "distinct_4": 1 / 100,
            "mbleu_4": 1,
            "duplicates": pytest.approx(0.8),
            "shared": 1,
            "most_shared": 1,
            "degenerate": 0,
            "length_mean": 4,
            "vocabulary": 4,
            "entropy_1": pytest.approx(2),
            "entropy_2": pytest.approx(math.log2(3)),
            "entropy_4": 0,
            "self_repetition": 1,
            "hapax": 0,
            "rank_frequency": [(1, 100), (2, 100), (3, 100), (4, 100)],
        }
        == results
    )
    assert results["length_quantiles"] == dict.fromkeys(["0.05", "0.25", "0.5", "0.75", "0.95"], 4)


def test_all_captions_different():
    results = score(
        [
            [f"w{index}a w{index}b w{index}c w{index}d", f"v{index}a v{index}b v{index}c v{index}d"]
            for index in range(20)
        ]
    )
    assert (
        results
        | {
            "distinct_1": 1,
            "distinct_4": 1,
            "mbleu_4": 0,
            "div_1": 1,
            "div_2": 0.75,
            "duplicates": 0,
            "shared": 0,
            "most_shared": 1 / 20,
            "entropy_1": pytest.approx(math.log2(160)),
            "entropy_4": pytest.approx(math.log2(40)),
            "self_repetition": 0,
            "hapax": 1,
        }
        == results
    )


def test_doubling_the_set_keeps_what_is_within_pictures_and_halves_distinct():
    groups = [["a red dog", "a dog on grass"], ["two cats", "cats on a mat by the door"]]
    once, twice = score(groups), score(groups * 2)
    for name in ("div_1", "div_2", "mbleu_4", "length_mean", "duplicates", "degenerate", "vocabulary"):
        assert twice[name] == pytest.approx(once[name], rel=1e-12)
    for n in (1, 2, 3, 4):
        assert twice[f"distinct_{n}"] == pytest.approx(once[f"distinct_{n}"] / 2)
        assert twice[f"entropy_{n}"] == pytest.approx(once[f"entropy_{n}"])
    assert twice["shared"] == twice["self_repetition"] == 1


def test_the_score_of_no_captions():
    results = score([])
    assert (
        results
        | {
            "pictures": 0,
            "captions": 0,
            "length_mean": None,
            "mbleu_4": None,
            "degenerate": None,
            "facts": None,
            "entropy_1": None,
            "self_repetition": None,
            "shared": None,
            "most_shared": None,
            "rank_frequency": [],
        }
        == results
    )


def test_degenerate_captions_are_counted_by_reason_with_examples():
    accumulator = CaptionAccumulator()
    accumulator.update(
        [["a 2 2 2 2", "a red dog runs"], ["a dog on a", "a cat on the mat"]], [[False, True], [False, False]]
    )
    results = accumulator.result()
    assert results["degenerate"] == 3 / 4
    assert {name: share for name, share in results["degenerate_reasons"].items() if share} == {
        "loop": 0.25,
        "cut": 0.5,
        "digits": 0.25,
    }
    assert accumulator.examples["loop"] == ["a 2 2 2 2"]
    assert sorted(accumulator.examples["cut"]) == ["a dog on a", "a red dog runs"]


def test_examples_are_few():
    accumulator = CaptionAccumulator()
    accumulator.update([[f"dog{index}"] for index in range(100)])
    assert len(accumulator.examples["short"]) == accumulate.EXAMPLES


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(
            st.lists(st.sampled_from("a the of dog cat dog. 12 3 zzz a, (".split()), max_size=8).map(" ".join),
            max_size=4,
        ),
        max_size=5,
    )
)
def test_degenerate_captions_are_those_found_one_by_one(groups):
    reasons = [[degenerate_reasons(caption) for caption in group] for group in groups if group]
    results = score(groups)
    assert results["degenerate"] == (
        pytest.approx(np.mean([np.mean([*map(bool, group)]) for group in reasons])) if reasons else None
    )
    for reason, share in results["degenerate_reasons"].items():
        expected = [np.mean([reason in of_caption for of_caption in group]) for group in reasons]
        assert share == (pytest.approx(np.mean(expected)) if reasons else None)


@pytest.mark.parametrize(
    "others",
    [
        {"truncated": [[True]]},
        {"truncated": []},
        {"scenes": [SCENE, SCENE]},
        {"truncated": [[True, False]], "scenes": []},
    ],
)
def test_marks_and_scenes_that_do_not_fit_are_an_error(others):
    with pytest.raises(ValueError):
        CaptionAccumulator().update([["a red dog", "a cat"]], **others)


def test_captions_may_come_one_after_another():
    groups = [["a red dog", "a cat"], ["two dogs run"]]
    in_turn = score(iter(groups), truncated=iter([[True, False], [False]]))
    assert in_turn == score(groups, truncated=[[True, False], [False]])


def test_the_caption_that_stands_for_most_pictures():
    groups = [["a dog runs", "one"], ["A cat sits.", "two"], ["a cat sits", "a cat sits"]]
    accumulator = CaptionAccumulator()
    accumulator.update(groups)
    assert find_caption(groups, accumulator.most_shared_hash()) == "A cat sits."
    assert find_caption([["other"]], accumulator.most_shared_hash()) is None
    lone = CaptionAccumulator()
    lone.update([["a dog", "a dog"], ["a cat"]])
    assert lone.most_shared_hash() is None


def test_a_caption_of_one_picture_in_twenty_is_never_missed():
    same = "a dog sits on the mat"
    groups = [[f"w{index} x y", same if index % 20 == 0 else f"v{index} x y"] for index in range(4_000)]
    shards = [counted(groups[start::4], cap=1 << 10) for start in range(4)]
    for shard in shards[1:]:
        shards[0].merge(shard)
    results = shards[0].result()
    assert shards[0].stands_for.level > 0
    assert abs(results["most_shared"] - 0.05) <= results["sketched"].get("most_shared", 0) + 1e-12
    assert find_caption(groups, shards[0].most_shared_hash()) == same


# --- above the cap -------------------------------------------------------------------------------------------------


def varied(pictures, seed):
    """Captions with words of common and rare kinds."""
    rng = np.random.default_rng(seed)
    words = np.minimum(rng.zipf(1.3, (pictures, 5, 8)), 5_000)
    return [[" ".join(f"w{word}" for word in caption) for caption in group] for group in words.tolist()]


def test_a_sketched_state_tells_what_is_estimated_and_is_near():
    groups = varied(1_500, 0)
    exact, sketched = score(groups), counted(groups, cap=1 << 10).result()
    assert exact["sketched"] == {}
    assert sketched["sketched"].keys() >= {
        "vocabulary",
        "distinct_1",
        "distinct_4",
        "entropy_4",
        "self_repetition",
        "hapax",
    }
    for name, value in exact.items():
        if name in sketched["sketched"]:
            assert abs(sketched[name] - value) <= 4 * sketched["sketched"][name] < 0.2 * value + 0.1, name
        elif isinstance(value, float):
            assert sketched[name] == pytest.approx(value, rel=1e-12), name
    assert sketched["rank_frequency"][0] == pytest.approx(exact["rank_frequency"][0], rel=0.02)


def test_memory_is_flat_in_captions():
    few, several = (counted(varied(pictures, seed=1), cap=1 << 8) for pictures in (300, 3_000))
    assert len(pickle.dumps(several)) < 1.3 * len(pickle.dumps(few)) < 200_000


# --- novelty -------------------------------------------------------------------------------------------------------


def test_novelty_in_closed_form():
    mine = counted([["a b c d e", "A b c, d e"], ["a b c d f"], ["x y"]])
    references = counted([["a b c d e", "p q r s t"], ["x y z"]])
    # 4-grams abcd, bcde, abcd, bcde, abcd, bcdf; captions abcde, abcdf, xy
    assert novelty(mine, references) == {"ngrams_4": 1 / 6, "captions": 2 / 3, "sketched": {}}
    assert novelty(mine, mine) == {"ngrams_4": 0, "captions": 0, "sketched": {}}
    assert novelty(mine, CaptionAccumulator()) == {"ngrams_4": 1, "captions": 1, "sketched": {}}
    assert novelty(CaptionAccumulator(), mine) == {"ngrams_4": None, "captions": None, "sketched": {}}


def test_novelty_of_sketched_states_is_near():
    references = varied(300, 3)
    mine = varied(600, 2) + references[100:]
    exact = novelty(counted(mine), counted(references))
    sketched = novelty(counted(mine, cap=1 << 10), counted(references, cap=1 << 10))
    for name, error in sketched["sketched"].items():
        assert abs(sketched[name] - exact[name]) <= 4 * error < 0.2
    assert sketched["sketched"].keys() == {"ngrams_4", "captions"}


@given(st.lists(st.integers(0, 30), min_size=1), st.floats(0.01, 1))
def test_quantiles_are_those_of_the_sorted_values(values, q):
    assert quantile(Counter(values), q) == np.quantile(values, q, method="inverted_cdf")
