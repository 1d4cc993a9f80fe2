"""What a request to a server holds: its seed and the encoded picture; and the probes for what a server supports.

N: bytes of an encoded picture
"""

import hashlib
import io

import torch
from PIL import Image
from torch import Tensor

from captioners.base import Request
from captioners.decoding.sampling import name_digest

LONGEST_SIDE = 1024  # pixels; about the resolution that models use, in a few hundred kB


def request_seed(seed: int, key: str, index: int, column: str = "") -> int:
    """The seed of a request, of 31 bits, which all servers accept.

    index: of the request's first caption among its key's draws in the column.
    """
    digest = hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"),
        digest_size=4,
        key=seed.to_bytes(8, "little"),
        salt=index.to_bytes(16, "little"),
        person=name_digest(column),
    ).digest()
    return int.from_bytes(digest, "little") >> 1


def encode_picture(image: Image.Image) -> Tensor:
    """Encode a decoded RGB picture as a JPEG (N,) uint8, with a longest side of at most 1024 pixels."""
    image = image.copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=95, subsampling=0)
    return torch.frombuffer(bytearray(encoded.getbuffer()), dtype=torch.uint8)


# Probes that find out what a server supports: a question without a picture, and a picture of the usual size.
WORDS = Request("", None, "Say in one sentence what a dog is.")
BLANK = Request("", encode_picture(Image.new("RGB", (LONGEST_SIDE, LONGEST_SIDE * 3 // 4), "grey")))
