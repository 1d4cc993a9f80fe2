"""The vectorised measures against slow, obvious references, nltk and closed forms."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from diversity.measures.lexical import caption_hashes, first_in_picture, ngram_hashes, ngram_overlap, within_picture
from diversity.words.tokens import encode, words

CAPTION = st.lists(st.sampled_from("a red blue dog cat on the left of".split()), max_size=9).map(" ".join)
GROUPS = st.lists(st.lists(CAPTION, max_size=5), min_size=1, max_size=5)


def ngrams(caption, n):
    result = words(caption)
    return [tuple(result[index : index + n]) for index in range(len(result) - n + 1)]


def slow_mbleu(group):
    if len(group) < 2:
        return np.nan
    scores = []
    for index, caption in enumerate(group):
        others = [words(other) for other in group[:index] + group[index + 1 :]]
        scores.append(
            sentence_bleu(others, words(caption), smoothing_function=SmoothingFunction().method3, auto_reweigh=True)
            if words(caption)
            else 0
        )
    return np.mean(scores)


def slow_div(group, n):
    total = sum(len(words(caption)) for caption in group)
    return (
        len({gram for caption in group for gram in ngrams(caption, n)}) / total if total and len(group) > 1 else np.nan
    )


@settings(max_examples=300, deadline=None)
@given(GROUPS)
def test_within_picture_equals_nltk_and_sets(groups):
    result = within_picture(encode(groups))
    np.testing.assert_allclose(result["mbleu_4"], [slow_mbleu(group) for group in groups], atol=1e-12)
    np.testing.assert_allclose(result["div_1"], [slow_div(group, 1) for group in groups], atol=1e-12)
    np.testing.assert_allclose(result["div_2"], [slow_div(group, 2) for group in groups], atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.integers(1, 4))
def test_ngrams_are_those_of_each_caption(groups, n):
    hashes, captions = ngram_hashes(encode(groups), n)
    expected = [
        (gram, index)
        for index, caption in enumerate(caption for group in groups for caption in group)
        for gram in ngrams(caption, n)
    ]
    assert captions.tolist() == [index for _, index in expected]
    of_gram = {}
    for value, (gram, _) in zip(hashes.tolist(), expected, strict=True):
        assert of_gram.setdefault(gram, value) == value
    assert len(set(of_gram.values())) == len(of_gram)


@settings(max_examples=100, deadline=None)
@given(GROUPS)
def test_caption_hashes_are_equal_where_words_are(groups):
    flat = [tuple(words(caption)) for group in groups for caption in group]
    hashes = caption_hashes(encode(groups)).tolist()
    assert len(set(zip(flat, hashes))) == len(set(flat)) == len(set(hashes))
    unique, pictures = first_in_picture(encode(groups))
    assert sorted(pictures.tolist()) == [
        index for index, group in enumerate(groups) for _ in {tuple(words(caption)) for caption in group}
    ]
    assert set(unique.tolist()) == set(hashes)


def test_word_order_and_length_change_a_caption():
    captions = ["a b", "b a", "a", "a a", "", "a b a", "a a b"]
    assert len(set(caption_hashes(encode([captions])).tolist())) == len(captions)
    assert len(set(caption_hashes(encode([["a dog.", "A  DOG", "a, dog!"]])).tolist())) == 1


def test_words_alike_at_different_places_are_different_bigrams():
    hashes, _ = ngram_hashes(encode([["a b", "b a"]]), 2)
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(
    ("captions", "mbleu", "div_1", "div_2"),
    [
        (["a red dog runs"] * 5, 1, 4 / 20, 3 / 20),  # all equal
        (["a"] * 3, 1, 1 / 3, 0),  # shorter than the highest order
        (["a b c d", "e f g h"], 0, 1, 6 / 8),  # nothing shared
        (["a b c d e"], np.nan, np.nan, np.nan),  # alone: no spread
        (["", ""], 0, np.nan, np.nan),  # no word
        (
            ["a b c d e f g h", "a b c d"],  # brevity in one, precision in the other
            (np.exp(1 - 8 / 4) + (4 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** 0.25) / 2,
            8 / 12,
            7 / 12,
        ),
    ],
)
def test_mbleu_and_div_n_by_hand(captions, mbleu, div_1, div_2):
    result = within_picture(encode([captions]))
    np.testing.assert_allclose([result["mbleu_4"][0], result["div_1"][0], result["div_2"][0]], [mbleu, div_1, div_2])


def test_overlap_counts_are_clipped_by_another_caption_not_its_own():
    matched, distinct = ngram_overlap(encode([["the the the cat", "the the dog", "a cat"]]), 1)
    assert matched.tolist() == [2 + 1, 2, 1]  # three "the" match the two of the second caption
    assert distinct.tolist() == [4]


def slow_overlap(group, n):
    counts = [Counter(ngrams(caption, n)) for caption in group]
    return [
        sum(
            min(times, max((other[gram] for index, other in enumerate(counts) if index != of), default=0))
            for gram, times in result.items()
        )
        for of, result in enumerate(counts)
    ], len(set().union(*counts))


@settings(max_examples=200, deadline=None)
@given(GROUPS, st.integers(1, 4))
def test_overlap_equals_plain_counting(groups, n):
    matched, distinct = ngram_overlap(encode(groups), n)
    expected = [slow_overlap(group, n) for group in groups]
    assert matched.tolist() == [hits for of_group, _ in expected for hits in of_group]
    assert distinct.tolist() == [different for _, different in expected]


def test_one_picture_of_many_captions():
    """In a second and a few megabytes: nothing grows with the square of a picture's captions."""
    captions = [f"w{index} x{index % 7} y{index % 11} z{index % 13} v{index % 3}" for index in range(30_000)]
    result = within_picture(encode([captions]))
    assert result["div_1"][0] == (30_000 + 7 + 11 + 13 + 3) / 150_000
    assert 0.3 < result["mbleu_4"][0] < 0.9


@given(st.permutations(["a red dog", "a dog on grass", "the red cat", "a red dog"]))
def test_order_of_captions_does_not_matter(captions):
    for name, value in within_picture(encode([captions])).items():
        expected = within_picture(encode([["a red dog", "a dog on grass", "the red cat", "a red dog"]]))[name]
        np.testing.assert_allclose(value, expected, rtol=1e-14)


def test_pictures_do_not_touch_each_other():
    first, other = ["a red dog", "a red dog runs"], ["a blue cat sits", "the blue cat"]
    both = within_picture(encode([first, other]))
    for index, group in enumerate((first, other)):
        for name, value in within_picture(encode([group])).items():
            assert both[name][index] == pytest.approx(value[0], rel=1e-14)


def test_no_word_and_no_picture_at_all():
    assert all(len(values) == 0 for values in within_picture(encode([])).values())
    assert np.isnan(within_picture(encode([[], []]))["div_1"]).all()
