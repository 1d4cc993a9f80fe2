"""The sample of pictures: those first in the seed's order, whatever order, parts and splits they come in."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diversity.columns import ComparedPicture
from diversity.inputs.sample import PictureSample, order_key, order_keys
from imagetext.hashes import name_hash

KEYS = st.lists(st.tuples(st.text(max_size=3), st.integers(0, 2)), unique=True, max_size=30)


def picture(key, occurrence=0):
    return ComparedPicture(
        key,
        {"a": (f"a of {key}",), "b": (f"b of {key}",)},
        {"a": (True,)},
        references=(f"human {key}",),
        scene={"background": "sand"},
        image=f"image {key} {occurrence}".encode(),
        occurrence=occurrence,
    )


def parts(whole):
    """The same picture as three inputs tell of it."""
    return [
        ComparedPicture(
            whole.key,
            {"a": whole.captions["a"]},
            {},
            references=(),
            scene=whole.scene,
            image=None,
            occurrence=whole.occurrence,
        ),
        ComparedPicture(
            whole.key,
            {"b": whole.captions["b"]},
            whole.truncated,
            references=(),
            scene=None,
            image=whole.image,
            occurrence=whole.occurrence,
        ),
        ComparedPicture(
            whole.key, {}, {}, references=whole.references, scene=None, image=None, occurrence=whole.occurrence
        ),
    ]


def plainly(pictures, size, seed, images):
    """All pictures sorted, then cut."""

    def index(picture):
        return order_key(name_hash(picture.key, seed=seed), picture.occurrence), picture.key, picture.occurrence

    return [
        picture if number < images else replace(picture, image=None)
        for number, picture in enumerate(sorted(pictures, key=index)[:size])
    ]


@given(KEYS, st.integers(1, 12), st.integers(0, 5), st.integers(0, 9), st.randoms(use_true_random=False))
def test_any_order_and_split_gives_the_first_pictures_of_the_seeds_order(result, size, images, seed, rng):
    pictures = [picture(*index) for index in result]
    shuffled = [part for whole in pictures for part in parts(whole)]
    rng.shuffle(shuffled)
    shards = [PictureSample(size, seed, images) for _ in range(rng.randint(1, 4))]
    for part in shuffled:
        rng.choice(shards).update([part])
    merged = PictureSample(size, seed, images)
    for shard in shards:
        merged.merge(shard)
    assert merged.pictures == plainly(pictures, size, seed, images)


@given(KEYS, st.integers(1, 12), st.integers(0, 9))
def test_a_smaller_sample_is_the_start_of_a_larger_one(result, size, seed):
    small, large = PictureSample(size, seed), PictureSample(40, seed)
    for sample in (small, large):
        sample.update(picture(*index) for index in result)
    assert small.pictures == large.pictures[:size]
    assert len(large.pictures) == len(result)


def test_another_seed_gives_another_sample():
    samples = [PictureSample(10, seed) for seed in (0, 0, 1)]
    for sample in samples:
        sample.update(picture(str(number)) for number in range(1000))
    first, same, other = ([picture.key for picture in sample.pictures] for sample in samples)
    assert first == same and len(set(first) & set(other)) < 5


def test_each_picture_is_as_likely_as_another():
    first = np.argmin([[name_hash(str(number), seed=seed) for number in range(4)] for seed in range(2000)], axis=1)
    assert np.abs(np.bincount(first) - 500).max() < 5 * np.sqrt(2000 * 3 / 16)  # standard deviations of a binomial


def test_images_are_let_go_of_on_the_way():
    sample = PictureSample(100, 0, images=5)
    for number in range(5000):
        sample.update([picture(str(number))])
        assert sum(each.image is not None for each in sample._pictures.values()) <= 10
        assert len(sample._pictures) <= 200
    assert [each.image is not None for each in sample.pictures] == [True] * 5 + [False] * 95


def test_places_of_many_are_those_of_each():
    hashes = [name_hash(key, seed=3) for key in ("", "a", "b" * 99)]
    occurrence = [0, 1, 12345]
    assert order_keys(np.array(hashes, np.uint64), np.array(occurrence)).tolist() == list(
        map(order_key, hashes, occurrence)
    )
    assert name_hash("k", seed=0) != name_hash("k", seed=1)


def test_samples_that_do_not_fit_are_not_merged():
    with pytest.raises(ValueError, match=r"\(5, 0, 0\) and \(5, 1, 0\)"):
        PictureSample(5).merge(PictureSample(5, seed=1))


def test_two_captions_for_one_place_are_an_error():
    sample = PictureSample()
    sample.update([picture("k"), picture("k"), picture("k", occurrence=1)])
    assert len(sample.pictures) == 2
    with pytest.raises(ValueError, match="'k'.*a"):
        sample.update([ComparedPicture("k", {"a": ("something else",), "b": ("b of k",)})])


def test_empty_samples_merge_to_an_empty_one():
    sample = PictureSample()
    sample.merge(PictureSample())
    assert sample.pictures == []
