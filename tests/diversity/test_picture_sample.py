"""The sample of pictures: those first in the seed's order, whatever order, parts and splits they come in."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diversity.columns import Picture
from diversity.picture_sample import PictureSample, key_hash, place, places

PLACES = st.lists(st.tuples(st.text(max_size=3), st.integers(0, 2)), unique=True, max_size=30)


def picture(key, again=0):
    return Picture(key, {"a": (f"a of {key}",), "b": (f"b of {key}",)}, {"a": (True,)}, (f"human {key}",),
                   {"background": "sand"}, f"image {key} {again}".encode(), again)


def parts(whole):
    """The same picture as three inputs tell of it."""
    return [Picture(whole.key, {"a": whole.captions["a"]}, {}, (), whole.scene, None, whole.again),
            Picture(whole.key, {"b": whole.captions["b"]}, whole.truncated, (), None, whole.image, whole.again),
            Picture(whole.key, {}, {}, whole.references, None, None, whole.again)]


def plainly(pictures, size, seed, images):
    """All pictures sorted, then cut."""
    def at(picture):
        return place(key_hash(picture.key, seed), picture.again), picture.key, picture.again
    return [picture if number < images else replace(picture, image=None)
            for number, picture in enumerate(sorted(pictures, key=at)[:size])]


@given(PLACES, st.integers(1, 12), st.integers(0, 5), st.integers(0, 9), st.randoms(use_true_random=False))
def test_any_order_and_split_gives_the_first_pictures_of_the_seeds_order(found, size, images, seed, rng):
    pictures = [picture(*at) for at in found]
    shuffled = [part for whole in pictures for part in parts(whole)]
    rng.shuffle(shuffled)
    shards = [PictureSample(size, seed, images) for _ in range(rng.randint(1, 4))]
    for part in shuffled:
        rng.choice(shards).update([part])
    merged = PictureSample(size, seed, images)
    for shard in shards:
        merged.merge(shard)
    assert merged.pictures == plainly(pictures, size, seed, images)


@given(PLACES, st.integers(1, 12), st.integers(0, 9))
def test_a_smaller_sample_is_the_start_of_a_larger_one(found, size, seed):
    small, large = PictureSample(size, seed), PictureSample(40, seed)
    for sample in (small, large):
        sample.update(picture(*at) for at in found)
    assert small.pictures == large.pictures[:size]
    assert len(large.pictures) == len(found)


def test_another_seed_gives_another_sample():
    samples = [PictureSample(10, seed) for seed in (0, 0, 1)]
    for sample in samples:
        sample.update(picture(str(number)) for number in range(1000))
    first, same, other = ([picture.key for picture in sample.pictures] for sample in samples)
    assert first == same and len(set(first) & set(other)) < 5


def test_each_picture_is_as_likely_as_another():
    first = np.argmin([[key_hash(str(number), seed) for number in range(4)] for seed in range(2000)], axis=1)
    assert np.abs(np.bincount(first) - 500).max() < 5 * np.sqrt(2000 * 3 / 16)  # standard deviations of a binomial


def test_images_are_let_go_of_on_the_way():
    sample = PictureSample(100, 0, images=5)
    for number in range(5000):
        sample.update([picture(str(number))])
        assert sum(each.image is not None for each in sample._found.values()) <= 10
        assert len(sample._found) <= 200
    assert [each.image is not None for each in sample.pictures] == [True] * 5 + [False] * 95


def test_places_of_many_are_those_of_each():
    hashes = [key_hash(key, 3) for key in ("", "a", "b" * 99)]
    again = [0, 1, 12345]
    assert places(np.array(hashes, np.uint64), np.array(again)).tolist() == list(map(place, hashes, again))
    assert key_hash("k", 0) != key_hash("k", 1)


@given(PLACES, st.integers(1, 12), st.integers(0, 9))
def test_saved_and_loaded_it_is_the_same_without_its_images(tmp_path_factory, found, size, seed):
    path = tmp_path_factory.getbasetemp() / "sample.jsonl"
    sample = PictureSample(size, seed, 3)
    sample.update(picture(*at) for at in found)
    sample.save(path)
    loaded = PictureSample.load(path)
    assert loaded.pictures == [replace(picture, image=None) for picture in sample.pictures]
    assert (loaded.size, loaded.seed, loaded.images) == (size, seed, 3)
    loaded.merge(sample)
    assert loaded.pictures == sample.pictures


def test_any_text_survives(tmp_path):
    odd = Picture("\ud800\n\0", {"\ud800": ("", "\u2028\0\ud912", '"\\')})
    sample = PictureSample()
    sample.update([odd])
    sample.save(tmp_path / "s")
    assert PictureSample.load(tmp_path / "s").pictures == [odd]


@pytest.mark.parametrize(("line", "message"), [
    ("", "s:0|empty"), ("[]\n", "s:1"), ('{"kind": "else"}\n', "s:1.*another kind"), ("{", "s:1"),
    ("HEAD\n[]\n", "s:2"), ('HEAD\n{"key": "k"}\n', "s:2.*captions"), ("HEAD\n\xff\n", "s:2"),
    ('HEAD\n{"key": "k", "captions": {}, "truncated": {}, "references": [], "evil": 1}\n', "s:2.*evil"),
    ('{"kind": "capsmith picture sample", "size": 0, "seed": 0, "images": 0}\n', "s:1.*sample of 0")])
def test_a_file_of_something_else_is_an_error_that_names_the_line(tmp_path, line, message):
    head = json.dumps({"kind": "capsmith picture sample", "size": 2, "seed": 0, "images": 0})
    (tmp_path / "s").write_text(line.replace("HEAD", head), encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        PictureSample.load(tmp_path / "s")


def test_samples_that_do_not_fit_are_not_merged():
    with pytest.raises(ValueError, match=r"\(5, 0, 0\) and \(5, 1, 0\)"):
        PictureSample(5).merge(PictureSample(5, seed=1))


def test_two_captions_for_one_place_are_an_error():
    sample = PictureSample()
    sample.update([picture("k"), picture("k"), picture("k", again=1)])
    assert len(sample.pictures) == 2
    with pytest.raises(ValueError, match="'k'.*a"):
        sample.update([Picture("k", {"a": ("something else",), "b": ("b of k",)})])


def test_nothing_at_all():
    sample = PictureSample()
    sample.merge(PictureSample())
    assert sample.pictures == []
