"""Views of a picture: a random resized crop, then RandAugment, drawn by name and kept so that they can be made again.

A view is `[[top, left, height, width], [[operation, magnitude], [operation, magnitude]]]`: pixels of the whole picture, and
the number of an operation in OPERATIONS. So `paug.json` of the reinforced sets of Faghri et al. 2023 and of MobileCLIP has it,
and their readers replay it.

Dimensions: S side of a view, V views.
"""

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from captioners.sampling import sample_key
from imagetext.rows import json_object
from imagetext.sample import FORMATS, image_size

View = list[list]

AREA = (0.08, 1.0)      # of a crop, as a share of the picture's
RATIO = (3 / 4, 4 / 3)  # width to height of a crop
CROPS = 10              # tries at a crop that fits, before the largest one in the middle is taken
OPERATIONS = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
              "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize")
PER_VIEW = 2            # operations
SIGNED = OPERATIONS[1:10]
DRAW = 1 << 32          # marks the Philox counters of views; those of captions have an attempt there, a small number


# ---- draws -------------------------------------------------------------------------------------------------------


def draw_views(seed: int, key: str, count: int, size: tuple[int, int], side: int) -> list[View]:
    """The first `count` views of a picture, the same whatever else is drawn; size is its width and height in pixels.

    The distribution is that of torchvision's RandomResizedCrop and RandAugment (Cubuk et al. 2019) with their defaults: two
    operations of magnitude 9 of 30.
    """
    philox_key = np.array(sample_key(seed, key), dtype=np.int64).view(np.uint64)
    views = []
    for number in range(count):
        random = np.random.Philox(key=philox_key, counter=[0, DRAW, 0, number])
        *tries, operations = random.random_raw(4 * CROPS + 2 * PER_VIEW).reshape(-1, 4).tolist()
        views.append([_draw_crop(tries, *size), [_draw_operation(*operations[at:at + 2], side) for at in (0, 2)]])
    return views


def _draw_crop(tries: Sequence[Sequence[int]], width: int, height: int) -> list[int]:
    """Top, left, height and width of a crop, from four random words for each try."""
    for area_word, ratio_word, top_word, left_word in tries:
        area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * _uniform(area_word))
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


# ---- pixels ------------------------------------------------------------------------------------------------------


def decode_stored(data: bytes | None) -> Image.Image:
    """The picture's stored pixels in RGB: not turned as its EXIF data ask, and with what is behind its transparency.

    So the readers of reinforced sets decode it, and a view means the same to them. Raises ValueError, with a reason, for what
    is no whole picture.
    """
    image_size(data)  # its checks: a known format, of a sane size, not cut
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.convert("RGB") if image.mode in ("RGB", "L") else image.convert("RGBA").convert("RGB")
    except MemoryError:  # the machine's fault, not the picture's
        raise
    except Exception as error:
        raise ValueError(f"picture does not decode: {error or type(error).__name__}") from error


def replay(view: View, image: Image.Image, side: int) -> Tensor:
    """The pixels (3, S, S), uint8, of a view of an RGB picture."""
    (top, left, height, width), operations = view
    image = F.resized_crop(image, top, left, height, width, [side, side], InterpolationMode.BICUBIC)
    for number, strength in operations or ():
        image = _operate(image, OPERATIONS[number], strength)
    return F.pil_to_tensor(image)


def _operate(image: Image.Image, name: str, strength: float) -> Image.Image:
    """The picture after an operation; what comes in from outside is black, pixels are the nearest ones."""
    match name:
        case "ShearX" | "ShearY":  # torchvision takes an angle, RandAugment means a slope
            angle = math.degrees(math.atan(strength))
            shear = [angle, 0.0] if name == "ShearX" else [0.0, angle]
            return F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
        case "TranslateX" | "TranslateY":
            moved = [int(strength), 0] if name == "TranslateX" else [0, int(strength)]
            return F.affine(image, angle=0.0, translate=moved, scale=1.0, shear=[0.0, 0.0])
        case "Rotate":
            return F.rotate(image, strength)
        case "Brightness":
            return F.adjust_brightness(image, 1 + strength)
        case "Color":
            return F.adjust_saturation(image, 1 + strength)
        case "Contrast":
            return F.adjust_contrast(image, 1 + strength)
        case "Sharpness":
            return F.adjust_sharpness(image, 1 + strength)
        case "Posterize":
            return F.posterize(image, int(strength))
        case "Solarize":
            return F.solarize(image, strength)
        case "AutoContrast":
            return F.autocontrast(image)
        case "Equalize":
            return F.equalize(image)
        case _:
            return image


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels (..., 3, S, S), uint8, as a model takes them: float32, the same bits on every device as torchvision gives."""
    # The divisor is a tensor on the device: by a plain number a GPU divides inexactly, through its reciprocal.
    values = pixels.to(torch.float32).div_(torch.tensor(255.0, device=pixels.device))
    mean, std = (torch.tensor(numbers, dtype=torch.float32, device=pixels.device)[:, None, None] for numbers in (mean, std))
    return values.sub_(mean).div_(std)


# ---- paug.json ---------------------------------------------------------------------------------------------------


def write_views(views: Sequence[View]) -> bytes:
    """The member `paug.json`."""
    return json.dumps({"param_aug": views}, separators=(",", ":")).encode()


def read_views(data: bytes) -> list[View]:
    """The views of a `paug.json`, also of one whose list is text within the JSON; ValueError where it holds no such views."""
    views = json_object(data).get("param_aug")
    if isinstance(views, str):
        views = json_object(f'{{"views": {views}}}')["views"]
    if not isinstance(views, list):
        raise ValueError("paug.json: no list under param_aug")
    for number, view in enumerate(views):
        if not _is_view(view):
            raise ValueError(f"paug.json: view {number} is no crop with RandAugment's operations: {str(view)[:80]}")
    return views


def _is_view(view: Any) -> bool:
    match view:
        case [[int() as top, int() as left, int() as height, int() as width], list() | None as operations]:
            return min(top, left) >= 0 and min(height, width) > 0 and all(map(_is_operation, operations or ()))
    return False


def _is_operation(operation: Any) -> bool:
    match operation:
        case [int() as number, int() | float() as strength]:
            return 0 <= number < len(OPERATIONS) and math.isfinite(strength)
    return False
