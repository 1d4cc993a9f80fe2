"""Preprocessing of pictures by transformers' image processors. It needs no model, so other processes can run it.

Dimensions: H, W height and width of a picture or tile, T tiles, D numbers of a patch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


class Preprocess:
    """Turns a decoded RGB picture into pixels (3, H, W), by an image processor with these options."""

    def __init__(self, image_processor: Any, options: dict):
        self.image_processor, self.options = image_processor, options

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = self.processed(image)["pixel_values"]
        return pixels.reshape(-1, *pixels.shape[-3:])[0]

    def processed(self, image: Image.Image) -> Any:
        """All outputs of the image processor."""
        return self.image_processor(images=image, return_tensors="pt", **self.options)


class PreprocessTiles(Preprocess):
    """Turns a decoded RGB picture into its tiles (T, 3, H, W)."""

    def __call__(self, image: Image.Image) -> Tensor:
        return self.processed(image)["pixel_values"]


class PreprocessSizedTiles(Preprocess):
    """Turns a decoded RGB picture into tiles (T, 3, H, W), of which the last is its size (see `original_size`)."""

    def __call__(self, image: Image.Image) -> Tensor:
        tiles = self.processed(image)["pixel_values"][0]
        size = torch.tensor([*divmod(image.height, 256), *divmod(image.width, 256)], dtype=tiles.dtype)
        return torch.cat([tiles, F.pad(size, (0, tiles[0].numel() - 4)).view_as(tiles[:1])])


class PreprocessPatches(Preprocess):
    """Turns a decoded RGB picture into patches (rows, columns, D), in the processor's order."""

    def __call__(self, image: Image.Image) -> Tensor:
        processed = self.processed(image)
        return processed["pixel_values"].unflatten(0, processed["image_grid_thw"][0, 1:].tolist())


def original_size(picture: Tensor) -> tuple[int, int]:
    """The height and width of a picture from PreprocessSizedTiles.

    The last tile stores each as two numbers below 256, which half precision represents exactly.
    """
    high_height, low_height, high_width, low_width = map(int, picture[-1].flatten()[:4].tolist())
    return 256 * high_height + low_height, 256 * high_width + low_width
