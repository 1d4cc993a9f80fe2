import numpy as np
import pytest

from benchmarks.predict.information import ReferenceSearch, new_words, picture_bits, word_bits
from diversity.measures.references import CiderD
from diversity.words.tokens import words

# Bits of a judge


def test_captions_that_find_their_picture_tell_all_there_is_and_captions_that_suit_any_tell_nothing():
    assert picture_bits(np.eye(8), np.arange(8)) == pytest.approx(3)
    assert picture_bits(np.zeros((8, 8)), np.arange(8)) == 0
    assert picture_bits(np.eye(8), np.roll(np.arange(8), 1)) == 0  # those of other pictures
    assert picture_bits(np.repeat(np.eye(8), 5, axis=0), np.repeat(np.arange(8), 5)) == pytest.approx(3)


def test_captions_that_several_pictures_share_tell_which_of_the_groups():
    assert picture_bits(np.kron(np.eye(4), np.ones((2, 2))), np.arange(8)) == pytest.approx(2)


@pytest.mark.parametrize("right", [0.3, 0.75])
def test_of_captions_that_are_right_so_often_the_bits_are_those_of_the_channel(right):
    """log₂ P + r log₂ r + (1 - r) log₂((1 - r) / (P - 1)): the best probability for the picture named is r itself."""
    owners = np.arange(400) % 8
    named = np.where(np.arange(400) < 400 * right, owners, (owners + 1) % 8)
    expected = 3 + right * np.log2(right) + (1 - right) * np.log2((1 - right) / 7)
    assert picture_bits(np.eye(8)[named], owners) == pytest.approx(expected, abs=1e-6)


def test_bits_are_the_greatest_over_all_sharpnesses_and_no_scale_changes_them():
    random = np.random.default_rng(0)
    likeness, owners = random.normal(size=(40, 12)), np.arange(40) % 12
    likeness[np.arange(40), owners] += 1
    bits = picture_bits(likeness, owners)
    by_hand = [
        np.log2(12)
        + np.mean([np.log2(np.exp(s * row[index]) / np.exp(s * row).sum()) for row, index in zip(likeness, owners)])
        for s in np.linspace(0, 3, 301)
    ]
    assert bits == pytest.approx(max(by_hand), abs=1e-4) and bits >= max(by_hand) - 1e-9
    assert picture_bits(0.01 * likeness + random.normal(size=(40, 1)), owners) == pytest.approx(bits, abs=1e-6)


REFERENCES = [["a red star on sand", "one red star"], ["a blue star", "a star above a heart"], ["two hearts", ""]]


def test_likeness_to_references_is_the_mean_cosine_of_weighed_ngrams():
    captions = ["a red star on a hill", "a star above a heart", "nothing", ""]
    result = ReferenceSearch(REFERENCES).likeness(captions)
    texts = [[words(text) for text in group if text] for group in REFERENCES]
    weigh = CiderD(texts).weigh
    for row, caption in zip(result, captions):
        for value, group in zip(row, texts):
            cosines = []
            for text in group:
                (ours, our_norms), (theirs, their_norms) = weigh(tuple(words(caption))), weigh(tuple(text))
                for n in range(4):
                    dot = sum(weight * theirs.get(of, 0) for of, weight in ours.items() if len(of) == n + 1)
                    cosines.append(dot / (our_norms[n] * their_norms[n]) if dot else 0)
            assert value == pytest.approx(np.mean(cosines), abs=1e-6)


# Bits word by word


def test_a_word_that_half_of_the_pictures_have_is_a_bit_where_just_their_captions_name_it():
    references = [["red"], ["blue"]] * 50
    chance = 2 / (2 * 100 * np.log(2))  # of two words
    assert word_bits([["red", "red"], ["blue", "blue"]] * 50, references).sum() == pytest.approx(2 - chance)
    assert word_bits([["blue"], ["red"]] * 50, references).sum() == pytest.approx(-2 - chance)
    assert [*word_bits([["red green"]] * 100, references)] == [0, 0]  # says the same of all
    assert [*word_bits([["red", "blue"]] * 100, references)] == pytest.approx([0, 0])  # half wrong: nothing is told


def test_bits_of_a_word_are_the_mutual_information_of_naming_and_having_it():
    random = np.random.default_rng(0)
    have, name = random.integers(2, size=(2, 200)).astype(bool)
    name = np.where(random.random(200) < 0.6, have, name)
    table = np.array([[(have & name).mean(), (have & ~name).mean()], [(~have & name).mean(), (~have & ~name).mean()]])
    expected = (table * np.log2(table / (table.sum(1, keepdims=True) * table.sum(0)))).sum() - 1 / (400 * np.log(2))
    captions, references = ([["red" if of else ""] for of in which] for which in (name, have))
    assert word_bits(captions, references) == pytest.approx([expected])


def test_new_words_are_right_ones_that_one_caption_alone_has_not():
    references = [["a red star", "a large star"]]
    assert new_words([["a red star", "a large star"]], references) == 1  # three words of both, two of each
    assert new_words([["red", "star", "large"]], references) == 1
    assert new_words([["a red star", "the red star"]], references) == 0
    assert new_words([["a red star", "a blue heart"]], references) == 0
    assert new_words([["a red star"]], references) == 0
    assert new_words([["red", "star"], ["red"]], [*references, ["red star"]]) == 0.5
