"""Hashes of names stay the same, because published draws and samples depend on them."""

from hashlib import blake2b
from itertools import combinations

from imagetext.hashes import name_hash


def test_without_seed_and_purpose_it_is_plain_blake2b():
    for name, data in (("", b""), ("a dog", b"a dog"), ("\u00e9", b"\xc3\xa9"), ("\ud800", b"\xed\xa0\x80")):
        for bits in (32, 64, 128):
            assert name_hash(name, bits=bits) == int.from_bytes(
                blake2b(data, digest_size=bits // 8).digest(), "little"
            )


def test_names_purposes_and_seeds_have_numbers_of_their_own():
    numbers = [
        name_hash(name, purpose, seed=seed)
        for name in ("a", "b")
        for purpose in ("", "example", "other")
        for seed in (0, 1, 2**64)
    ]
    assert all(bin(first ^ other).count("1") > 10 for first, other in combinations(numbers, 2))
