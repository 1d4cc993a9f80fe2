"""The record type that all rooms pass on, and the one function that decodes a picture."""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Importing a plugin registers its format. No other formats are opened: some of Pillow's others start a program (EPS
# starts Ghostscript) or have no signature.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from imagetext import limits
from imagetext.columns import is_caption_column, is_column
from imagetext.whole_pictures import check_whole, without_texts

MAX_PIXELS = limits.PIXELS
MAX_ASPECT = limits.ASPECT
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
BAND = 1 << 23  # pixels that are converted at once, so that memory does not hold a second whole picture
HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}  # brands of ISO/IEC 23008-12


@dataclass(frozen=True)
class Record:
    """A picture with its captions and all other fields that are known of it.

    `columns` holds all caption columns, including negatives and tags. `scores` holds lists of values for each column:
    `{"syn_text_x": {"logprob": [...], "truncated": [...]}}`, with one value for each caption, in the same order.
    `meta` also has `uid` and `source`. `source` is the place of the picture, relative to the input, so that the same
    input gives the same record on every machine. Foreign fields whose names clash with the names of our own fields are
    kept in `meta["source_fields"]`.
    """

    key: str  # unique within a set
    image: bytes | None  # encoded bytes, unchanged; decoded late
    captions: tuple[str, ...] = ()  # original captions: written by people, or alt text
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by name, synthetic captions and others
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by column
    # every other file of the sample (npz, paug.json, ...), unchanged
    members: Mapping[str, bytes] = field(default_factory=dict)
    label: str | None = None  # its class, if the command reads labels
    meta: Mapping[str, Any] = field(default_factory=dict)  # uid, sha256, license, ...
    error: str = ""  # why the record cannot be used; a failed record stays in the set as a row
    # the error was already in the record when it was read: the run that wrote the record failed on it
    failed_before: bool = field(default=False, compare=False)
    lacks_picture: bool = field(default=False, compare=False)  # the only error is that its picture cannot be read
    # the picture's file, if the picture is a file by itself
    path: str = field(default="", compare=False, repr=False)

    @property
    def syn_text(self) -> dict[str, tuple[str, ...]]:
        """The columns of synthetic captions, without columns of other kinds."""
        return {name: texts for name, texts in self.columns.items() if is_caption_column(name)}

    @property
    def named_columns(self) -> dict[str, tuple[str, ...]]:
        """The columns whose names follow our conventions: synthetic captions, negatives and tags."""
        return {name: texts for name, texts in self.columns.items() if is_column(name)}

    def first_text(self, *, from_synthetic: bool = False) -> str | None:
        """The first caption that is not blank, which becomes the record's `txt`; None if there is none.

        from_synthetic: whether synthetic captions come before the original ones; otherwise they do not count.
        """
        synthetic = self.syn_text.values() if from_synthetic else ()
        return next((text for texts in (*synthetic, self.captions) for text in texts if text.strip()), None)


@dataclass(frozen=True)
class Shard:
    """Records that are read, captioned and written together. Each iteration reads them again."""

    name: str  # the names of the output files begin with it; unique in a run
    path: str  # the file or folder that the records are read from
    stamp: Mapping[str, Any]  # size, and mtime_ns or the store's etag, of the input; {} for drawn pictures
    samples: Iterable[Record] = field(repr=False, compare=False)
    # adds the label to a record, if the command reads labels
    labels: Callable[[Record], Record] | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Record]:
        return map(self.labels, self.samples) if self.labels else iter(self.samples)


def decode_image(data: bytes | None) -> Image.Image:
    """Decode a picture to 8-bit RGB.

    The EXIF orientation is applied, the first frame is taken, alpha is put over white, CMYK and 16-bit values are
    converted.

    Raises ValueError with a readable reason for data that is not a whole picture of at most MAX_PIXELS pixels. The
    number of pixels is read from the header before decoding. The function changes no setting of Pillow, so it is safe
    in threads. Pillow's own limit of 178,956,970 pixels still holds for WebP and TIFF, whose readers check it.
    """
    image = open_image(data)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except MemoryError:  # the machine's fault, not the picture's
        raise
    except Exception as error:
        raise ValueError(f"{image.format} picture does not decode: {_reason(image.format, error)}") from error


def image_size(data: bytes | None) -> tuple[int, int]:
    """Return width and height, in pixels, of the picture that `decode_image` returns, from the header if possible.

    Raises ValueError as `decode_image` does, but only for faults that the header shows.
    """
    image = open_image(data)
    if image.format == "TIFF":  # Pillow has turned it already
        return image.size
    # A PNG may store its orientation behind the pixels. Reading it then decodes the picture, so it is read only where
    # the data contain one of the three marks of an orientation.
    marks = (b"eXIf", b"profile type exif", b"tiff:Orientation")
    if image.format == "PNG" and not any(mark in (data or b"") for mark in marks):
        return image.size
    width, height = image.size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def is_picture(head: bytes) -> bool:
    """Return whether a file is a picture, by its first 32 bytes.

    HEIC counts as a picture here; `open_image` then refuses it and says how to convert it.
    """
    if head.startswith((b"BM", b"P")):  # a text may begin so, too
        return bool(re.match(rb"BM....\0{4}....[\x0c-\x7c]\0{3}|P[1-6]\s+[#0-9]", head, re.DOTALL))
    return _is_heic(head) or any(_accepts(name, head[:16]) for name in FORMATS)


def _accepts(format: str, head: bytes) -> bool | str:
    """Whether Pillow takes a file for this format, by its first 16 bytes; a text if this Pillow cannot read it."""
    accept = Image.OPEN[format][1]
    return accept(head) if accept else False


def _is_heic(data: bytes) -> bool:
    if data[4:8] != b"ftyp":
        return False
    brands = {data[start : start + 4] for start in range(8, min(int.from_bytes(data[:4], "big"), 256), 4)}
    return bool(brands & HEIC) and b"avif" not in brands


def open_image(data: bytes | None) -> Image.Image:
    """Open a picture: read its header and decode nothing. Raises ValueError as `decode_image` does."""
    if data is None:
        raise ValueError("missing picture")
    if not data:
        raise ValueError("empty picture file")
    if _is_heic(data):
        raise ValueError(
            "HEIC picture, which is not read, because few readers of sets can read it; convert it to JPEG, PNG, WebP "
            "or AVIF (pillow-heif adds HEIC to Pillow)"
        )
    for format in FORMATS:
        # Image.open is not used: its limit on pixels is a global setting, which warns and fails below our limit.
        accepted = _accepts(format, data[:16])
        if isinstance(accepted, str):
            raise ValueError(f"{format} picture, which this Pillow does not read: {accepted}")
        if accepted:
            return _opened(format, data)
    # The message does not quote the bytes: a mistaken path may lead to a secret.
    raise ValueError(f"not a picture: {len(data):,} bytes that begin as none of {', '.join(FORMATS)}")


def _opened(format: str, data: bytes) -> Image.Image:
    factory = Image.OPEN[format][0]
    try:
        image = factory(io.BytesIO(without_texts(data) if format == "PNG" else data), "")
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{format} picture with a broken header: {_reason(format, error)}") from error
    width, height = image.size
    size = f"{format} picture of {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise ValueError(f"{size}: {width * height:,} is more than {MAX_PIXELS:,}")
    if width * height == 0:
        raise ValueError(size)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{size}: one side is more than {MAX_ASPECT} times the other")
    check_whole(format, data)
    return image


def _reason(format: str | None, error: Exception) -> str:
    """Pillow's message, or only the type of its error for PPM and BMP.

    A text may begin like a picture of these two formats, and Pillow's messages quote what they read.
    """
    return type(error).__name__ if format in ("PPM", "BMP") else str(error) or type(error).__name__


# ---- orientation and colour ------------------------------------------------------------------------------------

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. Broken EXIF data do not harm the pixels, so they count as 1."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))  # Pillow turns a TIFF itself and removes the tag
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8bit(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    return in_bands(image, _over_white)


def _over_white(band: Image.Image) -> Image.Image:
    band = band.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB")


def in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert a picture to RGB with `convert`, a band of rows at a time, so that no whole copy is held in between."""
    converted = Image.new("RGB", image.size)
    for top, bottom in _bands(image):
        converted.paste(convert(image.crop((0, top, image.width, bottom))), (0, top))
    return converted


def _bands(image: Image.Image) -> Iterator[tuple[int, int]]:
    """The first row of each band of the picture, and the row after its last."""
    rows = max(1, BAND // image.width)
    return ((top, min(top + rows, image.height)) for top in range(0, image.height, rows))


def _to_8bit(image: Image.Image) -> Image.Image:
    """Convert grey values of more than 8 bits to mode `L`. Pixels of the value that stands for transparent are white.

    Integers of 16 and 32 bits are taken as 0..65535, floats as 0..1. If a picture has values outside this range, its
    smallest finite value becomes black and its largest white. NaN is black.
    """
    values, transparent = np.asarray(image), image.info.get("transparency")  # (H, W)
    bands = [values[top:bottom] for top, bottom in _bands(image)]
    low, high = 0.0, (1.0 if image.mode == "F" else 65535.0)
    minima, maxima = [], []
    for band in bands:
        finite = band[np.isfinite(band)].astype(np.float32)
        if finite.size:
            minima.append(finite.min())
            maxima.append(finite.max())
    if minima and (min(minima) < low or max(maxima) > high):
        low, high = float(min(minima)), float(max(maxima))
    grey = np.empty(values.shape, np.uint8)
    for (top, bottom), band in zip(_bands(image), bands):
        numbers = np.clip(np.nan_to_num(band.astype(np.float32), nan=low, posinf=high, neginf=low), low, high)
        grey[top:bottom] = np.rint((numbers - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
        if isinstance(transparent, int):
            grey[top:bottom][band == transparent] = 255
    return Image.fromarray(grey)
