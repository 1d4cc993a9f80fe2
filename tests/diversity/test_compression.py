import lzma
import random

import pytest

from diversity.measures.compression import compression_ratio


def noise(captions, seed=0):
    """Captions of random letters and words of four letters."""
    draw = random.Random(seed)
    return [" ".join("".join(draw.choices("abcdefghijklmnop", k=4)) for _ in range(10)) for _ in range(captions)]


def test_random_letters_compress_to_their_entropy_and_repeated_captions_much_further():
    """Sixteen letters are 4 bits each, and a blank after each four costs next to nothing: 5 bytes become 2 bytes."""
    captions = noise(2000)
    assert 2 < compression_ratio(captions, 0) < 2.5
    assert compression_ratio(captions * 5, 0) > 3 * compression_ratio(captions, 0)
    assert compression_ratio(["a red cat on a mat"] * 2000, 0) > 100


def test_repeats_are_found_far_apart():
    """Half a megabyte apart, where gzip sees nothing; in any order the second half costs a fraction of the first."""
    captions = noise(10_000)
    assert compression_ratio(captions + captions, 3) > 1.5 * compression_ratio(captions, 3)


def test_the_order_given_does_not_matter_and_the_seeds_does():
    captions = noise(300) + noise(300, seed=1) + noise(300)
    shuffled = captions.copy()
    random.Random(1).shuffle(shuffled)
    for seed in range(3):
        assert compression_ratio(shuffled, seed) == compression_ratio(captions, seed)
    assert len({compression_ratio(captions, seed) for seed in range(5)}) > 1


def test_bytes_are_of_the_text_a_line_each():
    assert compression_ratio(["a café"], 0) == pytest.approx(7 / len(lzma.compress("a café".encode(), preset=6)))
    assert compression_ratio(["ab", "ab"], 0) == pytest.approx(5 / len(lzma.compress(b"ab\nab", preset=6)))


def test_nothing_has_no_ratio_and_broken_text_does_no_harm():
    assert compression_ratio([], 0) is None and compression_ratio([""], 0) is None
    assert compression_ratio(["a \ud800b"], 0) > 0
