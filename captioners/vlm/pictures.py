"""Pictures as the image processors of transformers' families make them; what makes them holds no model, so workers can have it.

Dimensions: H, W a picture's sides, T its tiles, D numbers of a patch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


class Preprocess:
    """A decoded RGB picture to (3, H, W), as the image processor has it with these options."""

    def __init__(self, image_processor: Any, options: dict):
        self.image_processor, self.options = image_processor, options

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = self.processed(image)["pixel_values"]
        return pixels.reshape(-1, *pixels.shape[-3:])[0]

    def processed(self, image: Image.Image) -> Any:
        return self.image_processor(images=image, return_tensors="pt", **self.options)


class PreprocessTiles(Preprocess):
    """A decoded RGB picture to all its tiles (T, 3, H, W)."""

    def __call__(self, image: Image.Image) -> Tensor:
        return self.processed(image)["pixel_values"]


class PreprocessSizedTiles(Preprocess):
    """To tiles (T, 3, H, W), of which the last is none: it begins with the picture's own size, of which see `own_size`."""

    def __call__(self, image: Image.Image) -> Tensor:
        tiles = self.processed(image)["pixel_values"][0]
        size = torch.tensor([*divmod(image.height, 256), *divmod(image.width, 256)], dtype=tiles.dtype)
        return torch.cat([tiles, F.pad(size, (0, tiles[0].numel() - 4)).view_as(tiles[:1])])


class PreprocessPatches(Preprocess):
    """To patches (rows, columns, D), in the order that the processor gives them."""

    def __call__(self, image: Image.Image) -> Tensor:
        processed = self.processed(image)
        return processed["pixel_values"].unflatten(0, processed["image_grid_thw"][0, 1:].tolist())


def own_size(picture: Tensor) -> tuple[int, int]:
    """Height and width of a picture as PreprocessSizedTiles has it: in parts that no dtype rounds."""
    high, height, wide, width = map(int, picture[-1].flatten()[:4].tolist())
    return 256 * high + height, 256 * wide + width
