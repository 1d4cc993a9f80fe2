"""A seeded sample of pictures with their captions, the same whatever order or split they come in."""

import json
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from diversity.columns import Picture
from imagetext.hashes import name_hash

_AGAIN = 0x9E3779B97F4A7C15  # odd: pictures of one key are far apart
_START, _END = (-1, "", 0), (2**64, "", 0)

Place = tuple[int, str, int]  # hash, key, pictures of the same key before


def place(hashed: int, again: int) -> int:
    """Where a picture stands in a seed's order, from its key's `name_hash` and how many pictures of the key came before."""
    return (hashed + again * _AGAIN) % 2**64


def places(hashed: np.ndarray, again: np.ndarray) -> np.ndarray:
    """`place` of many pictures: (N,) uint64 and (N,) int -> (N,) uint64."""
    return hashed + again.astype(np.uint64) * np.uint64(_AGAIN)  # wraps round


class PictureSample:
    """The `size` pictures that come first in the order of the seed, all of them where there are fewer.

    Samples are nested: the first n pictures are the sample of size n. A picture may come in parts, each with other columns.
    Encoded images are kept of the first `images` pictures only.
    """

    def __init__(self, size: int = 10_000, seed: int = 0, images: int = 0) -> None:
        if not (size > 0 <= images):
            raise ValueError(f"a sample of {size} pictures with {images} images")
        self.size, self.seed, self.images = size, seed, images
        self._found: dict[Place, Picture] = {}
        self._last: Place = _END  # what comes behind this is not in the sample, and
        self._last_image: Place = _END if images else _START  # behind this without its image
        self._with_image = 0

    def update(self, pictures: Iterable[Picture]) -> None:
        """Adds pictures, or further columns of them; ValueError where two parts give one column other captions."""
        for picture in pictures:
            at = (place(name_hash(picture.key, seed=self.seed), picture.again), picture.key, picture.again)
            if at > self._last:
                continue
            if picture.image is not None and at > self._last_image:
                picture = replace(picture, image=None)
            self._with_image += picture.image is not None
            self._found[at] = _together(self._found[at], picture) if at in self._found else picture
            if len(self._found) > 2 * self.size or self._with_image > 2 * self.images:
                self._cut()

    def merge(self, other: "PictureSample") -> None:
        """Adds the pictures of a sample with the same size, seed and images; ValueError if they are not."""
        if (self.size, self.seed, self.images) != (other.size, other.seed, other.images):
            raise ValueError(
                f"samples differ in (size, seed, images): {(self.size, self.seed, self.images)} and "
                f"{(other.size, other.seed, other.images)}"
            )
        self.update(other.pictures)

    @property
    def pictures(self) -> list[Picture]:
        """The sample, in its order."""
        self._cut()
        return list(self._found.values())

    def _cut(self) -> None:
        """Sorts the pictures, and lets go of those behind `size` and of the images behind the first `images`."""
        order = sorted(self._found)
        if len(order) >= self.size:
            self._last = order[self.size - 1]
        if len(order) >= self.images > 0:
            self._last_image = order[self.images - 1]
        self._found = {
            at: self._found[at] if at <= self._last_image else replace(self._found[at], image=None)
            for at in order[: self.size]
        }
        self._with_image = sum(picture.image is not None for picture in self._found.values())


def _together(one: Picture, other: Picture) -> Picture:
    """One picture of two parts, whichever of them came first."""
    different = sorted(
        name for name in one.captions.keys() & other.captions.keys() if one.captions[name] != other.captions[name]
    )
    if different:
        raise ValueError(f"picture {one.key!r} came twice with other captions in {', '.join(different)}")
    return Picture(
        one.key,
        one.captions | other.captions,
        one.truncated | other.truncated,
        max(one.references, other.references),
        max(one.scene, other.scene, key=lambda scene: json.dumps(scene or 0, sort_keys=True)),
        max(one.image or b"", other.image or b"") or None,
        one.again,
    )
