import pytest

from diversity.tokens import encode, pieces, words


@pytest.mark.parametrize(("caption", "expected"), [
    ("A dog's ball, red.", ["a", "dog's", "ball", "red"]),
    ("St. Louis at night", ["st", "louis", "at", "night"]),
    ("IMG_2041.JPG", ["img", "2041", "jpg"]),
    ("  \n", []),
    ("...", []),
    ("un café à Zürich", ["un", "café", "à", "zürich"]),
    ("cafe\u0301", ["caf\u00e9"]),
    ("红色的圆", ["红", "色", "的", "圆"]),
    ("t-shirt 4x4", ["t", "shirt", "4x4"]),
])
def test_words(caption, expected):
    assert words(caption) == expected


def test_pieces_keep_the_marks_in_order():
    assert pieces("A cat. A dog, too!") == ["a", "cat", ".", "a", "dog", ",", "too", "!"]


def test_encode_keeps_captions_and_pictures_apart():
    tokens = encode([["a b", "c"], [], ["", "a"]])
    assert tokens.words == ["a", "b", "c", "a"]
    assert tokens.caption_ends.tolist() == [0, 2, 3, 3, 4]
    assert tokens.picture_ends.tolist() == [0, 2, 2, 4]
    assert tokens.lengths.tolist() == [2, 1, 0, 1]
    assert tokens.caption_of_word.tolist() == [0, 0, 1, 3]
    assert tokens.hashes[0] == tokens.hashes[3] != tokens.hashes[1]


def test_hashes_are_the_same_in_every_process():
    assert encode([["zebra"]]).hashes.tolist() == [0x10D331251BDBE8EA]  # `b2sum -l 64` of the word, reversed


def test_lone_surrogates_do_no_harm():
    assert len(encode([["a \ud800b"]]).hashes) == 2
