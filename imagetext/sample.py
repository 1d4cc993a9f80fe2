"""The records that everything carries, and the one way to decode a picture."""

import io
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Importing a plugin registers its format. These are all that is ever opened: some of Pillow's other formats start a
# program (EPS starts Ghostscript) or have no signature.
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

MAX_PIXELS = limits.PIXELS
MAX_ASPECT = limits.ASPECT
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
BAND = 1 << 23  # pixels that are converted at once, so that no second picture is held
HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}  # brands of ISO/IEC 23008-12


@dataclass(frozen=True)
class Record:
    """A picture with everything that is known of it.

    `columns` holds all caption columns, negatives and tags among them, `scores` what is known of each of their captions:
    `{"syn_text_x": {"logprob": [...], "truncated": [...]}}`, aligned with the captions. `meta` also has `uid` and `source`,
    where the picture was found, relative to the input: the same input gives the same record in every place. Fields of others
    that have names of ours stand in `meta["source_fields"]`.
    """

    key: str  # unique within a set
    image: bytes | None  # encoded, as found; decoded late
    captions: tuple[str, ...] = ()  # as found: human, alt text
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by name, synthetic captions and others
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by column
    # every other file (npz, paug.json, ...), carried untouched
    members: Mapping[str, bytes] = field(default_factory=dict)
    label: str | None = None  # its class, where it was asked for
    meta: Mapping[str, Any] = field(default_factory=dict)  # uid, sha256, license, ...
    error: str = ""  # why it cannot be used; a failure is a row, never a gap
    # the error came with the record, from the run that wrote it
    failed_before: bool = field(default=False, compare=False)
    lacks_picture: bool = field(default=False, compare=False)  # the error is only that its picture cannot be read
    # the file that is the picture, where it is one of its own
    path: str = field(default="", compare=False, repr=False)

    @property
    def syn_text(self) -> dict[str, tuple[str, ...]]:
        """The columns of synthetic captions, without columns of other kinds."""
        return {name: texts for name, texts in self.columns.items() if is_caption_column(name)}

    @property
    def named_columns(self) -> dict[str, tuple[str, ...]]:
        """The columns whose names say what they hold: of synthetic captions, and of texts that are no true captions."""
        return {name: texts for name, texts in self.columns.items() if is_column(name)}


@dataclass(frozen=True)
class Shard:
    """Records that are read, captioned and written together; iterating reads them, each time anew."""

    name: str  # the output's name derives from it; unique in a run
    path: str  # where the records come from
    stamp: Mapping[str, Any]  # size, and mtime_ns or the store's etag, of the input; {} for drawn pictures
    samples: Iterable[Record] = field(repr=False, compare=False)
    # gives each record its label, where labels were asked for
    labels: Callable[[Record], Record] | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Record]:
        return map(self.labels, self.samples) if self.labels else iter(self.samples)


def decode_image(data: bytes | None) -> Image.Image:
    """Decode a picture to 8-bit RGB: EXIF orientation applied, first frame, alpha over white, CMYK and 16 bits converted.

    Raises ValueError with a readable reason for whatever is no whole picture of at most MAX_PIXELS pixels, a number
    that is checked from the header, before decoding. Sets nothing in Pillow, so it is safe in threads. Its own
    ceiling of 178,956,970 pixels stays for WebP and TIFF, whose readers check it themselves.
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
    """Width and height in pixels of the picture that `decode_image` returns, read from the header where possible.

    Raises ValueError as `decode_image` does, though only for what the header shows.
    """
    image = open_image(data)
    # A PNG may keep its orientation behind the pixels: then only decoding shows it.
    if (
        image.format == "TIFF"
        or image.format == "PNG"
        and not any(mark in (data or b"") for mark in (b"eXIf", b"profile type exif", b"tiff:Orientation"))
    ):
        return image.size
    width, height = image.size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def is_picture(head: bytes) -> bool:
    """Whether a file is a picture by its first 32 bytes, HEIC included, which is then refused with a word on what to do."""
    if head.startswith((b"BM", b"P")):  # so may a text
        return bool(re.match(rb"BM....\0{4}....[\x0c-\x7c]\0{3}|P[1-6]\s+[#0-9]", head, re.DOTALL))
    return _is_heic(head) or any(_accepts(name, head[:16]) for name in FORMATS)


def _accepts(name: str, head: bytes) -> bool | str:
    """Whether Pillow takes a file for one of this format by its first 16 bytes; a text says what it lacks to read it."""
    accept = Image.OPEN[name][1]
    return accept(head) if accept else False


def _is_heic(data: bytes) -> bool:
    if data[4:8] != b"ftyp":
        return False
    brands = {data[start : start + 4] for start in range(8, min(int.from_bytes(data[:4], "big"), 256), 4)}
    return bool(brands & HEIC) and b"avif" not in brands


def open_image(data: bytes | None) -> Image.Image:
    """The picture with its header read and nothing decoded; raises ValueError as `decode_image` does."""
    if data is None:
        raise ValueError("missing picture")
    if not data:
        raise ValueError("empty picture file")
    if _is_heic(data):
        raise ValueError(
            "HEIC picture, which is not read, because few readers of sets could; convert it to JPEG, PNG, WebP or "
            "AVIF, as pillow-heif lets Pillow do"
        )
    for name in FORMATS:
        # Not Image.open: its limit on pixels is a global setting, and warns and fails below ours.
        if isinstance(accepted := _accepts(name, data[:16]), str):
            raise ValueError(f"{name} picture, which this Pillow does not read: {accepted}")
        if not accepted:
            continue
        factory = Image.OPEN[name][0]
        try:
            image = factory(io.BytesIO(_without_texts(data) if name == "PNG" else data), "")
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{name} picture with a broken header: {_reason(name, error)}") from error
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{name} picture of {width} x {height} pixels: {width * height:,} is more than {MAX_PIXELS:,}"
            )
        if width * height == 0:
            raise ValueError(f"{name} picture of {width} x {height} pixels")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(
                f"{name} picture of {width} x {height} pixels: one side is more than {MAX_ASPECT} times the other"
            )
        _check_whole(name, data)
        return image
    # which bytes they are is not told
    raise ValueError(f"not a picture: {len(data):,} bytes that begin as none of {', '.join(FORMATS)}")


def _reason(name: str | None, error: Exception) -> str:
    """Pillow's message; only the error's type for formats that begin as a text may, because Pillow quotes what it finds."""
    return type(error).__name__ if name in ("PPM", "BMP") else str(error) or type(error).__name__


def _check_whole(name: str, data: bytes) -> None:
    """Find the truncation that Pillow forgives, because the first frame's pixels are there, and what would take too long."""
    try:
        if name == "JPEG":
            whole = True
            if data.count(b"\xff\xda") > limits.SCANS and (scans := _jpeg_scans(data)) > limits.SCANS:
                raise ValueError(
                    f"JPEG picture of {scans:,} scans, more than {limits.SCANS}, which take their time each"
                )
        elif name == "PNG":
            whole = _png_end(data) <= len(data)
        elif name == "GIF":
            whole = _gif_end(data) <= len(data)
        else:
            whole = name != "JPEG2000" or b"\xff\xd9" in data
    except (struct.error, IndexError):
        whole = False
    if not whole:
        raise ValueError(f"{name} picture is truncated: no end mark in {len(data)} bytes")


def _jpeg_scans(data: bytes) -> int:
    """How many scans there are before the first picture's end (ITU-T T.81, B.1.1)."""
    scans, position = 0, 2
    while (marker := re.compile(rb"\xff[^\0\xff\xd0-\xd7]").search(data, position)) and marker[0] != b"\xff\xd9":
        scans += marker[0] == b"\xff\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _png_chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Start, end and kind of each chunk up to IEND; struct.error where the data end before (PNG specification, 5.3)."""
    start, kind, count = 8, b"", 0
    while kind != b"IEND":
        if (count := count + 1) > limits.CHUNKS:
            raise ValueError(f"PNG picture of more than {limits.CHUNKS:,} chunks")
        (length,), kind = struct.unpack_from(">I", data, start), data[start + 4 : start + 8]
        yield start, (start := start + 12 + length), kind


def _png_end(data: bytes) -> int:
    """Offset behind the IEND chunk, which may be behind the data (PNG specification, 11.2.5)."""
    return max(end for _, end, _ in _png_chunks(data))


def _without_texts(png: bytes) -> bytes:
    """The picture without texts and profiles: Pillow unpacks them, and refuses large ones, picture and all.

    Those that may hold the orientation stay.
    """
    try:
        texts = [
            (start, end)
            for start, end, kind in _png_chunks(png)
            if kind in (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
            and not png.startswith((b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"), start + 8)
        ]
    except struct.error:  # cut: Pillow says so
        return png
    edges = [0, *(edge for text in texts for edge in text), len(png)]
    return b"".join(png[start:end] for start, end in zip(edges[::2], edges[1::2])) if texts else png


def _gif_end(data: bytes) -> int:
    """Offset behind the trailer (GIF89a specification, 27)."""

    def colours(flags: int) -> int:
        return 6 << (flags & 7) if flags & 128 else 0

    position = 13 + colours(data[10])
    while (kind := data[position]) != 0x3B:
        if kind == 0x21:  # extension
            position += 2
        elif kind == 0x2C:  # frame
            position += 11 + colours(data[position + 9])
        else:
            position += 1
            continue
        while data[position]:
            position += 1 + data[position]
        position += 1
    return position + 1


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
    """EXIF orientation, 1 to 8; broken EXIF data is no fault of the pixels, and counts as 1."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))  # Pillow turns a TIFF itself, and takes the tag away
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
    """The picture in RGB, to which `convert` brings one part after the other, so that nothing between is held whole."""
    converted = Image.new("RGB", image.size)
    for top, bottom in _bands(image):
        converted.paste(convert(image.crop((0, top, image.width, bottom))), (0, top))
    return converted


def _bands(image: Image.Image) -> Iterator[tuple[int, int]]:
    """The first row of each part of the picture, and the row behind its last."""
    rows = max(1, BAND // image.width)
    return ((top, min(top + rows, image.height)) for top in range(0, image.height, rows))


def _to_8bit(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits to `L`, white where one value stands for transparent.

    16 and 32-bit integers are taken as 0..65535 and floats as 0..1; a picture that leaves this range is stretched
    from its own least to its own greatest finite value. NaN is black.
    """
    values, clear = np.asarray(image), image.info.get("transparency")  # (H, W)
    parts = [values[top:bottom] for top, bottom in _bands(image)]
    low, high = 0.0, (1.0 if image.mode == "F" else 65535.0)
    ranges = [
        (finite.min(), finite.max()) for part in parts if (finite := part[np.isfinite(part)].astype(np.float32)).size
    ]
    if ranges and (min(least for least, _ in ranges) < low or max(most for _, most in ranges) > high):
        low, high = float(min(least for least, _ in ranges)), float(max(most for _, most in ranges))
    grey = np.empty(values.shape, np.uint8)
    for (top, bottom), part in zip(_bands(image), parts):
        numbers = np.clip(np.nan_to_num(part.astype(np.float32), nan=low, posinf=high, neginf=low), low, high)
        grey[top:bottom] = np.rint((numbers - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
        if isinstance(clear, int):
            grey[top:bottom][part == clear] = 255
    return Image.fromarray(grey)
