"""Views of a picture as reinforced sets store them in `paug.json`, and their pixels.

A view is `[[top, left, height, width], [[operation, magnitude], [operation, magnitude]]]`: a crop in pixels of the
whole picture, then operations of RandAugment by their index in OPERATIONS. This is the format of the reinforced sets
of Faghri et al. 2023 and of MobileCLIP, whose readers can replay it.

Dimensions: S side of a view in pixels.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional

from imagetext.fields import json_object
from imagetext.sample import MAX_PIXELS, in_bands, open_image

View = list[list]
F: Any = functional  # its types name Tensor only, but it also takes and returns pictures of Pillow

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
STRONGEST = 10_000  # largest magnitude: translations are in pixels, the largest of the others is 256


# ---- pixels ------------------------------------------------------------------------------------------------------


def decode_stored(data: bytes | None) -> Image.Image:
    """Return the stored pixels of a picture in RGB: without the EXIF orientation, and with transparency dropped.

    Readers of reinforced sets decode pictures in this way, so a view has the same pixels for them.

    Raises ValueError with a reason for data that is not a whole picture.
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


def replay(view: View, image: Image.Image, side: int, drawn_for: int | None = None) -> Tensor:
    """Return the pixels (3, S, S), uint8, of a view of an RGB picture.

    drawn_for: the side for which the view was drawn (default: this one). Translations are in pixels of that side, so
    they are scaled to this one.
    """
    (top, left_edge, height, width), operations = view
    image = F.resized_crop(
        image, top, left_edge, height, width, size=[side, side], interpolation=InterpolationMode.BICUBIC
    )
    for number, strength in operations or ():
        name = OPERATIONS[number]
        if name in ("TranslateX", "TranslateY"):
            strength = round(int(strength) * side / (drawn_for or side))
        image = _operate(image, name, strength)
    return F.pil_to_tensor(image)


def _operate(image: Image.Image, name: str, strength: float) -> Image.Image:
    """Apply an operation. Pixels are taken from the nearest ones; those from outside the picture are black."""
    match name:
        case "ShearX" | "ShearY":  # torchvision expects an angle, RandAugment gives a slope
            angle = math.degrees(math.atan(strength))
            shear = [angle, 0.0] if name == "ShearX" else [0.0, angle]
            return F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
        case "TranslateX" | "TranslateY":
            moved = [strength, 0] if name == "TranslateX" else [0, strength]
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
    """Normalise pixels (..., 3, S, S), uint8, to float32, with the same bits on every device as torchvision's."""
    # The divisor is a tensor on the device, because a GPU divides by a plain number inexactly, through its reciprocal.
    values = pixels.to(torch.float32).div_(torch.tensor(255.0, device=pixels.device))
    means, deviations = (
        torch.tensor(numbers, dtype=torch.float32, device=pixels.device)[:, None, None] for numbers in (mean, std)
    )
    return values.sub_(means).div_(deviations)


# ---- paug.json ---------------------------------------------------------------------------------------------------


def write_views(views: Sequence[View]) -> bytes:
    """Return the bytes of `paug.json` for these views."""
    return json.dumps({"param_aug": views}, separators=(",", ":")).encode()


def read_views(data: bytes | None) -> list[View]:
    """Return the views in a `paug.json`, whose list may also be stored as a text.

    Raises ValueError for anything else, and for None, which stands for a record without this member.
    """
    if data is None:
        raise ValueError("there is no paug.json, which `capsmith reinforce` writes")
    try:
        views = json_object(data).get("param_aug")
        if isinstance(views, str):
            views = json_object(f'{{"views": {views}}}')["views"]
    except ValueError as error:
        raise ValueError(f"paug.json: {error}") from error
    if not isinstance(views, list):
        raise ValueError("paug.json: param_aug is not a list")
    for number, view in enumerate(views):
        if not _is_view(view):
            raise ValueError(
                f"paug.json: view {number} is not a crop with operations of RandAugment: {str(view)[:80]}"
            )
    return views


def check_views(views: Sequence[View], size: tuple[int, int]) -> None:
    """Raise ValueError if a view reaches beyond a picture of this width and height.

    Then it was drawn for another picture, or for this one before it was resized.
    """
    width, height = size
    for number, ((top, left, crop_height, crop_width), _) in enumerate(views):
        right, bottom = left + crop_width, top + crop_height
        if right > width or bottom > height:
            raise ValueError(
                f"paug.json: view {number} reaches to pixel {right} x {bottom}, but the picture has {width} x "
                f"{height}: the views are of a larger one, perhaps of this one before it was resized"
            )


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
