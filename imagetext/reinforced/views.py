"""Views of a picture as reinforced sets keep them: `paug.json`, and the pixels that it means.

A view is `[[top, left, height, width], [[operation, magnitude], [operation, magnitude]]]`: pixels of the whole picture, and
the number of an operation in OPERATIONS. So `paug.json` of the reinforced sets of Faghri et al. 2023 and of MobileCLIP has it,
and their readers replay it.

Dimensions: S side of a view.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional

from imagetext.readers.row_records import json_object
from imagetext.sample import MAX_PIXELS, in_bands, open_image

View = list[list]
F: Any = functional  # its types say Tensor where it takes and gives pictures of Pillow

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
STRONGEST = 10_000  # any magnitude: translations are in pixels, the largest of the others is 256


# ---- pixels ------------------------------------------------------------------------------------------------------


def decode_stored(data: bytes | None) -> Image.Image:
    """The picture's stored pixels in RGB: not turned as its EXIF data ask, and with what is behind its transparency.

    So the readers of reinforced sets decode it, and a view means the same to them. Raises ValueError, with a reason, for what
    is no whole picture.
    """
    image = open_image(data)
    try:
        image.load()
        if image.mode in ("RGB", "L"):
            return image if image.mode == "RGB" else image.convert("RGB")
        return in_bands(image, lambda band: band.convert("RGBA").convert("RGB"))
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
    means, deviations = (
        torch.tensor(numbers, dtype=torch.float32, device=pixels.device)[:, None, None] for numbers in (mean, std)
    )
    return values.sub_(means).div_(deviations)


# ---- paug.json ---------------------------------------------------------------------------------------------------


def write_views(views: Sequence[View]) -> bytes:
    """The member `paug.json`."""
    return json.dumps({"param_aug": views}, separators=(",", ":")).encode()


def read_views(data: bytes) -> list[View]:
    """The views of a `paug.json`, also of one whose list is text within the JSON; ValueError where it holds no such views."""
    try:
        views = json_object(data).get("param_aug")
        if isinstance(views, str):
            views = json_object(f'{{"views": {views}}}')["views"]
    except ValueError as error:
        raise ValueError(f"paug.json: {error}") from error
    if not isinstance(views, list):
        raise ValueError("paug.json: no list under param_aug")
    for number, view in enumerate(views):
        if not _is_view(view):
            raise ValueError(f"paug.json: view {number} is no crop with RandAugment's operations: {str(view)[:80]}")
    return views


def _is_view(view: Any) -> bool:
    match view:
        case [[int() as top, int() as left, int() as height, int() as width], list() | None as operations]:
            fits = min(top, left) >= 0 and min(height, width) > 0 and (top + height) * (left + width) <= MAX_PIXELS
            return fits and all(map(_is_operation, operations or ()))
    return False


def _is_operation(operation: Any) -> bool:
    match operation:
        case [int() as number, int() | float() as strength] if 0 <= number < len(OPERATIONS):
            return 0 <= strength <= 8 if OPERATIONS[number] == "Posterize" else abs(strength) <= STRONGEST
    return False
