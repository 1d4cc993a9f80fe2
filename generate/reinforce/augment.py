"""Draws views of a picture: a random resized crop, then RandAugment.

`imagetext/reinforced/views.py` makes the pixels of a view.
"""

import math
from collections.abc import Sequence

import numpy as np

from captioners.decoding.sampling import sample_key
from imagetext.reinforced.views import OPERATIONS, View

RATIO = (3 / 4, 4 / 3)  # width to height of a crop
CROPS = 10  # crops that are drawn until one fits; if none does, the largest central crop is taken
OPERATIONS_PER_VIEW = 2
SIGNED = OPERATIONS[1:10]  # operations whose magnitude is positive or negative
DRAW = 1 << 32  # sets the Philox counters of views apart from those of captions, which have a small number here


def draw_views(seed: int, key: str, count: int, *, size: tuple[int, int], side: int, crop_area: float) -> list[View]:
    """Draw the first `count` views of a picture; they depend only on the arguments, whatever else is drawn.

    key: of the record. size: width and height of the picture in pixels. side: of a view in pixels.
    crop_area: least share of the picture's area that a crop has.
    The distribution is that of torchvision's RandomResizedCrop, and of its RandAugment (Cubuk et al. 2019) with
    default settings: two operations of magnitude 9 of 30.
    """
    philox_key = np.array(sample_key(seed, key), dtype=np.int64).view(np.uint64)
    views = []
    for number in range(count):
        random = np.random.Philox(key=philox_key, counter=[0, DRAW, 0, number])
        *tries, (first, first_sign, second, second_sign) = (
            random.random_raw(4 * CROPS + 2 * OPERATIONS_PER_VIEW).reshape(-1, 4).tolist()
        )
        operations = [_draw_operation(first, first_sign, side), _draw_operation(second, second_sign, side)]
        views.append([_draw_crop(tries, *size, least_area=crop_area), operations])
    return views


def _draw_crop(tries: Sequence[Sequence[int]], width: int, height: int, *, least_area: float) -> list[int]:
    """Return top, left, height and width of a crop, from four random words for each try."""
    for area_word, ratio_word, top_word, left_word in tries:
        area = width * height * (least_area + (1 - least_area) * _uniform(area_word))
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** _uniform(ratio_word)
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = _below(height - crop_height + 1, top_word), _below(width - crop_width + 1, left_word)
            return [top, left, crop_height, crop_width]
    crop_width, crop_height = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return [(height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width]


def _draw_operation(word: int, sign_word: int, side: int) -> list:
    """Return the number of an operation and its magnitude."""
    number = _below(len(OPERATIONS), word)
    name = OPERATIONS[number]
    is_negative = name in SIGNED and _below(2, sign_word)
    return [number, -magnitude(name, side) if is_negative else magnitude(name, side)]


def _uniform(word: int) -> float:
    """Return a 64-bit word as a number in [0, 1)."""
    return (word >> 11) * 2.0**-53


def _below(limit: int, word: int) -> int:
    """Return a 64-bit word as an integer below the limit; its bias is less than limit / 2**64."""
    return word * limit >> 64


def magnitude(name: str, side: int) -> float:
    """Return magnitude 9 of 30 of an operation, without its sign.

    The unit depends on the operation: a slope, pixels of a view, degrees, a factor's distance from 1, bits, or the
    value from which on a pixel is inverted.
    """
    match name:
        case "ShearX" | "ShearY":
            return 0.09
        case "TranslateX" | "TranslateY":
            return 150 / 331 * side * 9 / 30
        case "Rotate":
            return 9.0
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return 0.27
        case "Posterize":
            return 7.0
        case "Solarize":
            return 178.5
        case _:
            return 0.0
