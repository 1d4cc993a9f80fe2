import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import AvifImagePlugin, Image, ImageFile, WebPImagePlugin

import imagetext
from imagetext.reinforced.views import decode_stored
from imagetext.sample import MAX_PIXELS, decode_image, image_size, is_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    image = decode_image(data)
    assert image.mode == "RGB" and image.size == image_size(data)
    return np.asarray(image)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Build a PNG chunk by chunk."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


# How stored pixels (H, W, 3) are shown, by the EXIF 2.3 specification, 4.6.4 A.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_orientation_is_applied(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(PIXELS)
    data = encode(image, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    stored = np.asarray(Image.open(io.BytesIO(encode(image, "JPEG")))) if format == "JPEG" else PIXELS
    assert np.array_equal(decoded(data), SHOWN[orientation](stored))


def test_broken_exif_does_not_hurt_the_picture():
    data = encode(Image.fromarray(PIXELS), "PNG")
    broken = encode(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decoded(data).shape == (8, 12, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decoded(broken).shape == (8, 12, 3)


@pytest.mark.parametrize(
    "format,options",
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_pixels_back(format, options):
    assert np.array_equal(decoded(encode(Image.fromarray(PIXELS), format, **options)), PIXELS)


@pytest.mark.parametrize("format", ["GIF", "JPEG", "JPEG2000", "AVIF"])
def test_other_formats_decode(format):
    grey = Image.new("RGB", (16, 16), (90, 90, 90))
    assert np.abs(decoded(encode(grey, format)).astype(int) - 90).max() <= 4


def test_cmyk_is_decoded_in_the_right_colours():
    image = Image.merge("CMYK", [Image.new("L", (4, 4), value) for value in (0, 255, 255, 0)])
    assert (decoded(encode(image, "TIFF")) == (255, 0, 0)).all()
    assert np.abs(decoded(encode(image, "JPEG")).astype(int) - (255, 0, 0)).max() <= 3


def test_grey_of_16_bits_is_scaled():
    values = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)
    grey = decoded(encode(Image.fromarray(values), "PNG"))
    assert np.array_equal(grey[..., 0], np.rint(values / 257))
    assert grey.min() == 0 and grey.max() == 255 and (grey[..., 0] == grey[..., 2]).all()
    # The same greys as a colour PNG of 16 bits, which Pillow scales by cutting off the low byte.
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in values)
    assert np.abs(decoded(png(256, 4, 16, 2, rows)).astype(int) - grey).max() <= 1


def test_32_bit_integers_and_floats_are_scaled():
    integers = np.array([[0, 257, 65535]], np.int32)
    assert decoded(encode(Image.fromarray(integers), "TIFF"))[0, :, 0].tolist() == [0, 1, 255]
    floats = np.array([[0, 0.2, 1]], np.float32)
    assert decoded(encode(Image.fromarray(floats), "TIFF"))[0, :, 0].tolist() == [0, 51, 255]
    beyond = np.array([[-100, -40, 100, np.nan]], np.float32)  # stretched; NaN is black
    assert decoded(encode(Image.fromarray(beyond), "TIFF"))[0, :, 0].tolist() == [0, 76, 255, 0]
    same = np.full((2, 2), 7e9, np.float32)
    assert decoded(encode(Image.fromarray(same), "TIFF")).max() == 0


def test_floats_that_are_not_finite_do_not_spread():
    values = np.array([[0.0, 0.2, np.inf, -np.inf]], np.float32)
    assert decoded(encode(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 51, 255, 0]


@pytest.mark.parametrize("mode,pixel", [("RGBA", (0, 0, 0, 128)), ("LA", (0, 128))])
def test_alpha_is_laid_over_white(mode, pixel):
    image = Image.new(mode, (3, 1), pixel)
    image.putpixel((0, 0), (*pixel[:-1], 0))
    image.putpixel((2, 0), (*pixel[:-1], 255))
    assert decoded(encode(image, "PNG"))[0].tolist() == [[255] * 3, [127] * 3, [0] * 3]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_with_transparency(format, transparency):
    if format == "GIF" and isinstance(transparency, bytes):
        transparency = 1
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = encode(image, format, transparency=transparency)
    assert decoded(data)[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert decoded(encode(image, format))[0].tolist() == [[10, 20, 30], [40, 50, 60]]


@pytest.mark.parametrize("orientation", [1, 8])
def test_one_transparent_value(orientation):
    exif = (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0")
    turn = SHOWN[orientation]
    grey = png(2, 1, 8, 0, b"\0\x05\x09", (b"tRNS", b"\0\x05"), exif)
    assert np.array_equal(decoded(grey), turn(np.array([[[255] * 3, [9] * 3]])))
    colour = png(2, 1, 8, 2, b"\0\x05\x06\x07\x09\x09\x09", (b"tRNS", b"\0\x05\0\x06\0\x07"), exif)
    assert np.array_equal(decoded(colour), turn(np.array([[[255] * 3, [9] * 3]])))
    deep = png(2, 1, 16, 0, b"\0\x05\x06\x80\x80", (b"tRNS", b"\x05\x06"), exif)
    assert np.array_equal(decoded(deep), turn(np.array([[[255] * 3, [128] * 3]])))


def test_one_bit_and_grey():
    assert decoded(encode(Image.new("1", (2, 2), 1), "PNG")).tolist() == [[[255] * 3] * 2] * 2
    assert decoded(encode(Image.new("L", (1, 1), 7), "PNG")).tolist() == [[[7] * 3]]


@pytest.mark.parametrize("format,options", [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_first_frame_of_an_animation(format, options):
    red, blue = Image.new("RGB", (5, 4), "red"), Image.new("RGB", (5, 4), "blue")
    data = encode(red, format, save_all=True, append_images=[blue], **options)
    assert (decoded(data) == (255, 0, 0)).all()


def test_first_picture_of_two_in_a_jpeg():
    red, blue = Image.new("RGB", (16, 16), (254, 0, 0)), Image.new("RGB", (16, 16), "blue")
    data = encode(red, "MPO", save_all=True, append_images=[blue])
    assert np.abs(decoded(data).astype(int) - (254, 0, 0)).max() <= 3


@pytest.mark.parametrize(
    "data,reason",
    [
        (None, "missing"),
        (b"", "empty"),
        (b"just a text, named photo.jpg", "not a picture"),
        (b"\xff\xd8\xff", "broken header"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ],
)
def test_what_is_no_picture_says_so(data, reason):
    with pytest.raises(ValueError, match=reason):
        decode_image(data)


@pytest.mark.parametrize(
    "format,options",
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("GIF", {}),
        ("AVIF", {}),
        ("JPEG2000", {}),
        ("PPM", {}),
        ("GIF", {"save_all": True, "append_images": [Image.new("RGB", (12, 8))]}),
        ("PNG", {"save_all": True, "append_images": [Image.new("RGB", (12, 8))]}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_file_cut_anywhere_is_an_error(format, options):
    data = encode(Image.fromarray(PIXELS), format, **options)
    decode_image(data)
    for length in {*range(0, len(data), 7), *range(max(0, len(data) - 20), len(data))}:
        with pytest.raises(ValueError):
            decode_image(data[:length])


def test_pixels_are_counted_from_the_header():
    lying = png(31623, 31623, 8, 2, b"")
    with pytest.raises(ValueError, match=r"31623 x 31623 pixels: 1,000,014,129 is more than 200,000,000"):
        decode_image(lying)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own warning, at 89 million
        assert image_size(png(20_000, 10_000, 1, 0, b"")) == (20_000, 10_000)  # and its own error, at 179 million
    with pytest.raises(ValueError, match="200,010,000"):
        image_size(png(20_001, 10_000, 1, 0, b""))
    assert MAX_PIXELS == 200_000_000


def test_a_picture_that_is_a_line_is_refused_from_its_header():
    """Models resize the shorter side: a picture of 60,000 x 3 pixels would become 224 x 4,480,000."""
    for size in ((60_000, 299), (2, 401)):
        with pytest.raises(
            ValueError, match=f"{size[0]} x {size[1]} pixels: one side is more than 200 times the other"
        ):
            decode_image(png(*size, 8, 2, b""))
    assert image_size(png(60_000, 300, 8, 2, b"")) == (60_000, 300) and image_size(png(1, 200, 8, 2, b"")) == (1, 200)


def test_pillow_keeps_its_settings_and_does_not_decide(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    for format in ("JPEG", "PNG", "GIF", "BMP"):
        decode_image(encode(Image.fromarray(PIXELS), format))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))


ENCODED = [
    encode(Image.fromarray(PIXELS), format)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000")
]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ENCODED), st.randoms(use_true_random=False), st.integers(1, 20))
def test_damaged_bytes_give_a_picture_or_a_reason(data, rng: random.Random, count):
    damaged = bytearray(data)
    for _ in range(count):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    try:
        assert decode_image(bytes(damaged)).mode == "RGB"
    except ValueError as error:
        assert str(error)


def test_real_pictures_decode_at_the_size_of_their_headers(wiki):
    paths = sorted(wiki.glob("*.jpg"))
    assert len(paths) == 21
    for path in paths:
        data = path.read_bytes()
        image = decode_image(data)
        assert image.mode == "RGB" and image.size == image_size(data)
        with pytest.raises(ValueError, match="does not decode"):
            decode_image(data[: len(data) // 2])


def test_heic_is_named():
    for major, others in ((b"heic", b"mif1heic"), (b"mif1", b"mif1heic"), (b"msf1", b"hevcmsf1")):
        with pytest.raises(ValueError, match="^HEIC picture, which is not read.*pillow-heif"):
            decode_image(b"\0\0\0\x18ftyp" + major + b"\0\0\0\0" + others + bytes(100))
    assert decode_image(encode(Image.new("RGB", (9, 7)), "AVIF")).size == (9, 7)


@pytest.mark.parametrize("name, plugin", [("AVIF", AvifImagePlugin), ("WEBP", WebPImagePlugin)])
def test_a_pillow_without_a_format_is_told(monkeypatch, name, plugin):
    data = encode(Image.new("RGB", (9, 7)), name)
    monkeypatch.setattr(plugin, "SUPPORTED", False)
    assert is_picture(data[:32])
    with pytest.raises(
        ValueError, match=f"^{name} picture, which this Pillow does not read: .*{name}.* support not installed"
    ):
        decode_image(data)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_texts_and_profiles_of_a_png_are_never_unpacked(picture):
    """Pillow refuses a picture whose texts or profile unpack to more than 1 MiB, as ComfyUI and cameras write."""
    png = picture(1, "PNG")
    large = zlib.compress(bytes(4 << 20))
    orientation = chunk(
        b"iTXt",
        b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1'
        b'999/02/22-rdf-syntax-ns#"><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>',
    )
    for kind, data in (
        (b"iCCP", b"icc\0\0" + large),
        (b"zTXt", b"workflow\0\0" + large),
        (b"iTXt", b"workflow\0\1\0\0\0" + large),
    ):
        for place in (33, len(png) - 12):  # before the pixels and behind them
            odd = png[:place] + chunk(kind, data) + png[place:]
            with pytest.raises(ValueError, match="MAX_TEXT"):
                Image.open(io.BytesIO(odd)).load()
            assert decode_image(odd).tobytes() == decode_image(png).tobytes() == decode_stored(odd).tobytes()
            assert image_size(odd) == image_size(png)
            turned = png[:33] + orientation + odd[33:]
            assert decode_image(turned).size == image_size(turned) == image_size(png)[::-1]
    assert decode_image(png[:33] + chunk(b"iCCP", b"icc\0\0" + large) + png[33:]).mode == "RGB"
    with pytest.raises(ValueError, match="PNG picture"):
        decode_image(png[:33] + chunk(b"zTXt", b"workflow\0\0" + large)[:50])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_a_picture_is_told_by_its_first_bytes(picture, format):
    assert is_picture(picture(1, format)[:32])


def test_what_is_no_picture_by_its_first_bytes():
    assert is_picture(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")  # decoding refuses it and says how to convert it
    for head in (
        b"",
        b"BM",
        b"BMW cars are",
        b"P1 is one of",
        b"P2P networks",
        b"PK\3\4",
        b"%PDF-1.7",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"8BPS",
        b"<svg/>",
        b"\0\0\1\0\1\0",
        b"\0\0\0\x18ftypisom\0\0\0\0mp41",
        b"II",
        b"RIFF\0\0\0\0WAVEfmt ",
    ):
        assert not is_picture(head)


def test_what_the_room_offers_is_there():
    assert [getattr(imagetext, name).__name__ for name in imagetext.__all__] == imagetext.__all__
