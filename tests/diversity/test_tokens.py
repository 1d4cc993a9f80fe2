import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.words.tokens import _WORDS, LONG_CHUNK, encode, pieces, units, words

MARKS = st.sampled_from(
    [
        *"aB'’_-.7İ红Σ",
        "\0",
        " ",
        "\n",
        "\u00a0",
        "\x1f",
        "\u2000",
        "\u0301",
        "\u1e9b\u0323",
        "ड\u093c",
        "ก็",
        "\u00ad",
        "ʼ",
        "ab'c",
        "x" * LONG_CHUNK,
    ]
)
TEXT = st.lists(MARKS | st.characters(), max_size=12).map("".join)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog's ball, red.", ["a", "dog's", "ball", "red"]),
        ("St. Louis at night", ["st", "louis", "at", "night"]),
        ("IMG_2041.JPG", ["img", "2041", "jpg"]),
        ("  \n", []),
        ("...", []),
        ("un café à Zürich", ["un", "café", "à", "zürich"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("红色的圆", ["红", "色", "的", "圆"]),
        ("t-shirt 4x4", ["t", "shirt", "4x4"]),
        ("लड़का और लड़की", ["लड\u093cका", "और", "लड\u093cकी"]),  # marks are parts of words
        ("ছেলে பெண் שָׁלוֹם شَمْس", ["ছেলে", "பெண்", "שָׁלוֹם", "شَمْس"]),
        ("น้ำส้ม ๑๒๓", ["น้ำ", "ส้", "ม", "๑๒๓"]),
        ("犬と人々ABC", ["犬", "と", "人", "々", "abc"]),
        ("می‌خواهم", ["می\u200cخواهم"]),
        ("İstanbul istanbul i\u0307stanbul", ["istanbul"] * 3),
        ("the dog’s dog's dogʼs", ["the", "dog's", "dog's", "dog's"]),
        ("soft\u00adware ❤\ufe0f", ["software"]),
    ],
)
def test_the_words_of_a_caption(caption, expected):
    assert words(caption) == expected


def test_pieces_keep_the_marks_in_order():
    assert pieces("A cat. A dog, too!") == ["a", "cat", ".", "a", "dog", ",", "too", "!"]


def test_pieces_as_they_are_written():
    assert pieces("A STOP, é!", fold=False) == ["A", "STOP", ",", "é", "!"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  red dog", ["a", "  red", " dog"]),
        ("一只 狗b c", ["一", "只", " 狗", "b", " c"]),
        ("लड़की है", ["लड़की", " है"]),
        (" ", []),
    ],
)
def test_units_are_what_a_text_may_be_cut_between(text, expected):
    assert units(text) == expected
    assert "".join(units(text)) == text.rstrip()


@pytest.mark.parametrize(
    "text", ["é" * 30_000, "a" + "\u0301\u0323" * 30_000, "é" + "'a" * 20_000, "红" * 20_000, "🇩" * 20_000]
)
def test_no_text_takes_long_to_split_into_words(text):
    start = time.process_time()
    words(text), pieces(text), units(text)
    assert time.process_time() - start < 2


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


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(TEXT, max_size=4), max_size=4))
def test_a_batch_is_read_as_its_captions_are_one_by_one(groups):
    tokens = encode(groups)
    captions = [caption for group in groups for caption in group]
    assert tokens.counts.tolist() == list(map(len, groups))
    result = [tokens.words[start:end] for start, end in zip(tokens.caption_ends, tokens.caption_ends[1:])]
    assert result == list(map(words, captions))
    one_by_one = [encode([[caption]]).hashes for caption in captions]
    np.testing.assert_array_equal(tokens.hashes, np.concatenate([np.zeros(0, np.uint64), *one_by_one]))
    assert len(set(tokens.vocabulary)) == len(tokens.vocabulary) == len(set(tokens.words))
    chunks = [tokens.chunks[index] for index in tokens.chunk_ids]
    assert [chunks[start:end] for start, end in zip(tokens.chunk_ends, tokens.chunk_ends[1:])] in (
        [caption.split() for caption in captions],
        [caption.replace("\0", " ").split() for caption in captions],
    )


def test_a_caption_that_holds_the_end_mark():
    tokens = encode([["a \0 b", "c\0d"], ["\0"]])
    assert tokens.words == ["a", "b", "c", "d"]
    assert tokens.caption_ends.tolist() == [0, 2, 4, 4]


def test_captions_without_words_are_encoded():
    for groups in ([], [[]], [[""]]):
        tokens = encode(groups)
        assert (tokens.words, len(tokens.hashes), tokens.pictures) == ([], 0, len(groups))
        assert len(tokens.lengths) == sum(map(len, groups))


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=60) | st.text("aZ9'_- .", max_size=30))
def test_words_of_ascii_are_those_of_the_rule_for_all_letters(caption):
    assert words(caption) == _WORDS.findall(caption.lower())
