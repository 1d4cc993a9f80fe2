"""Views of a picture, drawn by name: a random resized crop, then RandAugment. `imagetext/reinforced/views.py` makes their pixels.

Dimensions: S side of a view.
"""

import math
from collections.abc import Sequence

import numpy as np

from captioners.decoding.sampling import sample_key
from imagetext.reinforced.views import OPERATIONS, View

RATIO = (3 / 4, 4 / 3)  # width to height of a crop
CROPS = 10  # tries at a crop that fits, before the largest one in the middle is taken
PER_VIEW = 2  # operations
SIGNED = OPERATIONS[1:10]
DRAW = 1 << 32  # marks the Philox counters of views; those of captions have an attempt there, a small number


def draw_views(seed: int, key: str, count: int, size: tuple[int, int], side: int, crop_area: float) -> list[View]:
    """The first `count` views of a picture, the same whatever else is drawn; size is its width and height in pixels.

    A crop has `crop_area` of the picture's area at least. The distribution is that of torchvision's RandomResizedCrop, and of
    its RandAugment (Cubuk et al. 2019) with its defaults: two operations of magnitude 9 of 30.
    """
    philox_key = np.array(sample_key(seed, key), dtype=np.int64).view(np.uint64)
    views = []
    for number in range(count):
        random = np.random.Philox(key=philox_key, counter=[0, DRAW, 0, number])
        *tries, (first, first_sign, second, second_sign) = (
            random.random_raw(4 * CROPS + 2 * PER_VIEW).reshape(-1, 4).tolist()
        )
        operations = [_draw_operation(first, first_sign, side), _draw_operation(second, second_sign, side)]
        views.append([_draw_crop(tries, *size, crop_area), operations])
    return views


def _draw_crop(tries: Sequence[Sequence[int]], width: int, height: int, least: float) -> list[int]:
    """Top, left, height and width of a crop, from four random words for each try."""
    for area_word, ratio_word, top_word, left_word in tries:
        area = width * height * (least + (1 - least) * _uniform(area_word))
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** _uniform(ratio_word)
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            return [_below(height - down + 1, top_word), _below(width - across + 1, left_word), down, across]
    across, down = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return [(height - down) // 2, (width - across) // 2, down, across]


def _draw_operation(word: int, sign_word: int, side: int) -> list:
    number = _below(len(OPERATIONS), word)
    name = OPERATIONS[number]
    return [number, -magnitude(name, side) if name in SIGNED and _below(2, sign_word) else magnitude(name, side)]


def _uniform(word: int) -> float:
    """A 64-bit word as a number in [0, 1)."""
    return (word >> 11) * 2.0**-53


def _below(limit: int, word: int) -> int:
    """A 64-bit word as an integer below the limit; uneven by less than limit / 2**64."""
    return word * limit >> 64


def magnitude(name: str, side: int) -> float:
    """Magnitude 9 of 30 of an operation, without its sign: a slope, pixels of a view, degrees, a factor's distance from 1,
    bits, or the value from which on a pixel is inverted."""
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
