"""The built-in picture set is finite and repeatable, has no scene in two splits, and draws what it describes."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from imagetext.scenes import draw as scenes
from imagetext.scenes.draw import SceneSpec, draw_picture, draw_scene, scene_sample, scene_shards
from imagetext.scenes.facts import BACKGROUNDS, COLOURS, SHAPES


def test_spec_names_every_wrong_field_at_once():
    with pytest.raises(ValueError) as error:
        SceneSpec.parse("scenes:dev,n=ten,level=9,size=5,colour=red")
    for part in ("'dev'", "'n=ten'", "level 9", "size 5", "'colour=red'"):
        assert part in str(error.value)


def test_shards_are_finite_and_hold_every_picture_once():
    shards = scene_shards("scenes:val,n=2100,size=16")
    assert [shard.name for shard in shards] == ["scenes-val2-00000", "scenes-val2-00001", "scenes-val2-00002"]
    assert sum(1 for _ in shards[2]) == 100
    assert next(iter(shards[1])).key == "val2-001000"


def test_the_same_spec_gives_the_same_bytes_and_another_seed_others():
    spec = SceneSpec("test", level=3)
    assert scene_sample(spec, 5) == scene_sample(spec, 5)
    assert scene_sample(spec, 5).image != scene_sample(SceneSpec("test", level=3, seed=1), 5).image


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_no_things_are_drawn_in_two_splits(level):
    def things(scene):
        return scene["background"], tuple(
            sorted((item["shape"], item["colour"], item["size"], item["texture"]) for item in scene["objects"])
        )

    descriptions = {
        split: {things(draw_scene(SceneSpec(split, level=level), index)) for index in range(400)}
        for split in scenes.SPLITS
    }
    for first, other in itertools.combinations(descriptions.values(), 2):
        assert not first & other
    counts = {len(objects) for group in descriptions.values() for _, objects in group}
    assert counts == set(range(1, level + 1))


def test_objects_lie_inside_and_apart():
    for index in range(300):
        objects = draw_scene(SceneSpec("train", level=4), index)["objects"]
        for item in objects:
            assert item["radius"] <= min(item["x"], item["y"], 1 - item["x"], 1 - item["y"])
        for first, other in itertools.combinations(objects, 2):
            distance = np.hypot(first["x"] - other["x"], first["y"] - other["y"])
            assert distance > first["radius"] + other["radius"]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_drawn_in_its_colour_at_its_place(shape, colour):
    item = {"shape": shape, "colour": colour, "size": "large", "texture": "plain", "x": 0.35, "y": 0.6, "radius": 0.22}
    pixels = np.asarray(draw_picture({"background": "grey", "objects": [item]}, 96, "x"), float)
    centre = pixels[54:62, 30:38].mean((0, 1))  # about x = 0.35, y = 0.6
    nearest = min(scenes.RGB, key=lambda name: np.abs(np.array(scenes.RGB[name]) - centre).sum())
    assert nearest == colour
    corner = pixels[:8, -8:].mean((0, 1))
    assert min(BACKGROUNDS, key=lambda name: np.abs(np.array(scenes.BACKGROUND_RGB[name]) - corner).sum()) == "grey"


def test_shapes_and_textures_look_different():
    def mask(shape, texture="plain"):
        item = {
            "shape": shape,
            "colour": "black",
            "size": "large",
            "texture": texture,
            "x": 0.5,
            "y": 0.5,
            "radius": 0.23,
        }
        return np.asarray(draw_picture({"background": "sand", "objects": [item]}, 96, "x").convert("L"), float)

    for first, other in itertools.combinations(SHAPES, 2):
        assert (np.abs(mask(first) - mask(other)) > 60).mean() > 0.01, (first, other)
    for texture in ("striped", "dotted"):
        assert (np.abs(mask("circle") - mask("circle", texture)) > 30).mean() > 0.02


def test_sample_is_a_jpeg_of_the_size_asked_for_with_all_its_words():
    sample = scene_sample(SceneSpec("val", level=2, size=128, captions="long"), 0)
    picture = Image.open(io.BytesIO(sample.image))
    assert picture.format == "JPEG" and picture.size == (128, 128)
    assert sample.captions == (sample.meta["long_caption"],) and sample.meta["alt_text"]
    assert len(scene_sample(SceneSpec("val"), 0).captions) == len(set(scene_sample(SceneSpec("val"), 0).captions)) == 5
