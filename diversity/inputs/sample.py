"""A seeded sample of pictures with their captions, which is the same in whatever order and parts they come."""

import json
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from diversity.columns import ComparedPicture
from imagetext.hashes import name_hash

_STEP = 0x9E3779B97F4A7C15  # odd, and large, so that pictures with one key are far apart in the order
_START, _END = (-1, "", 0), (2**64, "", 0)

SortKey = tuple[int, str, int]  # order key, key, occurrence


def order_key(hashed: int, occurrence: int) -> int:
    """Return the 64-bit number by which pictures are sorted in the seed's random order.

    `hashed` is the `name_hash` of the picture's key; `occurrence` is how many pictures with the same key came before.
    """
    return (hashed + occurrence * _STEP) % 2**64


def order_keys(hashed: np.ndarray, occurrence: np.ndarray) -> np.ndarray:
    """Return `order_key` of many pictures: (N,) uint64 and (N,) int -> (N,) uint64."""
    return hashed + occurrence.astype(np.uint64) * np.uint64(_STEP)  # wraps round


class PictureSample:
    """The first `size` pictures in the random order of the seed, or all pictures where there are fewer.

    Samples are nested: the first n pictures are the sample of size n. A picture may come in several parts with
    different columns. Encoded images are kept for the first `images` pictures only.
    """

    def __init__(self, size: int = 10_000, seed: int = 0, images: int = 0) -> None:
        if not (size > 0 <= images):
            raise ValueError(f"a sample of {size} pictures with {images} images")
        self.size, self.seed, self.images = size, seed, images
        self._pictures: dict[SortKey, ComparedPicture] = {}
        self._last: SortKey = _END  # pictures after this one are not in the sample
        self._last_image: SortKey = _END if images else _START  # pictures after this one are kept without their image
        self._with_image = 0  # number of kept images

    def update(self, pictures: Iterable[ComparedPicture]) -> None:
        """Add pictures, or further columns of them.

        Raises ValueError where two parts of a picture differ in the captions of a column.
        """
        for picture in pictures:
            hashed = name_hash(picture.key, seed=self.seed)
            key = (order_key(hashed, picture.occurrence), picture.key, picture.occurrence)
            if key > self._last:
                continue
            if picture.image is not None and key > self._last_image:
                picture = replace(picture, image=None)
            self._with_image += picture.image is not None
            self._pictures[key] = _merged(self._pictures[key], picture) if key in self._pictures else picture
            if len(self._pictures) > 2 * self.size or self._with_image > 2 * self.images:
                self._trim()

    def merge(self, other: "PictureSample") -> None:
        """Add the pictures of another sample; raise ValueError unless its size, seed and images are equal."""
        if (self.size, self.seed, self.images) != (other.size, other.seed, other.images):
            raise ValueError(
                f"samples differ in (size, seed, images): {(self.size, self.seed, self.images)} and "
                f"{(other.size, other.seed, other.images)}"
            )
        self.update(other.pictures)

    @property
    def pictures(self) -> list[ComparedPicture]:
        """The pictures of the sample in its order."""
        self._trim()
        return list(self._pictures.values())

    def _trim(self) -> None:
        """Sort the pictures, and drop pictures after `size` and images after `images`."""
        order = sorted(self._pictures)
        if len(order) >= self.size:
            self._last = order[self.size - 1]
        if len(order) >= self.images > 0:
            self._last_image = order[self.images - 1]
        pictures = {}
        for key in order[: self.size]:
            picture = self._pictures[key]
            pictures[key] = picture if key <= self._last_image else replace(picture, image=None)
        self._pictures = pictures
        self._with_image = sum(picture.image is not None for picture in pictures.values())


def _merged(first: ComparedPicture, second: ComparedPicture) -> ComparedPicture:
    """Merge two parts of a picture; the result is the same in either order."""
    common = first.captions.keys() & second.captions.keys()
    different = sorted(name for name in common if first.captions[name] != second.captions[name])
    if different:
        raise ValueError(f"picture {first.key!r} came twice with different captions in {', '.join(different)}")
    return ComparedPicture(
        key=first.key,
        captions=first.captions | second.captions,
        truncated=first.truncated | second.truncated,
        references=max(first.references, second.references),
        scene=max(first.scene, second.scene, key=lambda scene: json.dumps(scene or 0, sort_keys=True)),
        image=max(first.image or b"", second.image or b"") or None,
        occurrence=first.occurrence,
    )
