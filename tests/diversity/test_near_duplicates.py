"""Near duplicates against sets of words, and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.measures import pairs
from diversity.measures.lexical import first_in_picture
from diversity.measures.near_duplicates import near_duplicates
from diversity.words.tokens import encode, words

CAPTION = st.lists(st.sampled_from("a b c d e f".split()), max_size=8).map(" ".join)
GROUPS = st.lists(st.lists(CAPTION, max_size=6), min_size=1, max_size=5)


def slow_near_duplicates(group):
    sets = [set(words(caption)) for caption in group]
    near = [
        any(len(first & other) >= 0.8 * len(first | other) for other in sets[:index])
        for index, first in enumerate(sets)
    ]
    return np.mean(near) if len(near) > 1 else np.nan


@settings(max_examples=300, deadline=None)
@given(GROUPS)
def test_near_duplicates_equal_sets_and_hold_the_exact_ones(groups):
    result = near_duplicates(encode(groups))
    np.testing.assert_allclose(result, [slow_near_duplicates(group) for group in groups])
    tokens = encode(groups)
    exact = tokens.counts - np.bincount(first_in_picture(tokens)[1], minlength=len(groups))
    assert (result[tokens.counts > 1] * tokens.counts[tokens.counts > 1] >= exact[tokens.counts > 1] - 1e-9).all()


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["a red dog runs"] * 5, 4 / 5),  # all equal
        (["a b c d", "a b c d e"], 1 / 2),  # four of five
        (["a b c d", "a b c e"], 0),  # three of five
        (["a b c d e f g h i", "a b c d e f g h j"], 1 / 2),  # one of nine changed: eight of ten
        (["a b c d e f g h", "a b c d e f g j"], 0),  # one of eight changed: seven of nine
        (["a dog on a cat", "a cat on a dog"], 1 / 2),  # the order is left out
        (["a b c d", "x", "a b c d e", "a b c d e f"], 2 / 4),  # each by an earlier one, near to the first or not
        (["a b c d e f", "x", "a b c d"], 0),
        (["", "...", "a"], 1 / 3),  # no words, twice
        (["a"], np.nan),
        ([], np.nan),
    ],
)
def test_near_duplicates_are_counted_by_their_common_words(captions, expected):
    np.testing.assert_allclose(near_duplicates(encode([captions])), [expected])


def test_just_enough_is_enough_whatever_the_size():
    """0.8 is a little more than four fifths in floating point, and must not cost a pair."""
    for fifth in range(1, 60):
        common = [f"w{number}" for number in range(4 * fifth)]
        more = [f"v{number}" for number in range(fifth)]
        assert near_duplicates(encode([[" ".join(common), " ".join(common + more)]])) == 1 / 2
        assert near_duplicates(encode([[" ".join(common), " ".join([*common, *more, "u"])]])) == 0


@pytest.mark.parametrize("cells", [1, 30, 200])
def test_batches_and_neighbours_do_not_change_a_share(monkeypatch, cells):
    random = np.random.default_rng(0)
    groups = [
        [" ".join(random.choice("a b c d".split(), random.integers(6))) for _ in range(random.integers(7))]
        for _ in range(40)
    ]
    monkeypatch.setattr(pairs, "CELLS_AT_ONCE", cells)
    result = np.concatenate([near_duplicates(part) for part in pairs.batches(groups)])
    np.testing.assert_allclose(result, [slow_near_duplicates(group) for group in groups])


def test_no_picture_has_no_near_duplicates():
    assert near_duplicates(encode([])).shape == (0,)
