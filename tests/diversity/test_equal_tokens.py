"""Measures at equal length against sets and sums over the cut words."""

from collections import Counter
from math import log2

import numpy as np
import pytest

from diversity.measures.compression import compression_ratio
from diversity.measures.equal_tokens import equal_tokens
from diversity.words.tokens import words


def drawn(seed, pictures, captions, longest):
    random = np.random.default_rng(seed)
    return [
        [
            " ".join(random.choice("a red blue dog cat on the left of".split(), random.integers(longest + 1)))
            for _ in range(captions)
        ]
        for _ in range(pictures)
    ]


def slow(groups, seed, limit):
    """The measures of the first `limit` words in the seeded order of pictures."""
    left, captions = limit, []
    for index in np.random.Generator(np.random.Philox(seed)).permutation(len(groups)):
        for caption in groups[index]:
            captions.append(words(caption)[:left])
            left -= len(captions[-1])
    result = {"words": sum(map(len, captions)), "vocabulary": len({word for caption in captions for word in caption})}
    for n in (1, 2, 3, 4):
        counts = Counter(
            tuple(caption[index : index + n]) for caption in captions for index in range(len(caption) - n + 1)
        )
        result[f"distinct_{n}"] = len(counts) / counts.total() if counts else None
        result[f"entropy_{n}"] = (
            -sum(c / counts.total() * log2(c / counts.total()) for c in counts.values()) if counts else None
        )
    return result


@pytest.mark.parametrize("seed", range(8))
def test_every_column_is_cut_to_the_words_of_the_shortest(seed):
    columns = {"long": drawn(seed, 20, 3, 9), "short": drawn(seed + 100, 20, 3, 4), "few": drawn(seed + 200, 20, 2, 5)}
    shortest = min(sum(len(words(caption)) for group in groups for caption in group) for groups in columns.values())
    results = equal_tokens(columns, seed)
    assert list(results) == list(columns) and {row["words"] for row in results.values()} == {shortest}
    for name, groups in columns.items():
        expected = slow(groups, seed, shortest)
        assert {
            measure: value for measure, value in results[name].items() if measure != "compression"
        } == pytest.approx(expected)


def test_the_ratio_of_a_whole_column_is_used_where_nothing_is_cut():
    columns = {"short": drawn(1, 20, 3, 4), "long": drawn(0, 20, 3, 9)}
    ratios = {
        name: compression_ratio([caption for group in groups for caption in group], 5)
        for name, groups in columns.items()
    }
    assert equal_tokens(columns, 5, ratios=ratios) == equal_tokens(columns, 5)


def test_eight_words_all_equal_or_all_different():
    """Eight words: all equal, in one caption or eight, and all different; a cut within a caption ends a bigram."""
    columns = {"same": [["dog"] * 8], "run": [["dog " * 8]], "different": [["a b c d e f g h i j k l m"]]}
    results = equal_tokens(columns, 0)
    bits = {name: row["entropy_1"] for name, row in results.items()}
    assert bits == {"same": 0, "run": 0, "different": 3}
    assert [row["vocabulary"] for row in results.values()] == [1, 1, 8]
    assert [row["distinct_1"] for row in results.values()] == [1 / 8, 1 / 8, 1]
    assert [row["distinct_4"] for row in results.values()] == [None, 1 / 5, 1]
    assert [row["entropy_4"] for row in results.values()] == [None, 0, pytest.approx(log2(5))]
    assert results["different"]["compression"] == compression_ratio(["a b c d e f g h"], 0)


def test_captions_that_stay_whole_are_compressed_as_they_are():
    columns = {"plain": [["a red dog runs"]] * 30, "marked": [["A red dog - runs."]] * 30}
    results = equal_tokens(columns, 0)
    assert results["marked"]["compression"] == compression_ratio(["A red dog - runs."] * 30, 0)
    assert results["marked"]["distinct_2"] == results["plain"]["distinct_2"] and results["marked"]["words"] == 120


def test_columns_are_cut_at_the_same_pictures_and_the_seed_chooses_them():
    groups = [[f"word{index} word{index * index % 7}"] for index in range(50)]
    columns = {"one": groups, "twin": groups, "short": [["x"]] * 50}
    results = [equal_tokens(columns, seed) for seed in range(5)]
    assert all(rows["one"] == rows["twin"] and rows["one"]["words"] == 50 for rows in results)
    assert len({rows["one"]["vocabulary"] for rows in results}) > 1


def test_nothing_to_measure_is_none():
    nothing = {
        "words": 0,
        "vocabulary": 0,
        "compression": None,
        **{f"{name}_{n}": None for name in ("distinct", "entropy") for n in (1, 2, 3, 4)},
    }
    assert equal_tokens({"empty": [[]], "full": [["a dog"]]}, 0) == {"empty": nothing, "full": nothing}
    assert equal_tokens({}, 0) == {} and equal_tokens({"a": []}, 0) == {"a": nothing}


def test_columns_of_other_pictures_are_refused():
    with pytest.raises(ValueError, match="same pictures, not {'a': 1, 'b': 2}"):
        equal_tokens({"a": [["x"]], "b": [["x"], ["y"]]}, 0)
