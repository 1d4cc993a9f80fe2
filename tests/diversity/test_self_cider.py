"""Self-CIDEr against the singular values of the captions' whole n-gram vectors, and closed forms."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.measures import pairs
from diversity.measures.lexical import ngram_hashes
from diversity.measures.self_cider import DocumentFrequency, self_cider
from diversity.words.tokens import encode, words

CAPTION = st.lists(st.sampled_from("a red blue dog cat on the left of".split()), max_size=9).map(" ".join)
GROUPS = st.lists(st.lists(CAPTION, max_size=5), min_size=1, max_size=5)


def ngrams(caption, n):
    result = words(caption)
    return [tuple(result[index : index + n]) for index in range(len(result) - n + 1)]


def slow_self_cider(group, documents):
    """By the vectors themselves: the roots of the eigenvalues of K = X Xᵀ are the singular values of X."""
    rows = []
    for caption in group:
        parts = []
        for n in (1, 2, 3, 4):
            counts = Counter(ngrams(caption, n))
            vector = {
                gram: count
                * np.log(
                    len(documents)
                    / max(1, sum(any(gram in ngrams(text, n) for text in document) for document in documents))
                )
                for gram, count in counts.items()
            }
            length = np.sqrt(sum(weight**2 for weight in vector.values()))
            if length > 0:
                parts.append({gram: weight / length for gram, weight in vector.items()})
        rows.append({gram: weight / np.sqrt(len(parts)) for part in parts for gram, weight in part.items()})
    grams = sorted({gram for row in rows for gram in row})
    if len(group) < 2 or not grams:
        return np.nan
    singular = np.linalg.svd(np.array([[row.get(gram, 0) for gram in grams] for row in rows]), compute_uv=False)
    return -np.log(singular.max() / singular.sum()) / np.log(len(group))


@settings(max_examples=200, deadline=None)
@given(GROUPS, GROUPS)
def test_self_cider_equals_singular_values_of_whole_vectors(groups, documents):
    np.testing.assert_allclose(
        self_cider(encode(groups), DocumentFrequency(documents)),
        [slow_self_cider(group, documents) for group in groups],
        atol=1e-9,
    )


WORLD = DocumentFrequency([["a dog"], ["a cat"], ["a bird sings"]])


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["a red dog runs"] * 5, 0),  # all equal
        (["a red dog runs", "A red dog, runs!"], 0),  # but for case and marks
        (["one two three four", "five six seven eight"], 1),  # nothing in common
        (["one", "two three", "four five six seven"], 1),  # whatever their lengths
        (["one two three four"] * 2 + ["five six seven eight"] * 2, 0.5),  # two directions of four
        (["one two three four"] * 3 + [""], 0),  # a caption without a word adds none
        (["one two three four", "five six seven eight", "", ""], 0.5),
        (["one two three four"], np.nan),  # alone
        ([], np.nan),
        (["", "..."], np.nan),  # no word
        (["a", "A."], np.nan),  # a word of every picture
    ],
)
def test_self_cider_is_0_of_equal_captions_and_1_of_those_without_a_common_ngram(captions, expected):
    np.testing.assert_allclose(self_cider(encode([captions]), WORLD), [expected], atol=1e-12)


def test_rare_words_weigh_more():
    """Two captions of two words, the first in common: cosine w² / (w² + ln² 3) of words, 0 of bigrams."""
    for first, pictures_with in (("a", 3), ("dog", 1), ("unseen", 1)):
        weight, rare = np.log(3 / pictures_with), np.log(3)
        similarity = weight**2 / (weight**2 + rare**2) / 2
        roots = np.sqrt([1 + similarity, 1 - similarity])
        result = self_cider(encode([[f"{first} one", f"{first} two"]]), WORLD)
        np.testing.assert_allclose(result, [np.log2(roots.sum() / roots[0])], rtol=1e-12)
    assert np.diff(self_cider(encode([["dog one", "dog two"], ["a one", "a two"]]), WORLD)) > 0


def test_document_frequency_counts_pictures_not_captions():
    result = DocumentFrequency([["a dog", "a dog", "a a dog"], ["a cat"], ["the cat"]])
    hashes, _ = ngram_hashes(encode([["a dog cat the bird"]]), 1)
    np.testing.assert_allclose(result.weigh(hashes), np.log([3 / 2, 3, 3 / 2, 3, 3]), rtol=1e-15)
    bigrams, _ = ngram_hashes(encode([["a dog cat"]]), 2)
    np.testing.assert_allclose(result.weigh(bigrams), np.log([3, 3]), rtol=1e-15)
    with pytest.raises(ValueError, match="at least one picture"):
        DocumentFrequency([])
    assert DocumentFrequency([["", "..."], []]).weigh(hashes).tolist() == [np.log(2)] * 5


def test_one_picture_gives_no_weight_to_its_own_words():
    assert np.isnan(self_cider(encode([["a dog", "a cat"]]), DocumentFrequency([["a dog", "a cat"]]))).all()


@pytest.mark.parametrize("cells", [1, 30, 200])
def test_batches_and_neighbours_do_not_change_a_score(monkeypatch, cells):
    random = np.random.default_rng(0)
    groups = [
        [" ".join(random.choice("a red blue dog cat".split(), random.integers(6))) for _ in range(random.integers(7))]
        for _ in range(40)
    ]
    whole = self_cider(encode(groups), DocumentFrequency(groups))
    monkeypatch.setattr(pairs, "CELLS_AT_ONCE", cells)
    world, parts = DocumentFrequency(groups), list(pairs.batches(groups))
    np.testing.assert_allclose(
        np.concatenate([self_cider(part, world) for part in parts]), whole, rtol=1e-9, atol=1e-12
    )
    assert len(parts) > 1 and all(
        part.pictures == 1 or part.pictures * part.counts.max() ** 2 <= cells for part in parts
    )
    assert 0 < np.nanmin(whole[whole > 0]) and np.nanmax(whole) <= 1 and len(whole) == 40


@given(st.permutations(["a red dog", "a dog on grass", "the red cat", "a red dog"]))
def test_order_of_captions_does_not_matter(captions):
    expected = self_cider(encode([["a red dog", "a dog on grass", "the red cat", "a red dog"]]), WORLD)
    np.testing.assert_allclose(self_cider(encode([captions]), WORLD), expected, rtol=1e-12)


def test_no_picture_has_no_self_cider():
    assert self_cider(encode([]), WORLD).shape == (0,)
