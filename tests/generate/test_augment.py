"""Drawn views have the distribution of torchvision's RandomResizedCrop and RandAugment."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from generate.reinforce.augment import SIGNED, draw_views, magnitude
from imagetext.reinforced.views import OPERATIONS, replay


def test_a_view_depends_on_seed_key_number_and_picture_alone():
    views = draw_views(0, "key", 5, size=(300, 200), side=64, crop_area=0.08)
    assert draw_views(0, "key", 9, size=(300, 200), side=64, crop_area=0.08)[:5] == views
    assert len({json.dumps(view) for view in views}) == 5
    assert not [view for view in draw_views(1, "key", 5, size=(300, 200), side=64, crop_area=0.08) if view in views]
    assert not [view for view in draw_views(0, "key2", 5, size=(300, 200), side=64, crop_area=0.08) if view in views]


def test_magnitudes_are_those_of_torchvision():
    space = transforms.RandAugment()._augmentation_space(31, (224, 224))
    assert tuple(space) == OPERATIONS
    for name, (magnitudes, signed) in space.items():
        assert magnitude(name, 224) == pytest.approx(magnitudes[9].item() if magnitudes.ndim else 0.0, rel=1e-6)
        assert (name in SIGNED) == signed


def test_operations_and_signs_are_drawn_evenly():
    """Each share is within 5 standard deviations of its mean.

    A fair draw fails for one in 70,000 seeds (24 shares, 6e-7 each).
    """
    operations_drawn = [
        operation
        for number in range(1000)
        for _, operations in draw_views(0, str(number), 10, size=(50, 50), side=32, crop_area=0.08)
        for operation in operations
    ]
    for number, name in enumerate(OPERATIONS):
        strengths = [strength for operation, strength in operations_drawn if operation == number]
        assert share_fits(len(strengths), len(operations_drawn), 1 / 14), name
        assert {abs(strength) for strength in strengths} == {magnitude(name, 32)}
        if name in SIGNED:
            assert share_fits(sum(strength < 0 for strength in strengths), len(strengths), 1 / 2), name
    pairs = [(a[0], b[0]) for a, b in zip(operations_drawn[::2], operations_drawn[1::2])]
    assert share_fits(
        sum(a == b for a, b in pairs), len(pairs), 1 / 14
    )  # the two operations of a view are independent


def share_fits(count: int, total: int, share: float) -> bool:
    return abs(count / total - share) < 5 * math.sqrt(share * (1 - share) / total)


@pytest.mark.parametrize("crop_area", [0.08, 0.6])
@pytest.mark.parametrize("size", [(320, 240), (200, 500), (31, 33)])
def test_crops_are_distributed_as_torchvisions(size, crop_area):
    """Two-sample Kolmogorov-Smirnov tests at 1e-6 for each of six properties of a crop.

    Fair draws fail for one in 28,000 seeds.
    """
    image, count = Image.new("RGB", size), 3000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [
            transforms.RandomResizedCrop.get_params(image, (crop_area, 1.0), (3 / 4, 4 / 3)) for _ in range(count)
        ]
    ours = [
        crop
        for number in range(count // 10)
        for crop, _ in draw_views(0, f"crop {number}", 10, size=size, side=32, crop_area=crop_area)
    ]
    limit = math.sqrt(math.log(2 / 1e-6) / 2) * math.sqrt(2 / count)
    for figure in (
        lambda top, left, height, width: height * width,
        lambda top, left, height, width: width / height,
        lambda top, left, height, width: top,
        lambda top, left, height, width: left,
        lambda top, left, height, width: top / max(1, size[1] - height),
        lambda top, left, height, width: left / max(1, size[0] - width),
    ):
        assert ks_distance([figure(*crop) for crop in ours], [figure(*crop) for crop in theirs]) < limit
    for top, left, height, width in ours:
        assert 0 <= top <= size[1] - height and 0 <= left <= size[0] - width and height > 0 and width > 0


def ks_distance(a: list[float], b: list[float]) -> float:
    """Return the greatest distance between two empirical distribution functions."""
    points = np.sort(np.concatenate([a, b]))
    shares = (np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (a, b))
    return float(np.abs(next(shares) - next(shares)).max())


@pytest.mark.parametrize("size", [(10, 400), (400, 10), (1, 1), (1, 90)])
def test_where_no_crop_fits_the_middle_is_taken_as_torchvision_takes_it(size):
    image = Image.new("RGB", size)
    crops = {
        tuple(crop)
        for number in range(20)
        for crop, _ in draw_views(0, str(number), 20, size=size, side=8, crop_area=0.08)
    }
    expected = transforms.RandomResizedCrop.get_params(image, (100.0, 100.0), (3 / 4, 4 / 3))  # no crop is that large
    assert expected in crops
    assert all(replay([list(crop), None], image, 8).shape == (3, 8, 8) for crop in crops)
