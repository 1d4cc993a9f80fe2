"""Views: their pixels equal torchvision's bit for bit, and their file is read and checked."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from generate.reinforce.augment import SIGNED, draw_views, magnitude
from imagetext.reinforced.views import OPERATIONS, decode_stored, normalise, read_views, replay, write_views

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with edges, ramps and noise in each channel."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 3, (height, width, 3)).cumsum(axis=1).astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, name", list(enumerate(OPERATIONS)))
def test_a_view_is_torchvisions_crop_and_operation_bit_for_bit(number, name):
    image, strength = photo(90, 70), magnitude(name, 64)
    for sign in (1, -1) if name in SIGNED else (1,):
        view = [[5, 7, 50, 61], [[number, sign * strength], [12, 0.0]]]
        expected = F.resized_crop(image, 5, 7, 50, 61, [64, 64], F.InterpolationMode.BICUBIC)
        for operation, by in ((name, sign * strength), ("AutoContrast", 0.0)):
            expected = _apply_op(expected, operation, by, F.InterpolationMode.NEAREST, None)
        assert replay(view, image, 64).numpy().transpose(1, 2, 0).tobytes() == expected.tobytes()
        pixels = normalise(replay(view, image, 64), MEAN, STD)
        assert torch.equal(pixels, F.normalize(F.to_tensor(expected), MEAN, STD))


@pytest.mark.parametrize("name", ["TranslateX", "TranslateY"])
def test_a_translation_moves_by_the_same_share_of_a_view_of_another_side(name):
    """45.68 pixels of a view of 336 are 45 whole ones, as torchvision takes them; those are 30 of a view of 224."""
    image, operation = photo(90, 70), OPERATIONS.index(name)
    for side, moved in ((336, 45), (224, 30), (256, 34)):
        view, expected = [[[5, 7, 50, 61], [[operation, strength]]] for strength in (-45.68, float(-moved))]
        assert torch.equal(replay(view, image, side, drawn_for=336), replay(expected, image, side))


def test_views_from_a_file_make_the_very_pixels_that_were_drawn():
    image = photo(120, 80)
    views = draw_views(3, "a/key", 30, size=image.size, side=48, crop_area=0.08)
    stored = read_views(write_views(views))
    assert stored == views and len({number for _, operations in views for number, _ in operations}) > 10
    for view, other in zip(views, stored):
        assert torch.equal(replay(view, image, 48), replay(other, image, 48))


def test_a_view_without_operations_is_its_crop():
    image = photo(40, 30)
    assert (
        replay([[0, 0, 30, 40], None], image, 16).numpy().transpose(1, 2, 0).tobytes()
        == image.resize((16, 16), 3).tobytes()
    )


# --- files -----------------------------------------------------------------------------------------------------------


def test_paug_is_read_in_both_layouts():
    views = [[[14, 347, 370, 427], [[0, 0.0], [6, 0.27]]], [[0, 0, 5, 6], None]]
    assert read_views(json.dumps({"param_aug": views}).encode()) == views
    assert read_views(json.dumps({"param_aug": json.dumps(views)}).encode()) == views


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"[]",
        b"{}",
        b'{"param_aug": 3}',
        b'{"param_aug": "[["}',
        b'{"param_aug": [[1, 2]]}',
        b'{"param_aug": [[[1, 2, 3], []]]}',
        b'{"param_aug": [[[0, 0, 0, 4], []]]}',
        b'{"param_aug": [[[-1, 0, 4, 4], []]]}',
        b'{"param_aug": [[[0, 0, 4, 4], [[14, 0.1]]]]}',
        b'{"param_aug": [[[0, 0, 4, 4], [[1, "x"]]]]}',
        b'{"param_aug": [[[0, 0, 4, 4], [[1, NaN]]]]}',
    ],
)
def test_what_is_no_list_of_views_is_refused(broken):
    with pytest.raises(ValueError):
        read_views(broken)


def test_pictures_are_decoded_as_the_readers_of_reinforced_sets_do():
    image = photo(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(image, exif=exif)
    assert decode_stored(turned).size == (30, 20) and decode_stored(turned).tobytes() == image.tobytes()
    hidden = image.copy()
    hidden.putalpha(0)
    for data in (
        encoded(hidden),
        encoded(image.convert("P"), transparency=3),
        encoded(image.convert("L")),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "JPEG"),
    ):
        expected = Image.open(io.BytesIO(data)).convert("RGBA").convert("RGB")
        assert decode_stored(data).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "data", [None, b"", b"no picture", encoded(photo(30, 20))[:-40], encoded(photo(300, 200), "JPEG")[:-99]]
)
def test_what_is_no_whole_picture_is_a_value_error(data):
    with pytest.raises(ValueError):
        decode_stored(data)
